"""A whole journey without a mouse: data, training, chat and export by keys alone."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from storage.tables import Adapter, Export, Run
from tests.ui.conftest import drawn, served
from tests.workbenches import wait_for

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]
JOB = 90_000
STOPS = 60
"""More than there are between the beginning of a section and whatever is wanted in it."""
FOCUSED = """() => {
    const one = document.activeElement, ids = one.getAttribute('aria-labelledby')?.split(' ') ?? [];
    const words = [one.ariaLabel, ...ids.map(id => document.getElementById(id)?.textContent),
                   ...[...(one.labels ?? [])].map(label => label.textContent), one.textContent];
    const drawn = now => now.outlineStyle !== 'none' || now.boxShadow !== 'none';
    const ringed = node => drawn(getComputedStyle(node));
    const list = one.closest('.wrap:has(> .wrap-inner)');
    return {name: words.find(text => text?.trim())?.trim() ?? '',
            seen: one === document.body || ringed(one) || (list && ringed(list))
                || getComputedStyle(one.parentElement).boxShadow !== 'none'};
}"""


@pytest.fixture
def address(workbench, zygote):
    with served(workbench.settings.home, zygote) as found:
        yield found


def _section(page: Page, key: str, title: str) -> None:
    page.keyboard.press("g")
    page.keyboard.press(key)
    expect(page.locator("#rail [aria-current=page]")).to_have_text(title)
    drawn(page)


def _tab_to(page: Page, name: str) -> None:
    """Press Tab until what has the focus is called so; at each stop it is seen where the focus is."""
    stops = []
    for _ in range(STOPS):
        page.keyboard.press("Tab")
        now = page.evaluate(FOCUSED)
        assert now["seen"], f"the focus is not to be seen on {now['name']!r}"
        stops.append(now["name"])
        if now["name"].startswith(name):
            return
    raise AssertionError(f"{name!r} cannot be reached; the stops were {stops}")


def _type(page: Page, name: str, text: str) -> None:
    _tab_to(page, name)
    page.keyboard.press("Control+a")
    page.keyboard.type(text)


def _press(page: Page, name: str) -> None:
    _tab_to(page, name)
    page.keyboard.press("Enter")


def test_from_data_to_an_export_by_keys_alone(workbench, address, open_page, tmp_path):
    rows = "".join(f'{{"prompt": "number {i}", "completion": "yes {i}"}}\n' for i in range(24))
    (tmp_path / "mine.jsonl").write_text(rows)
    page = open_page(address)

    _section(page, "d", "Data")
    _press(page, "Add data")
    expect(page.get_by_role("dialog", name="Add data")).to_be_visible()
    _type(page, "Or a path, or a data set of the hub", str(tmp_path / "mine.jsonl"))
    page.keyboard.press("Enter")
    expect(page.locator("#first-rows .turn.assistant").first).to_contain_text("yes 0")
    _press(page, "Import")
    expect(page.locator(".title-line h2:visible", has_text="mine")).to_be_visible(timeout=JOB)
    expect(page.get_by_role("dialog")).to_have_count(0)
    _press(page, "Train on it")

    expect(page.locator("#rail [aria-current=page]")).to_have_text("Train")
    expect(page.get_by_role("combobox", name="Data set", exact=True)).to_have_value("mine")
    _type(page, "Name of the adapter", "by hand")
    _type(page, "Micro-batch size", "2")
    _press(page, "When it stops")
    _type(page, "Max steps", "12")
    _press(page, "Start training")
    (run,) = wait_for(lambda: workbench.registry.all(Run))
    expect(page).to_have_url(re.compile(rf"section=runs&name={run.id}$"))
    expect(page.locator(".curve-state", has_text="Finished")).to_be_visible(timeout=JOB)

    _section(page, "a", "Adapters")
    page.keyboard.press("/")
    page.keyboard.press("ArrowDown")
    expect(page.locator(".title-line h2:visible")).to_have_text("by hand")
    _press(page, "Edit")
    expect(page.get_by_role("dialog").get_by_label("Name", exact=True)).to_have_value("by hand")
    _type(page, "Note", "made without a mouse")
    _press(page, "Save")
    expect(page.get_by_role("dialog")).to_have_count(0)
    wait_for(lambda: workbench.registry.find(Adapter, "by hand").note == "made without a mouse")
    assert page.evaluate(FOCUSED)["name"] == "Edit", "the focus is back where it was"
    _tab_to(page, "Overview")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Lineage").last).to_have_attribute("aria-selected", "true")

    _section(page, "p", "Playground")
    _type(page, "Prompt", "number 3")
    page.keyboard.press("Enter")
    expect(page.locator(".bot.message")).to_have_count(2, timeout=JOB)
    page.keyboard.press("Escape")  # stops the answers if they are not whole yet
    expect(page.locator("#stop-answers")).to_be_disabled(timeout=JOB)
    page.keyboard.press("Escape")  # leaves the field

    _section(page, "e", "Export")
    _press(page, "Export an adapter")
    form = page.get_by_role("dialog", name="Export an adapter")
    expect(form).to_be_visible()
    expect(form.get_by_text("What will be written")).to_be_visible()
    _tab_to(page, "Adapter")
    page.keyboard.type("by")
    expect(form.get_by_role("option", name="by hand")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Enter")
    expect(form.get_by_role("combobox", name="Adapter", exact=True)).to_have_value("by hand")
    _press(page, "Export")
    wait_for(lambda: workbench.registry.all(Export), 120)
    expect(page.get_by_text("Passed: logits differ by at most")).to_be_visible(timeout=JOB)
