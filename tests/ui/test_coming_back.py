"""What is shown when somebody comes back to a section, or goes from one thing to another that has less."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from core.data.split import Split
from core.train.training_options import TrainingOptions
from storage.tables import Run
from tests.ui.conftest import choose_row, go_to, open_tab, row, served
from tests.workbenches import QUICK, wait_for, write_rows

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]


@pytest.fixture
def address(workbench, zygote):
    with served(workbench.settings.home, zygote) as found:
        yield found


def _split_anew(workbench, name: str, seed: int) -> None:
    workbench.datasets.split(name, Split(seed=seed))


def test_a_list_shows_what_has_changed_while_another_section_was_open(workbench, address, open_page):
    page = open_page(address)
    go_to(page, "Data")
    expect(row(page, "data", "data")).to_contain_text("version 1")
    go_to(page, "Settings")
    with page.expect_event("console", lambda said: said.text == "told"):
        page.evaluate("addEventListener('workbench-changed', () => console.log('told'), {once: true})")
        _split_anew(workbench, "data", 1)
    go_to(page, "Data")
    expect(row(page, "data", "data")).to_contain_text("version 2", timeout=10_000)


def test_a_list_that_could_not_be_fetched_is_asked_for_again(workbench, address, open_page):
    page = open_page(address)
    go_to(page, "Data")
    expect(row(page, "data", "data")).to_contain_text("version 1")
    refused = []

    def refuse(route) -> None:
        if not refused and b"rows" in (route.request.post_data_buffer or b""):
            refused.append(route.request.url)
            route.abort()
        else:
            route.continue_()

    page.route(re.compile("component_server"), refuse)
    _split_anew(workbench, "data", 1)
    expect(row(page, "data", "data")).to_contain_text("version 2", timeout=15_000)
    assert refused


def test_from_a_data_set_with_versions_to_one_without_all_goes_on_working(
    workbench, address, open_page, tmp_path
):
    for name in ("few", "fewer"):
        workbench.datasets.add(write_rows(tmp_path / f"{name}.jsonl"), name)
    _split_anew(workbench, "data", 1)
    page = open_page(address)
    go_to(page, "Data")
    choose_row(page, "data", "data")
    open_tab(page, "Split and versions")
    expect(page.get_by_role("button", name="Go back to this version")).to_be_visible()
    for name in ("few", "fewer", "data", "few"):
        choose_row(page, "data", name)
    expect(page.get_by_role("button", name="Go back to this version")).to_be_hidden()


def test_from_a_run_with_checkpoints_to_one_without_all_goes_on_working(workbench, address, open_page):
    def start(name: str, **options: object) -> int:
        asked = TrainingOptions.parse({**QUICK, **options})
        return workbench.training.start("llama", "data", asked, name).id

    saved = start("saved", max_steps=4, save_steps=2)
    assert workbench.runs.wait(saved).state == "finished"
    long = start("long", max_steps=50_000)
    for name in ("next", "last"):
        start(name, max_steps=4)
    wait_for(lambda: workbench.registry.get(Run, long).state == "running")
    page = open_page(address)
    go_to(page, "Runs")
    choose_row(page, "runs", "saved")
    open_tab(page, "Checkpoints")
    expect(page.get_by_role("button", name="Keep as an adapter")).to_be_visible()
    for name in ("next", "last", "saved", "last"):
        choose_row(page, "runs", name)
    expect(page.get_by_role("button", name="Keep as an adapter")).to_be_hidden()
    workbench.runs.stop(long)


def test_a_chart_out_of_sight_has_the_colours_of_the_theme_when_it_is_seen_again(
    workbench, address, open_page
):
    def words() -> str:
        return page.evaluate("document.querySelector('.chart-plot:has(.bars)')._fullLayout.font.color")

    page = open_page(address)
    go_to(page, "Data")
    choose_row(page, "data", "data")
    expect(page.locator(".chart-plot .bars").first).to_be_visible()
    light = words()
    switch = page.get_by_role("button", name="Switch between light and dark")
    switch.click()
    wait_for(lambda: words() != light)
    go_to(page, "Settings")
    switch.click()
    go_to(page, "Data")
    expect(page.locator(".chart-plot .bars").first).to_be_visible()
    wait_for(lambda: words() == light, 10)
