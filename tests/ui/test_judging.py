"""Judging on the page: answers without names until the vote, the leaderboard, votes taken along."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import Locator, Page, Response, expect

from storage.tables import Ballot, Dataset
from tests.ui.conftest import go_to, open_sheet, picture, ready, served, sheet, unfold
from tests.workbenches import wait_for

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]
NAMES = ("captain-of-the-seven-seas", "quiet-librarian")
DONE = "Which one is best?"


@pytest.fixture
def address(workbench, trained, zygote):
    for name in NAMES:
        trained(name)
    with served(workbench.settings.home, zygote) as found:
        yield found


def _listen(page: Page) -> list[Response]:
    """All that the server answers to what parts of the page ask it, from now on."""
    heard: list[Response] = []
    page.on("response", lambda one: heard.append(one) if "component_server" in one.url else None)
    return heard


def _nameless(blind: Locator, heard: list[Response]) -> None:
    """Nothing there tells who answers: not what is shown, nor what was sent before there was a vote."""
    texts = [one.text() for one in heard]
    ballots = [one for one in texts if '"letter"' in one and '"verdict":""' in one]
    assert ballots
    for name in (*NAMES, "Plain base"):
        assert name not in blind.evaluate("one => one.outerHTML")
        assert not [one[:300] for one in ballots if name in one]


def _ballots(workbench) -> list[Ballot]:
    return workbench.registry.all(Ballot)


def test_answers_are_judged_blind(workbench, address, open_page):
    page = open_page(address)
    go_to(page, "Playground")
    judge = open_sheet(page, "Judge", "Judge answers")
    expect(judge).to_contain_text("No votes on this base yet")
    expect(judge.locator(".token", has_text="Plain base")).to_be_visible()
    columns = judge.get_by_label("Who is judged")
    for name in NAMES:
        if not judge.locator(".token", has_text=name).count():
            columns.click()
            page.locator("ul").get_by_role("option", name=name).first.click()
    judge.get_by_label("First prompt").fill("hello 3")
    picture(page, "judge")
    heard = _listen(page)
    judge.get_by_role("button", name="Ask and judge").click()
    blind = sheet(page, "Which answer is best?")
    expect(blind.locator(".ballot-column")).to_have_count(3)
    page.reload()  # in the middle of the answers, which are still there then
    heard.clear()  # what was sent to the page before is gone with it
    ready(page)
    blind = sheet(page, "Which answer is best?")
    expect(blind.locator(".ballot-said")).to_contain_text(DONE, timeout=60_000)
    (ballot,) = _ballots(workbench)
    assert sorted(column["speaker"] for column in ballot.columns) == sorted(["", *NAMES])
    expect(blind.locator(".ballot-asked")).to_contain_text("hello 3")
    assert blind.locator("h3").all_inner_texts() == ["A", "B", "C"]
    _nameless(blind, heard)
    picture(page, "ballot")

    blind.get_by_role("button", name="Best: B (2)").click()
    expect(blind.locator(".ballot-said")).to_contain_text("Your vote is kept: B is best")
    expect(blind.locator("h3").nth(1)).to_have_text(f"B: {ballot.columns[1]['speaker'] or 'Plain base'}")
    expect(blind.locator(".won small").first).to_contain_text("±")
    picture(page, "ballot-voted")
    heard.clear()
    blind.get_by_label("Next prompt").fill("hello 4")
    blind.get_by_label("Next prompt").press("Enter")
    expect(blind.locator(".ballot-asked")).to_contain_text("hello 4")
    blind.get_by_role("button", name="Stop").click()
    expect(blind.locator(".ballot-said")).to_contain_text(DONE)
    _nameless(blind, heard)
    blind.locator("h2").click()
    page.keyboard.press("t")
    expect(blind.locator(".ballot-said")).to_contain_text("Your vote is kept: a tie")
    blind.get_by_label("Next prompt").fill("hello 5")
    blind.get_by_role("button", name="Ask", exact=True).click()
    expect(blind.locator(".ballot-asked")).to_contain_text("hello 5")
    expect(blind.locator(".ballot-said")).to_contain_text(DONE, timeout=60_000)
    blind.get_by_role("button", name="All bad (B)").click()
    expect(blind.locator(".ballot-said")).to_contain_text("all bad")
    assert [one.verdict for one in reversed(_ballots(workbench))] == ["best", "tie", "all bad"]

    page.keyboard.press("Escape")
    judge = open_sheet(page, "Judge", "Judge answers")
    expect(judge.locator(".token")).to_have_count(3)  # as it was chosen before the page was loaded anew
    board = judge.locator("table.leaderboard tbody tr")
    expect(board).to_have_count(3)
    expect(board.first).to_contain_text(ballot.columns[1]["speaker"] or "Plain base")
    expect(board.first.locator("td").nth(1)).to_have_text("3")
    picture(page, "leaderboard")
    judge.get_by_label("Name of a data set").fill("liked")
    judge.get_by_role("button", name="Make the data set").click()
    expect(page.get_by_test_id("toast-body").filter(has_text="2 without a best answer")).to_be_visible()
    assert workbench.registry.find(Dataset, "liked").rows == 1
    with page.expect_download() as download:
        judge.get_by_role("link", name="Chosen and rejected answers").click()
    rows = [json.loads(line) for line in download.value.path().read_text().splitlines()]
    assert {row["chosen_by"] for row in rows} == {ballot.columns[1]["speaker"]}
    judge.get_by_role("button", name="Back to the last answers").click()
    expect(sheet(page, "Which answer is best?").locator(".ballot-said")).to_contain_text("all bad")


def test_a_prompt_set_is_answered_by_a_job_judged_and_taken_along(workbench, address, open_page, tmp_path):
    page = open_page(address)
    go_to(page, "Playground")
    open_sheet(page, "Judge", "Judge answers")
    judge = sheet(page, "Judge answers")
    expect(judge.locator(".token", has_text="Plain base")).to_be_visible()
    sets = open_sheet(page, "Prompt sets …")
    expect(sets).to_contain_text("as chosen under Judge")
    prompts = sets.locator("#prompt-lines textarea")
    sets.get_by_label("Name of the set").fill("three")
    prompts.fill("hello 1")
    unfold(page, "Take prompts from a file or a data set")
    (tmp_path / "more.txt").write_text("hello 2\n")
    sets.locator("input[type=file]").set_input_files(tmp_path / "more.txt")
    expect(prompts).to_have_value("hello 1\nhello 2")
    sets.get_by_label("Rows", exact=True).fill("1")
    sets.get_by_role("button", name="Take its prompts").click()
    expect(prompts).to_have_value(re.compile("hello 2\nhello "))
    sets.get_by_role("button", name="Keep the set").click()
    expect(page.get_by_test_id("toast-body").filter(has_text="three is kept")).to_be_visible()
    assert len(workbench.prompts.find("three").prompts) == 3
    sets.get_by_role("button", name="Answer all of them").click()
    table = sets.locator("table.prompt-matrix")
    expect(sets).to_contain_text("6 of 6 answered", timeout=90_000)
    expect(table.locator("tbody tr")).to_have_count(3)
    table.locator("details").first.locator("summary").click()
    expect(table.locator("details[open] .said-whole").first).to_be_visible()
    picture(page, "prompt-set")
    with page.expect_download() as download:
        sets.get_by_role("link", name="Markdown").click()
    assert "# three on llama" in download.value.path().read_text()

    page.keyboard.press("Escape")  # what has ended offers the way back
    page.get_by_role("link", name="Read the answers").click()
    expect(sheet(page, "Prompt sets").locator("table.prompt-matrix")).to_be_visible()

    heard = _listen(page)
    sets.get_by_role("button", name="Judge them, blind").click()
    blind = sheet(page, "Which answer is best?")
    for left in (2, 1, 0):
        expect(blind.locator(".ballot-said")).to_contain_text(DONE)
        _nameless(blind, heard)
        blind.locator("h2").click()
        page.keyboard.press("1")
        said = f"{left} to judge" if left else "all of them are judged"
        expect(blind.locator(".ballot-said")).to_contain_text(said)
        heard.clear()
        if left:
            blind.get_by_role("button", name="Next one (N)").click()
    assert [one.prompt for one in reversed(_ballots(workbench))] == [0, 1, 2]
    page.keyboard.press("Escape")

    open_sheet(page, "Judge", "Judge answers")
    expect(judge.locator("table.leaderboard tbody tr")).to_have_count(2)
    judge.get_by_role("button", name="Prompt sets …").click()
    expect(sets.get_by_role("button", name="Judge them, blind")).to_be_disabled()
    expect(sets.get_by_role("button", name="Answer what is missing")).to_be_disabled()
    sets.get_by_role("button", name="Remove the answers …").click()
    sheet(page, "Remove").get_by_role("button", name="Remove it").click()
    expect(sheet(page, "Prompt sets")).to_contain_text("Nothing has been answered yet")
    sets.get_by_role("button", name="Remove the set …").click()
    sheet(page, "Remove").get_by_role("button", name="Remove it").click()
    wait_for(lambda: not workbench.prompts.all())
    expect(sheet(page, "Prompt sets").get_by_label("Name of the set")).to_have_value("")
    assert len(_ballots(workbench)) == 3
