"""The Data section: ten planted faults are named, left out, and the rest is looked at token by token and
trained on.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from core.train.training_options import TrainingOptions
from storage.tables import Dataset
from tests.core.data_files import lines
from tests.ui.conftest import (
    choose,
    choose_row,
    drawn,
    go_to,
    open_sheet,
    open_tab,
    picture,
    press,
    ready,
    row,
    served,
    settled,
    sheet,
    slowly,
    unfold,
)
from tests.workbenches import QUICK

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


def _upload(page: Page, path: Path) -> Locator:
    """Give a file to the sheet that adds data; the sheet."""
    go_to(page, "Data")
    found = open_sheet(page, "Add data")
    found.locator("#data-upload input[type=file]").set_input_files(path)
    return found


def _import(page: Page, name: str) -> None:
    """Import what was given: the sheet closes, and the data set is chosen when it is there."""
    page.get_by_role("dialog", name="Add data").get_by_role("button", name="Import", exact=True).click()
    expect(page.locator(".title-line h2:visible", has_text=name)).to_be_visible(timeout=60_000)
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(row(page, "data", name)).to_have_attribute("aria-selected", "true")


def _row_with(page: Page, words: str) -> Locator:
    return page.locator("#row-list .picker-row").filter(has_text=words)


def test_ten_planted_faults_are_named_left_out_and_the_rest_is_trained_on(
    workbench, address, open_page, tmp_path
):
    file = tmp_path / "planted.jsonl"
    file.write_text(lines(*GOOD) + "".join(row for row, _, _ in FAULTS), encoding="utf-8")
    page = open_page(address)
    adding = _upload(page, file)
    expect(adding.get_by_text("column 'messages' holds turns with role and content")).to_be_visible()
    expect(adding.locator("#first-rows .turn.assistant").first).to_contain_text("number 0 of them")
    assert _above(adding.locator("#first-rows"), adding.get_by_role("button", name="Import", exact=True))
    _import(page, "planted")
    expect(row(page, "data", "planted")).to_contain_text("7 errors")
    _offers_to_train(page)
    open_tab(page, "Report")
    table = page.locator(".findings table")
    expect(table).to_be_visible(timeout=60_000)
    for number, (_, title, detail) in enumerate(FAULTS, start=21):
        found = table.locator("tr", has_text=title).filter(has_text=f"row {number}")
        expect(found).to_contain_text(detail)
    picture(page, "9-data-report")
    table.get_by_role("button", name="row 24").click()
    expect(page.locator(".one-row .title-line")).to_have_text("Row 24")
    open_tab(page, "Conversation")
    expect(page.locator(".one-row .fault")).to_contain_text("The role 'wizard' is not known")
    open_tab(page, "Report")
    _leave_them_out(page, workbench)
    _see_the_tokens(page)
    run = workbench.training.start(
        "llama", "planted", TrainingOptions.parse({**QUICK, "max_steps": 6}), "clean"
    )
    run = workbench.runs.wait(run.id)
    assert (run.dataset_version, run.details["train_rows"] + run.details["validation_rows"]) == (5, 20)


def _above(first: Locator, second: Locator) -> bool:
    """Whether a part of the page ends before another begins."""
    upper, lower = first.bounding_box(), second.bounding_box()
    return bool(upper and lower and upper["y"] + 20 < lower["y"])


def _offers_to_train(page: Page) -> None:
    """Both the masthead's message and the data set itself lead to Train with this data."""
    chosen = page.get_by_role("combobox", name="Data set", exact=True)
    done = page.locator(".notice", has_text="Import planted.jsonl")
    done.get_by_role("link", name="Train on it").click()
    expect(chosen).to_have_value("planted")
    choose(page, "Data set", "data")
    go_to(page, "Data")
    expect(page.locator(".title-line h2:visible", has_text="planted")).to_be_visible()
    press(page, "Train on it")
    expect(chosen).to_have_value("planted")
    go_to(page, "Data")


def _leave_them_out(page: Page, workbench) -> None:
    press(page, "Leave out the rows shown")
    _toast(page, "Choose one kind of finding")
    press(page, "Leave out all rows with errors")
    expect(page.get_by_role("button", name="Leave out all rows with errors")).to_be_hidden()
    expect(row(page, "data", "planted")).to_contain_text("version 2")
    for kind in (
        "Two turns of one speaker in a row (1)",
        "Exact duplicate (1)",
        "Special tokens in text (1)",
    ):
        page.locator("#finding-filter").get_by_role("combobox").click()
        page.get_by_role("option", name=kind).click()
        expect(page.locator(".findings table tbody tr")).to_have_count(1)
        before = workbench.registry.find(Dataset, "planted").version
        press(page, "Leave out the rows shown")
        expect(row(page, "data", "planted")).to_contain_text(f"version {before + 1}")
        expect(page.locator(".findings table tbody tr td").last).to_have_text("left out")
    found = workbench.registry.find(Dataset, "planted")
    assert (found.rows, found.excluded_rows, found.faulty_rows, found.version) == (30, 10, 0, 5)
    with page.expect_download() as download:
        page.get_by_role("link", name="Report as CSV").click()
    with download.value.path().open(encoding="utf-8", newline="") as file:
        said = list(csv.DictReader(file))
    assert {line["left out"] for line in said} == {"yes"}
    assert len({line["row"] for line in said}) == 10


