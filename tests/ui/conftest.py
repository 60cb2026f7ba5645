"""A real Chromium and a real server. Without Chromium the tests are skipped, unless they are required."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
from playwright.sync_api import Browser, BrowserType, Locator, Page, expect, sync_playwright

from app.shared.settings import settings_for
from tests.workbenches import end_engine, free_port, listens, wait_for
from tests.zygote import Zygote

REQUIRED, PICTURES = "LORA_WORKBENCH_REQUIRE_BROWSER", "LORA_WORKBENCH_PICTURES"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-features=SpareRendererForSitePerProcess",  # which takes a core from what is tested
]
# The first needs a fraction of what the others take to start a page.
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_DRAWN = """() => new Promise(done => requestAnimationFrame(() => requestIdleCallback(
    () => requestAnimationFrame(() => requestIdleCallback(done)))))"""
ARTIFACTS = Path(__file__).parents[1] / "artifacts"
expect.set_options(timeout=30_000)  # server, engine and browser share the machine


def chromium(kind: BrowserType) -> str:
    """Where Chromium is: the system's, or the one Playwright brings."""
    system = next(filter(None, map(shutil.which, BROWSERS)), None)
    return system or kind.executable_path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium: the system's, or the one Playwright brings. Not kept for longer than a file: while it is, no
    other test can have an event loop.
    """
    with sync_playwright() as playwright:
        executable = chromium(playwright.chromium)
        if not Path(executable).exists():
            reason = "no Chromium found: install it, or run: playwright install chromium"
            pytest.fail(reason) if os.environ.get(REQUIRED) else pytest.skip(reason)
        found = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield found
        found.close()


@contextmanager
def served(home: Path, zygote: Zygote | None = None) -> Iterator[str]:
    """The command `lora-workbench` on a home; its address. Its engine takes one core, the browser has the
    other. No handler of the page may fail unexpectedly.

    With a zygote the server is forked instead of started, and so are its engine and jobs.
    """
    port = free_port()
    arguments = ["--home", str(home), "--port", str(port), "--no-browser"]
    home.mkdir(parents=True, exist_ok=True)
    with (home / "server.log").open("w") as log:
        process = (
            zygote.start("app.cli.main", arguments, home / "server.log")
            if zygote
            else _started(arguments, log)
        )
        try:
            wait_for(lambda: process.poll() is not None or listens(port), 180)
            assert process.poll() is None, (home / "server.log").read_text()
            yield json.loads(settings_for(home).app_file.read_text())["address"]
            said = (home / "server.log").read_text()
            # Gradio logs that it refused a choice that had gone while the page was telling of it.
            assert said.count("Traceback") == said.count("is not in the list of choices"), said[-4000:]
        finally:
            process.terminate()
            wait_for(lambda: process.poll() is not None, 20)
            end_engine(settings_for(home))


def _started(arguments: list[str], log: IO[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "app.cli.main", *arguments]
    return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """A function that opens an address in a window of its own; the page's errors fail the test."""
    contexts, errors = [], []

    def opener(address: str, width: int = 1280, dark: bool = False) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",  # drawn without a graphics card, motion takes a third of a core
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(f"{error.message}\n{error.stack}"))
        page.goto(address)
        ready(page)
        return page

    yield opener
    for context in contexts:
        context.close()
    assert errors == []


def tab(page: Page, title: str) -> Locator:
    """The tab of this title among those of what is chosen.

    While Gradio measures its tabs it holds them twice; the last is the real one.
    """
    return page.get_by_role("tab", name=title, exact=True).last


def section_link(page: Page, title: str) -> Locator:
    """The link of the rail to a section."""
    return page.locator("#rail").get_by_role("link", name=title, exact=True)


def row(page: Page, section: str, name: str) -> Locator:
    """The row of a section's list that begins with this name."""
    rows = page.locator(f"#list-{section}").get_by_role("option")
    return rows.filter(has=page.locator(".picker-title", has_text=re.compile(f"^(. )?{re.escape(name)}$")))


def choose_row(page: Page, section: str, name: str) -> None:
    """Choose a row of a section's list, and see its name at the right."""
    row(page, section, name).click()
    expect(row(page, section, name)).to_have_attribute("aria-selected", "true")
    expect(page.locator(".title-line h2:visible", has_text=name)).to_be_visible()


def sheet(page: Page, title: str) -> Locator:
    """The side sheet of this title, once it is open."""
    found = page.get_by_role("dialog", name=title)
    expect(found).to_be_visible()
    return found


def open_sheet(page: Page, button: str, title: str = "") -> Locator:
    """Press the button that opens a side sheet; the sheet's title is the button's words if none is given."""
    page.get_by_role("button", name=button, exact=True).locator("visible=true").click()
    drawn(page)
    return sheet(page, title or button.removesuffix(" …"))


def choose(page: Page, label: str, option: str) -> None:
    """Choose from a dropdown by the beginning of an option's text."""
    page.get_by_role("combobox", name=label, exact=True).or_(
        page.get_by_label(label, exact=True)
    ).first.click()
    page.locator("ul").get_by_role("option", name=option).first.click()


def ready(page: Page) -> None:
    """Wait until the page can be used."""
    expect(page.locator("#rail [aria-current=page]")).to_be_visible(timeout=30_000)
    expect(page.locator("#masthead .status .chip").first).to_be_attached()


def go_to(page: Page, section: str) -> None:
    """Open a section of the page."""
    section_link(page, section).click()
    expect(section_link(page, section)).to_have_attribute("aria-current", "page")
    drawn(page)


def open_tab(page: Page, title: str) -> None:
    """Open one of the tabs of what is chosen."""
    tab(page, title).click()
    expect(tab(page, title)).to_have_attribute("aria-selected", "true")
    drawn(page)


def unfold(page: Page, accordion: str) -> None:
    """Open an accordion by the beginning of its label."""
    page.get_by_role("button", name=accordion).click()
    drawn(page)


def press(page: Page, button: str) -> None:
    """Press the button of this name."""
    page.get_by_role("button", name=button, exact=True).click()


def drawn(page: Page) -> None:
    """Wait until what was just opened is drawn.

    Gradio fills what it shows for the first time once more a frame later: who types faster than that loses
    it, as no person does.
    """
    page.evaluate(_DRAWN)


def settled(page: Page) -> None:
    """Wait until the last answer of the server is in place everywhere."""
    expect(page.locator("[data-testid=status-tracker]:not(.hide)")).to_have_count(0)


@contextmanager
def slowly(page: Page, milliseconds: float) -> Iterator[None]:
    """What is asked of the server meanwhile is answered so much later."""
    devtools = page.context.new_cdp_session(page)
    limits = {"offline": False, "latency": milliseconds, "downloadThroughput": -1, "uploadThroughput": -1}
    devtools.send("Network.emulateNetworkConditions", limits)
    yield
    devtools.send("Network.emulateNetworkConditions", limits | {"latency": 0})


def picture(page: Page, name: str) -> None:
    """Keep a screenshot beside the tests for people to look at, where they ask for it."""
    if not os.environ.get(PICTURES):
        return
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{name}.png", full_page=True)
