"""Bringing data in by the sheet: folders, and several sources named at once."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from storage.tables import Dataset
from tests.core.data_files import GOOD, lines
from tests.ui.conftest import choose, go_to, open_sheet, served

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]
JOB = 90_000
PATH = "Or a path, or a data set of the hub"


@pytest.fixture
def address(workbench, zygote):
    with served(workbench.settings.home, zygote) as found:
        yield found


def test_a_folder_of_texts_is_looked_at_and_imported_and_each_row_says_whose_it_is(
    workbench, address, open_page, tmp_path
):
    folder = tmp_path / "tales"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / f"{name}.txt").write_text(f"The tale {name}.")
    page = open_page(address)
    go_to(page, "Data")
    adding = open_sheet(page, "Add data")
    adding.get_by_label(PATH).fill(str(folder))
    adding.get_by_label(PATH).press("Enter")
    expect(adding.locator("#first-rows .turn").first).to_contain_text("The tale one.")
    adding.get_by_role("button", name="Import", exact=True).click()
    expect(page.locator(".title-line h2:visible", has_text="tales")).to_be_visible(timeout=JOB)
    assert workbench.registry.find(Dataset, "tales").rows == 2
    expect(page.locator(".card h3:visible", has_text="Row 1 of tales/two.txt")).to_be_visible()


def test_a_path_beside_uploaded_files_is_refused_and_neither_is_left_aside(
    workbench, address, open_page, tmp_path
):
    file = tmp_path / "up.jsonl"
    file.write_text(lines(GOOD))
    page = open_page(address)
    go_to(page, "Data")
    adding = open_sheet(page, "Add data")
    adding.locator("#data-upload input[type=file]").set_input_files(file)
    expect(adding.locator("#first-rows .turn").first).to_be_visible()
    adding.get_by_label(PATH).fill("/data/other.jsonl")
    adding.get_by_role("button", name="Import", exact=True).click()
    said = page.get_by_test_id("toast-body").filter(has_text="take one of the two away")
    expect(said.first).to_be_visible()
    assert [row.name for row in workbench.registry.all(Dataset)] == ["data"]


def test_columns_that_nothing_is_known_of_can_be_named_at_once(workbench, address, open_page, tmp_path):
    file = tmp_path / "asked.csv"
    file.write_text("words,kind,more\n" + "".join(f"word{i},k{i % 2},m{i}\n" for i in range(12)))
    page = open_page(address)
    go_to(page, "Data")
    adding = open_sheet(page, "Add data")
    adding.locator("#data-upload input[type=file]").set_input_files(file)
    expect(adding.get_by_text("say below which column is what")).to_be_visible()
    choose(page, "User (question)", "words")
    choose(page, "Assistant (answer)", "kind")
    expect(adding.locator("#first-rows .turn.user").first).to_contain_text("word0")
    adding.get_by_role("button", name="Import", exact=True).click()
    expect(page.locator(".title-line h2:visible", has_text="asked")).to_be_visible(timeout=JOB)
    assert workbench.registry.find(Dataset, "asked").mapping["columns"] == {
        "user": "words",
        "assistant": "kind",
    }
