"""How the page looks where that is easily spoilt: in a narrow window, in the dark, where things overlap."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from core.train.training_options import TrainingOptions
from tests.ui.conftest import choose, choose_row, go_to, open_sheet, served
from tests.workbenches import QUICK, wait_for

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]
NARROW = 800
_WIDER_THAN_ITS_ROOM = """() => [...document.querySelectorAll(
    '#sections > [role=tabpanel] > .column, .detail-pane, .who-answers, .check-bar > .form, .status')]
    .filter(one => one.getClientRects().length && one.scrollWidth > one.clientWidth + 1)
    .map(one => [one.className, one.clientWidth, one.scrollWidth])"""


@pytest.fixture
def address(workbench, zygote):
    with served(workbench.settings.home, zygote) as found:
        yield found


def test_nothing_is_wider_than_a_window_that_was_made_narrow_out_of_its_sight(
    workbench, trained, address, open_page
):
    trained("one")
    run = workbench.training.start("llama", "data", TrainingOptions.parse({**QUICK, "max_steps": 3}), "short")
    assert workbench.runs.wait(run.id).state == "finished"
    page = open_page(address)
    go_to(page, "Runs")
    choose_row(page, "runs", "short")
    expect(page.locator(".curve-plot .main-svg").first).to_be_visible()
    go_to(page, "Home")
    page.set_viewport_size({"width": NARROW, "height": 900})
    for section in ("Data", "Train", "Playground", "Adapters", "Runs"):
        go_to(page, section)
        wait_for(lambda: page.evaluate(_WIDER_THAN_ITS_ROOM) == [], 10)


def test_what_the_browser_draws_by_itself_is_as_dark_as_the_page(address, open_page):
    page = open_page(address)
    switch = page.get_by_role("button", name="Switch between light and dark")
    for scheme in ("light", "dark"):
        assert page.evaluate("getComputedStyle(document.querySelector('#sections')).colorScheme") == scheme
        switch.click()


def test_nothing_of_a_sheet_shows_through_its_foot(address, open_page, tmp_path):
    file = tmp_path / "asked.csv"
    file.write_text("words,kind,more\n" + "".join(f"word{i},k{i % 2},m{i}\n" for i in range(12)))
    page = open_page(address)
    page.set_viewport_size({"width": 1280, "height": 600})
    go_to(page, "Data")
    adding = open_sheet(page, "Add data")
    adding.locator("#data-upload input[type=file]").set_input_files(file)
    choose(page, "Format", "prompt and completion")
    label = adding.get_by_text("Assistant (answer)", exact=True)
    expect(label).to_be_visible()
    foot = adding.locator(".sheet-foot")
    above = label.bounding_box()["y"] - foot.bounding_box()["y"] - 12
    adding.evaluate("(sheet, by) => { sheet.scrollTop += by; }", above)
    wait_for(lambda: abs(label.bounding_box()["y"] - foot.bounding_box()["y"] - 12) < 2, 10)
    box = label.bounding_box()
    at = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert foot.evaluate("(foot, [x, y]) => foot.contains(document.elementFromPoint(x, y))", at)


def test_fields_of_options_stand_in_line_whatever_room_their_labels_take(address, open_page):
    page = open_page(address)
    go_to(page, "Train")
    field = page.get_by_label("Gradient accumulation steps", exact=True)
    field.fill("1")
    expect(page.locator("[data-option=gradient_accumulation_steps][data-changed]")).to_be_visible()
    wait_for(lambda: abs(_top(field) - _top(page.get_by_label("Micro-batch size", exact=True))) < 2, 10)


def test_the_name_of_an_adapter_keeps_one_line(address, open_page):
    page = open_page(address, width=NARROW)
    go_to(page, "Train")
    name, rank = page.get_by_label("Name of the adapter"), page.get_by_label("Rank (r)", exact=True)
    assert name.bounding_box()["height"] - rank.bounding_box()["height"] < 8


def test_a_dropdown_that_has_the_focus_is_outlined_as_a_whole_and_once(address, open_page):
    page = open_page(address)
    go_to(page, "Train")
    page.get_by_label("Preset", exact=True).focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    styles = page.evaluate(
        "[document.activeElement, document.activeElement.closest('.wrap')]"
        ".map(one => getComputedStyle(one).outlineStyle)"
    )
    assert styles == ["none", "solid"]


def _top(field) -> float:
    return field.bounding_box()["y"]