def _toast(page: Page, sentence: str) -> None:
    expect(page.get_by_test_id("toast-body").filter(has_text=sentence).first).to_be_visible()


def _see_the_tokens(page: Page) -> None:
    open_tab(page, "Rows and tokens")
    _row_with(page, "question number 2 ").first.click()
    open_tab(page, "Tokens")
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
    open_tab(page, "Lengths and template")
    expect(page.get_by_text("Not checked with this base and length yet")).to_be_visible()
    press(page, "Check with this base")
    expect(page.get_by_text("Recommended max length")).to_be_visible(timeout=60_000)
    expect(page.get_by_text("Trained on what the playground sends")).to_be_visible()
    expect(page.locator(".js-plotly-plot:visible").first).to_be_visible()
    picture(page, "11-data-lengths")


def test_a_file_that_can_be_read_in_two_ways_is_asked_about(workbench, address, open_page, tmp_path):
    file = tmp_path / "e2e.txt"
    file.write_text("".join(f"name : N{i} | food : F{i}||N{i} serves F{i} .\n" for i in range(30)))
    page = open_page(address)
    adding = _upload(page, file)
    expect(adding.get_by_text("More than one reading is possible")).to_be_visible()
    adding.get_by_role("button", name="Import", exact=True).click()
    _toast(page, "choose what")
    adding.get_by_role("radio", name="separated lines").check()
    expect(adding.locator("#first-rows .turn.assistant").first).to_contain_text("N0 serves F0 .")
    adding.get_by_role("textbox", name=re.compile("^Name")).fill("restaurants")
    unfold(page, "Validation rows and checks")
    adding.get_by_role("radio", name="a number of rows").check()
    adding.get_by_label("Number of rows", exact=True).fill("4")
    adding.get_by_label("Look for near duplicates").uncheck()
    _import(page, "restaurants")
    found = workbench.registry.find(Dataset, "restaurants")
    assert (found.mapping["separator"], found.validation_rows) == ("||", 4)
    expect(open_sheet(page, "Add data").locator("#look")).to_be_hidden()  # ready for the next


def test_unknown_columns_are_mapped_by_hand_with_a_template(workbench, address, open_page, tmp_path):
    def words(name: str) -> Path:
        file = tmp_path / f"{name}.csv"
        file.write_text("words,kind,more\n" + "".join(f"word{i},k{i % 2},m{i}\n" for i in range(12)))
        return file

    page = open_page(address)
    adding = _upload(page, words("words"))
    expect(adding.get_by_text("say below which column is what")).to_be_visible()
    choose(page, "Format", "prompt and completion")
    choose(page, "Assistant (answer)", "kind")
    adding.get_by_label("Template: User's turn").fill("Which kind is {words}?")
    expect(adding.locator("#first-rows .turn.user").first).to_contain_text("Which kind is word0?")
    _import(page, "words")
    expect(page.get_by_text("Columns that are not used: 'more'.").first).to_be_visible()
    found = workbench.registry.find(Dataset, "words")
    assert workbench.datasets.row(found, 3).example.messages[0]["content"] == "Which kind is word3?"

    adding = _upload(page, words("again"))
    expect(adding.get_by_text("say below which column is what")).to_be_visible()
    choose(page, "Or as another data set was read", "words")
    expect(adding.locator("#first-rows .turn.user").first).to_contain_text("Which kind is word0?")
    _import(page, "again")
    assert workbench.registry.find(Dataset, "again").mapping == found.mapping


