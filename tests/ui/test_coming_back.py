"""What is shown when somebody comes back to a section, or goes from one thing to another that has less."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from core.data.split import Split
from tests.ui.conftest import go_to, row, served

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
