"""Two tabs that contradict each other, one of which has not heard what the other did; and an engine that is
killed while it answers.
"""

from __future__ import annotations

import re

import psutil
import pytest
from playwright.sync_api import Page, expect

from core.train.training_options import TrainingOptions
from storage.tables import Adapter, Base, Dataset, Run
from tests.conftest import make_llama
from tests.ui.conftest import choose, choose_row, go_to, open_sheet, press, served
from tests.workbenches import QUICK, wait_for, write_rows

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]


@pytest.fixture
def address(workbench, zygote):
    with served(workbench.settings.home, zygote) as found:
        yield found


def _deafen(page: Page) -> None:
    """From now on the page hears nothing of what others do; what is pressed on it works."""
    page.route("**/component_server**", lambda route: route.abort())


def _refused(page: Page, sentence: str) -> None:
    said = page.get_by_test_id("toast-body").filter(has_text=sentence)
    expect(said.first).to_be_visible()
    page.locator(".toast-close").first.click()
    expect(said).to_have_count(0)


def test_what_one_tab_took_away_the_other_refuses_in_a_sentence(
    workbench, trained, address, open_page, tmp_path
):
    for name in ("renamed", "deleted", "swapped"):
        trained(name)
    workbench.datasets.add(write_rows(tmp_path / "other.jsonl"), "other")
    page, registry = open_page(address), workbench.registry

    go_to(page, "Playground")
    choose(page, "Adapters, checkpoints, blends (up to seven)", "deleted")
    page.keyboard.press("Escape")
    go_to(page, "Adapters")
    choose_row(page, "adapters", "renamed")
    go_to(page, "Train")
    choose(page, "Data set", "other")
    expect(page.locator("#plan .plan-facts")).to_be_visible()
    _deafen(page)

    # Removed elsewhere, while this section is open.
    workbench.datasets.remove("other")
    registry.adapters.change(registry.find(Adapter, "renamed").id, starred=True)
    page.locator("#start-training").click()
    _refused(page, "There is no data set called 'other'")
    assert registry.all(Run) == []
    go_to(page, "Adapters")
    expect(page.get_by_role("button", name="★ Starred")).to_be_visible()  # up to date as it was opened

    # Renamed elsewhere, and used here by its old name.
    registry.adapters.change(registry.find(Adapter, "renamed").id, name="new name")
    press(page, "Chat with it")
    _refused(page, "There is no adapter called 'renamed'")

    # The question is about one adapter, and another has its name when it is answered.
    choose_row(page, "adapters", "swapped")
    press(page, "Delete …")
    expect(page.get_by_role("button", name="Delete it")).to_be_visible()
    registry.adapters.change(registry.find(Adapter, "swapped").id, name="was swapped")
    trained("swapped")
    press(page, "Delete it")
    _refused(page, "swapped is another one by now")
    assert {"swapped", "was swapped"} <= registry.names(Adapter)
    page.keyboard.press("Escape")

    # Deleted elsewhere, and used here.
    registry.adapters.delete(registry.find(Adapter, "deleted").id)
    go_to(page, "Playground")
    page.get_by_role("textbox", name="Prompt", exact=True).fill("are you there?")
    press(page, "Send")
    _refused(page, "There is no adapter called 'deleted'")
    expect(page.get_by_role("textbox", name="Prompt", exact=True)).to_have_value("are you there?")


def test_two_tabs_stop_pause_resume_and_remove_the_same_run(workbench, address, open_page):
    page, second = open_page(address), open_page(address)
    wait_for(workbench.engine.status)
    run = workbench.training.start(
        "llama", "data", TrainingOptions.parse({**QUICK, "max_steps": 100_000}), "mine"
    )
    state = ".curve-state:visible"
    for one in (page, second):
        go_to(one, "Runs")
        choose_row(one, "runs", "mine")
        expect(one.locator(state, has_text="Running")).to_be_visible(timeout=60_000)
    expect(second.get_by_role("button", name="Pause", exact=True)).to_be_visible()
    _deafen(second)

    press(page, "Pause")
    expect(page.locator(state, has_text="Paused")).to_be_visible(timeout=60_000)
    press(second, "Pause")  # which does it once
    resume = second.get_by_role("button", name="Resume", exact=True)
    resume.click()
    expect(page.locator(state, has_text="Running")).to_be_visible(timeout=60_000)
    press(page, "Pause")
    expect(page.locator(state, has_text="Paused")).to_be_visible(timeout=60_000)

    # Paused, it can be stopped and kept; who takes it for running stops it once more, to no effect.
    expect(second.get_by_role("button", name="Stop and keep", exact=True)).to_be_visible()
    press(page, "Stop and keep")
    expect(page.locator(state, has_text="Stopped")).to_be_visible(timeout=60_000)
    press(second, "Stop and keep")
    _refused(second, f"Run {run.id} (mine) is stopped, so there is nothing to stop")
    (kept,) = workbench.registry.all(Adapter)
    assert (kept.name, kept.steps) == ("mine", workbench.registry.checkpoints.of(run.id)[0].step)

    second.unroute("**/component_server**")  # it hears again
    expect(resume).to_be_visible(timeout=30_000)
    _deafen(second)
    workbench.runs.remove(run.id)
    resume.click()
    _refused(second, f"There is no run {run.id}")
    second.unroute("**/component_server**")
    expect(second.get_by_role("button", name="Resume", exact=True)).to_have_count(0)
    assert workbench.registry.find(Adapter, "mine").run_id is None


def test_an_engine_killed_in_mid_answer_is_told_and_the_next_message_is_answered(
    workbench, address, open_page, tokenizer, tmp_path
):
    deep = make_llama(tmp_path / "deep", tokenizer, layers=24)  # slow enough to be seen answering
    workbench.jobs.wait(workbench.models.add(str(deep), "deep"))
    page = open_page(address)
    go_to(page, "Playground")
    choose(page, "Base model", "deep")
    sampling = open_sheet(page, "Sampling")
    sampling.get_by_label("Temperature", exact=False).fill("0")
    sampling.get_by_label("Max tokens").fill("200")
    page.keyboard.press("Escape")
    prompt = page.get_by_role("textbox", name="Prompt", exact=True)
    prompt.fill("hello there")
    press(page, "Send")
    answer = page.locator(".bot.message")
    expect(answer).to_have_count(1)
    expect(answer).not_to_have_text(re.compile(r"^\s*…?\s*$"), timeout=60_000)
    psutil.Process(workbench.engine.status()["pid"]).kill()
    fault = page.locator(".bot.message .fault")
    expect(fault).to_contain_text("The engine", timeout=60_000)
    expect(answer).not_to_have_text(re.compile(r"^\s*…?\s*$"))  # what was said before is kept
    open_sheet(page, "Sampling").get_by_label("Max tokens").fill("5")
    page.keyboard.press("Escape")
    press(page, "Again")
    expect(fault).to_be_hidden(timeout=60_000)
    expect(page.locator(".talk-figures")).to_contain_text("5 tokens", timeout=60_000)
    prompt.fill("and now?")
    press(page, "Send")
    expect(prompt).to_have_value("", timeout=60_000)
    expect(page.locator(".bot.message").last).not_to_have_text(re.compile(r"^\s*…?\s*$"), timeout=60_000)
    wait_for(lambda: workbench.registry.chats.messages(1)[-1].finish in ("length", "stop", "end"))
    assert workbench.registry.names(Base) == {"llama", "deep"}
    assert workbench.registry.names(Dataset) == {"data"}