def test_a_row_is_edited_in_place_as_a_new_version(workbench, address, open_page, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(lines(*GOOD))
    workbench.datasets.add(file)
    page = open_page(address)
    go_to(page, "Data")
    choose_row(page, "data", "mine")
    open_tab(page, "Rows and tokens")
    _row_with(page, "question number 5").click()
    open_tab(page, "Edit")
    answer = page.get_by_label("Text of turn 2")
    expect(answer).to_have_value("a good answer, number 5 of them")
    answer.press_sequentially(" all", delay=1)  # typing keeps its place
    expect(answer).to_have_value("a good answer, number 5 of them all")
    press(page, "Add a turn")
    expect(page.get_by_label("Role of turn 3")).to_have_value("user")
    press(page, "Remove turn 3")
    press(page, "Undo the changes")
    expect(answer).to_have_value("a good answer, number 5 of them")
    answer.fill("a better answer")
    page.get_by_label("Role of turn 1").select_option("system")
    press(page, "Save as a new version")
    _toast(page, "a user's turn must come before it")
    page.get_by_label("Role of turn 1").select_option("user")
    page.reload()
    ready(page)
    open_tab(page, "Rows and tokens")
    open_tab(page, "Edit")
    expect(answer).to_have_value("a better answer")  # not saved yet, and not lost
    press(page, "Save as a new version")
    expect(row(page, "data", "mine")).to_contain_text("version 2")
    open_tab(page, "Split and versions")
    expect(page.get_by_text("row 6 changed")).to_be_visible()
    found = workbench.registry.find(Dataset, "mine")
    assert workbench.datasets.row(found, 5).example.messages[1]["content"] == "a better answer"
    press(page, "Go back to this version")
    expect(page.get_by_text("back to version 1")).to_be_visible()
    found = workbench.registry.find(Dataset, "mine")
    assert json.dumps(workbench.datasets.row(found, 5).example.messages).count("number 5") == 2
    unfold(page, "Conversations and chat template")
    page.get_by_label("Join neighbouring turns of one speaker").locator("visible=true").check()
    press(page, "Fit conversations so")
    expect(page.get_by_text("conversations: neighbouring turns of one speaker are joined")).to_be_visible()
    assert workbench.datasets.open(workbench.registry.find(Dataset, "mine")).version.chat.join_turns


def test_rows_are_searched_paged_and_walked_by_keys_and_all_of_it_outlives_a_reload(
    workbench, address, open_page, tmp_path
):
    file = tmp_path / "many.jsonl"
    one_turn = [_turns(("user", f"asks {i}"), ("assistant", f"says {i}")) for i in range(140)]
    two_turns = [_turns(*(("user", f"{i} again"), ("assistant", f"yes {i}")) * 2) for i in range(20)]
    file.write_text(lines(*one_turn, *two_turns))
    workbench.datasets.add(file, "many")
    workbench.jobs.wait(workbench.datasets.check("many", "llama", 32))
    page = open_page(address)
    go_to(page, "Data")
    choose_row(page, "data", "data")
    turns = "() => [...document.querySelectorAll('.js-plotly-plot')].find(workbench.seen)?.data?.[0].x"
    page.wait_for_function(f"() => String(({turns})()) === '2'")
    open_tab(page, "Rows and tokens")
    choose_row(page, "data", "many")
    expect(page.get_by_text("160 rows · page 1 of 4")).to_be_visible()
    press(page, "Next page")
    page.get_by_label("Page", exact=True).fill("4")
    page.get_by_label("Page", exact=True).press("Enter")
    expect(page.get_by_text("160 rows · page 4 of 4")).to_be_visible()
    press(page, "Page before")
    expect(_row_with(page, "asks 100")).to_be_visible()
    page.get_by_label("Search the rows").fill("says AGAIN")
    expect(page.get_by_text("No rows like that.")).to_be_visible()
    page.get_by_label("Search the rows").fill("YES again")
    expect(page.get_by_text("20 rows · page 1 of 1")).to_be_visible()
    page.get_by_label("Which rows").select_option("validation rows")
    expect(page.locator("#row-list .picker-row").filter(has_not_text="validation")).to_have_count(0)
    page.get_by_label("Which rows").select_option("all rows")
    expect(_row_with(page, "3 again")).not_to_have_count(0)
    _row_with(page, "0 again").first.click()
    page.keyboard.press("ArrowDown")
    expect(page.locator(".one-row .title-line")).to_have_text("Row 142")
    with slowly(page, 400):
        page.keyboard.press("ArrowDown")
        page.keyboard.press("End")  # before the one in between was shown
        expect(page.locator(".one-row .title-line")).to_have_text("Row 160")
    page.get_by_label("Max length (tokens)").fill("32")
    settled(page)
    page.reload()
    ready(page)
    expect(page.locator(".title-line h2:visible")).to_have_text("many")
    expect(page.get_by_label("Max length (tokens)")).to_have_value("32")
    page.wait_for_function(f"() => String(({turns})()) === '2,4'")  # the figure of this one by now
    open_tab(page, "Lengths and template")
    expect(page.get_by_text("Recommended max length")).to_be_visible()
    open_tab(page, "Rows and tokens")
    expect(page.get_by_label("Search the rows")).to_have_value("YES again")
    expect(page.locator(".one-row .title-line")).to_have_text("Row 160")
    open_tab(page, "Conversation")
    expect(page.locator(".one-row .turn.assistant").last).to_contain_text("yes 19")
    page.go_back()
    expect(page.locator(".title-line h2:visible")).to_have_text("data")
    page.go_forward()
    expect(page.locator(".title-line h2:visible")).to_have_text("many")
    open_tab(page, "Overview")
    choose_row(page, "data", "data")
    page.wait_for_function(f"() => String(({turns})()) === '2'")
    press(page, "Remove …")
    asked = sheet(page, "Remove")
    asked.get_by_role("button", name="Keep it").click()
    expect(asked).to_be_hidden()
    open_sheet(page, "Remove …").get_by_role("button", name="Remove it").click()
    expect(row(page, "data", "data")).to_have_count(0)
    expect(page.get_by_text("There is no data set called data any more")).to_be_visible()
    drawn(page)
    assert workbench.registry.names(Dataset) == {"many"}
