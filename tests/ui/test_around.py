"""Around the page: installable as an app, title and icon while something trains, theme and density."""

from __future__ import annotations

import io
import json
import re

import pytest
from PIL import Image, ImageChops
from playwright.sync_api import expect

from core.train.training_options import TrainingOptions
from tests.icons import ASSETS, drawn
from tests.ui.conftest import ARGUMENTS, chromium, ready, served
from tests.workbenches import QUICK

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
LONG = TrainingOptions.parse({**QUICK, "max_steps": 5000})


@pytest.fixture
def address(workbench, zygote):
    with served(workbench.settings.home, zygote) as found:
        yield found


def test_a_browser_can_install_the_page_as_an_app(address, browser, tmp_path):
    """In a profile of its own: a private window, as other tests have, installs nothing."""
    kind = browser.browser_type
    context = kind.launch_persistent_context(tmp_path, executable_path=chromium(kind), args=ARGUMENTS)
    page = context.pages[0]
    page.goto(address)
    ready(page)
    session = context.new_cdp_session(page)
    expect(page.locator("link[rel=manifest]")).to_have_count(1)
    found = session.send("Page.getAppManifest")
    assert found["errors"] == []
    assert found["url"].endswith("/workbench/manifest.webmanifest")
    manifest = json.loads(found["data"])
    assert (manifest["display"], manifest["start_url"], manifest["scope"]) == ("standalone", "/", "/")
    assert {one["purpose"] for one in manifest["icons"]} == {"any", "maskable"}
    assert session.send("Page.getInstallabilityErrors")["installabilityErrors"] == []
    for icon in manifest["icons"]:
        answer = page.request.get(address.partition("/?")[0] + icon["src"])
        image = Image.open(io.BytesIO(answer.body()))
        assert f"{image.width}x{image.height}" == icon["sizes"]
        assert answer.headers["content-type"] == icon["type"]
    context.close()


def test_the_icons_are_those_of_the_svg(browser):
    for name, content in drawn(browser).items():
        kept, new = (
            Image.open(one).convert("RGBA") for one in (ASSETS / "icons" / name, io.BytesIO(content))
        )
        assert kept.size == new.size
        worst = max(high for _, high in ImageChops.difference(kept, new).getextrema())
        assert worst < 40, f"{name} is not what assets/icon.svg shows; draw it anew: python -m tests.icons"


def test_title_and_icon_tell_how_far_a_run_is(workbench, address, open_page):
    page = open_page(address)
    icon = page.locator("link[rel=icon]")
    expect(icon).to_have_attribute("href", "/workbench/icon.svg")
    run = workbench.training.start("llama", "data", LONG, "night shift")
    expect(page).to_have_title(re.compile(r"^\d+ % · night shift · LoRA Workbench$"), timeout=60_000)
    expect(icon).to_have_attribute("href", re.compile("^data:image/svg.*stroke-dasharray"))
    workbench.runs.stop(run.id)
    workbench.runs.wait(run.id)
    expect(page).to_have_title("LoRA Workbench")
    expect(icon).to_have_attribute("href", "/workbench/icon.svg")


def _is_dark(page, dark):
    page.wait_for_function("dark => document.body.classList.contains('dark') === dark", arg=dark)


def test_theme_and_density_are_as_set_and_the_button_counts_until_the_setting_is_changed(
    workbench, address, open_page
):
    page = open_page(address)
    _is_dark(page, False)
    expect(page.locator("body")).to_have_attribute("data-density", "compact")
    page.set_viewport_size({"width": 1920, "height": 900})
    expect(page.locator("body")).to_have_attribute("data-density", "comfortable")
    page.emulate_media(color_scheme="dark")
    _is_dark(page, True)
    workbench.preferences.change({"theme": "light", "density": "compact"})
    _is_dark(page, False)
    expect(page.locator("body")).to_have_attribute("data-density", "compact")
    page.locator("#theme-button").click()
    _is_dark(page, True)
    page.reload()
    _is_dark(page, True)
    expect(page.locator("body")).to_have_attribute("data-density", "compact")
    workbench.preferences.change({"theme": "system"})
    page.emulate_media(color_scheme="light")
    _is_dark(page, False)
    workbench.settings.settings_file.write_text("theme = 'blue'\n")
    expect(page.locator("#masthead [role=alert]", has_text="one of system, light, dark")).to_be_visible()


def test_what_ends_out_of_sight_is_told_if_that_is_allowed_and_set(workbench, address, open_page):
    page = open_page(address)
    page.evaluate(
        """() => {
            window.told = [];
            window.Notification = class { constructor(said) { window.told.push(said); } };
            Notification.permission = 'granted';
            Object.defineProperty(document, 'hidden', {get: () => true});
        }"""
    )
    said = "() => window.told.join()"
    _seen_and_stopped(workbench, page, "first")
    page.wait_for_function("() => window.told.length")
    assert page.evaluate(said) == "Run 1 (first) is stopped."
    workbench.preferences.change({"notifications": False})
    _seen_and_stopped(workbench, page, "second")
    expect(page).to_have_title("LoRA Workbench")
    assert page.evaluate(said) == "Run 1 (first) is stopped."


def _seen_and_stopped(workbench, page, name):
    run = workbench.training.start("llama", "data", LONG, name)
    expect(page).to_have_title(re.compile(f" · {name} · "), timeout=60_000)
    workbench.runs.stop(run.id)
    workbench.runs.wait(run.id)
