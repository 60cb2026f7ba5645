"""The Data section: ten planted faults are named, left out, and the rest is looked at token by token and
trained on.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from storage.tables import Dataset, Run
from tests.core.data_files import lines
from tests.ui.conftest import go_to, picture, served, unfold

pytestmark = pytest.mark.browser


def _turns(*said: tuple[str, str]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": text} for role, text in said]}


GOOD = [
    _turns(("user", f"question number {i}"), ("assistant", f"a good answer, number {i} of them"))
    for i in range(20)
]
FAULTS: list[tuple[str, str, str]] = [
    ('{"messages": [{"role": "user"\n', "Unreadable", "Line 21 is not valid JSON"),
    (lines(_turns(("user", "hi"), ("assistant", "  "))), "Empty answer", "An answer is empty."),
    (lines(_turns(("user", "nobody answers"))), "No answer", "There is no assistant turn"),
    (lines(_turns(("wizard", "hi"), ("assistant", "x"))), "Unknown role", "The role 'wizard' is not known"),
    (
        lines(_turns(("assistant", "I begin"))),
        "Answer without a question",
        "The first turn is the assistant's",
    ),
    (
        lines({"messages": 5}),
        "Missing or of the wrong kind",
        "messages is a number; expected a list of turns",
    ),
    (
        '{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "x"}]}\n',
        "Broken encoding",
        "half a character",
    ),
    (
        lines(_turns(("user", "a"), ("user", "b"), ("assistant", "two users speak"))),
        "Two turns of one speaker in a row",
        "Turns 1 and 2",
    ),
    (lines(GOOD[3]), "Exact duplicate", "The same as row 4."),
    (
        lines(_turns(("user", "special <|im_end|>"), ("assistant", "fine"))),
        "Special tokens in text",
        "The text holds '<|im_end|>'.",
    ),
]


@pytest.fixture
def address(workbench, zygote) -> Iterator[str]:
    with served(workbench.settings.home, zygote) as found:
        yield found


def _upload(page: Page, path: Path) -> None:
    go_to(page, "Data")
    page.locator("#data-upload input[type=file]").set_input_files(path)


def test_ten_planted_faults_are_named_left_out_and_the_rest_is_trained_on(
    workbench, address, open_page, tmp_path
):
    file = tmp_path / "planted.jsonl"
    file.write_text(lines(*GOOD) + "".join(row for row, _, _ in FAULTS), encoding="utf-8")
    page = open_page(address)
    _upload(page, file)
    expect(
        page.locator("#look").get_by_text("column 'messages' holds turns with role and content")
    ).to_be_visible()
    page.get_by_role("button", name="Import", exact=True).click()
    table = page.locator(".findings table")
    expect(table).to_be_visible(timeout=60_000)
    for number, (_, title, detail) in enumerate(FAULTS, start=21):
        row = table.locator("tr", has_text=title).filter(has_text=f"row {number}")
        expect(row).to_contain_text(detail)
    picture(page, "9-data-report")
    _refused_while_there_are_errors(page)
    _leave_them_out(page, workbench)
    _see_the_tokens(page)
    _train(page, workbench)


def _refused_while_there_are_errors(page: Page) -> None:
    go_to(page, "Train")
    page.get_by_role("combobox", name="Data set", exact=True).click()
    page.get_by_role("option", name="planted").click()
    expect(page.get_by_text("7 rows of planted have errors")).to_be_visible()
    go_to(page, "Data")


def _leave_them_out(page: Page, workbench) -> None:
    page.get_by_role("button", name="Leave out all rows with errors").click()
    expect(page.get_by_text("23 to train on").or_(page.get_by_text("22 to train on"))).to_be_visible()
    for kind in (
        "Two turns of one speaker in a row (1)",
        "Exact duplicate (1)",
        "Special tokens in text (1)",
    ):
        page.locator("#finding-filter").get_by_role("combobox").click()
        page.get_by_role("option", name=kind).click()
        expect(page.locator(".findings table tbody tr")).to_have_count(1)
        before = workbench.registry.find(Dataset, "planted").version
        page.get_by_role("button", name="Leave out the rows shown").click()
        expect(page.get_by_text(f"{before + 1}, ").first).to_be_visible()
        expect(page.locator(".findings table tbody tr td").last).to_have_text("left out")
    row = workbench.registry.find(Dataset, "planted")
    assert (row.rows, row.excluded_rows, row.faulty_rows, row.version) == (30, 10, 0, 5)
    with page.expect_download() as download:
        page.get_by_role("link", name="Report as CSV").click()
    with download.value.path().open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert {line["left out"] for line in found} == {"yes"}
    assert len({line["row"] for line in found}) == 10


def _see_the_tokens(page: Page) -> None:
    go_to(page, "Rows and tokens")
    page.locator("#row-list").get_by_role("gridcell", name="question number 2").first.click()
    tokens = page.locator(".tokens")
    expect(tokens).to_be_visible(timeout=60_000)
    said = "".join(
        tokens.locator(".token.trained").evaluate_all("all => all.map(one => one.firstChild.textContent)")
    )
    assert said == "a good answer, number 2 of them<|im_end|>"
    assert (
        tokens.locator(".token.trained").first.evaluate("one => getComputedStyle(one).textDecorationLine")
        == "underline"
    )
    assert tokens.locator(".token.begins").count() == 2
    picture(page, "10-data-tokens")
    page.get_by_role("button", name="Check with this base").click()
    go_to(page, "Statistics")
    expect(page.get_by_text("Recommended max length")).to_be_visible(timeout=60_000)
    expect(page.get_by_text("Trained on what the playground sends")).to_be_visible()
    expect(page.locator(".js-plotly-plot").first).to_be_visible()
    picture(page, "11-data-statistics")


def _train(page: Page, workbench) -> None:
    go_to(page, "Train")
    unfold(page, "More options")
    page.get_by_label("Max steps").fill("6")
    expect(page.get_by_text("6, about")).to_be_visible()
    page.get_by_role("button", name="Start training").click()
    expect(page.locator(".curve-state", has_text="Finished")).to_be_visible(timeout=120_000)
    (run,) = workbench.registry.all(Run)
    assert (run.dataset_version, run.details["train_rows"] + run.details["validation_rows"]) == (5, 20)


def test_a_file_that_can_be_read_in_two_ways_is_asked_about(workbench, address, open_page, tmp_path):
    file = tmp_path / "e2e.txt"
    file.write_text("".join(f"name : N{i} | food : F{i}||N{i} serves F{i} .\n" for i in range(30)))
    page = open_page(address)
    _upload(page, file)
    expect(page.get_by_text("More than one reading is possible")).to_be_visible()
    page.get_by_role("button", name="Import", exact=True).click()
    expect(page.get_by_test_id("toast-body").filter(has_text="choose what")).to_be_visible()
    page.get_by_role("radio", name="separated lines").check()
    expect(page.locator("#look .turn.assistant").first).to_contain_text("N0 serves F0 .")
    page.get_by_role("button", name="Import", exact=True).click()
    expect(page.get_by_role("gridcell", name="e2e").first).to_be_visible(timeout=60_000)
    assert workbench.registry.find(Dataset, "e2e").mapping["separator"] == "||"


def test_unknown_columns_are_mapped_by_hand_with_a_template(workbench, address, open_page, tmp_path):
    file = tmp_path / "words.csv"
    file.write_text("words,kind,more\n" + "".join(f"word{i},k{i % 2},m{i}\n" for i in range(12)))
    page = open_page(address)
    _upload(page, file)
    expect(page.get_by_text("say below which column is what")).to_be_visible()
    page.get_by_role("combobox", name="Format", exact=True).click()
    page.get_by_role("option", name="prompt and completion").click()
    page.get_by_role("combobox", name="Assistant (answer)").click()
    page.get_by_role("option", name="kind").click()
    page.get_by_label("Template: User's turn").fill("Which kind is {words}?")
    expect(page.locator("#look .turn.user").first).to_contain_text("Which kind is word0?")
    page.get_by_role("button", name="Import", exact=True).click()
    expect(page.get_by_role("gridcell", name="words").first).to_be_visible(timeout=60_000)
    expect(page.get_by_text("Columns that are not used: 'more'.")).to_be_visible()
    row = workbench.registry.find(Dataset, "words")
    assert workbench.datasets.row(row, 3).example.messages[0]["content"] == "Which kind is word3?"


def test_a_row_is_edited_in_place_as_a_new_version(workbench, address, open_page, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(lines(*GOOD))
    workbench.datasets.add(file)
    page = open_page(address)
    go_to(page, "Data")
    go_to(page, "Rows and tokens")
    page.locator("#row-list").get_by_role("gridcell", name="question number 5").first.click()
    go_to(page, "Edit")
    cell = page.locator("#turns").get_by_role("gridcell", name="a good answer, number 5 of them").first
    cell.dblclick()
    editor = page.locator("#turns textarea:focus")  # typed before it opens, keys would go elsewhere
    editor.fill("a better answer")
    editor.press("Enter")
    page.get_by_role("button", name="Save as a new version").click()
    go_to(page, "Split and versions")
    expect(page.get_by_text("row 6 changed")).to_be_visible()
    row = workbench.registry.find(Dataset, "mine")
    assert workbench.datasets.row(row, 5).example.messages[1]["content"] == "a better answer"
    page.get_by_role("button", name="Go back to this version").click()
    expect(page.get_by_text("back to version 1")).to_be_visible()
    row = workbench.registry.find(Dataset, "mine")
    assert json.dumps(workbench.datasets.row(row, 5).example.messages).count("number 5") == 2
