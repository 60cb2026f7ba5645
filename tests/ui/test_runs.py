"""Runs on the page: found in a list, watched, asked, changed, compared and talked to; reloads, two tabs, a
killed engine, a phone.
"""

from __future__ import annotations

import os
import re

import psutil
import pytest
from playwright.sync_api import Page, expect

from app.shared.run_rows import run_row
from core.seam import PLUGINS_VARIABLE
from core.train.training_options import TrainingOptions
from storage.tables import Adapter, Base, Checkpoint, Dataset, Point, Run
from tests.ui.conftest import (
    choose,
    choose_row,
    go_to,
    open_sheet,
    open_tab,
    picture,
    press,
    ready,
    row,
    served,
)
from tests.workbenches import QUICK, wait_for

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]
RELOADS = int(os.environ.get("RELOADS", "10"))
PLOTTED = "() => document.querySelector('.curve-plot').data[0].x"
LINES = "count => document.querySelector('.curve-plot')?.data?.length === count"


@pytest.fixture
def address(workbench, zygote):
    with served(workbench.settings.home, zygote) as found:
        yield found


@pytest.fixture
def measured(workbench):
    """A function that puts a run with a curve into the registry which has ended."""
    base, data = workbench.registry.find(Base, "llama"), workbench.registry.find(Dataset, "data")

    def make(name: str, options: dict[str, object] | None = None, *, steps: int = 20, **about: object) -> Run:
        given = TrainingOptions.parse({**QUICK, "max_steps": steps, **(options or {})}).to_dict()
        run = run_row(base, data, given, name)
        run.state, run.details, run.started = "finished", {"total_steps": steps}, run.created
        for key, value in about.items():
            setattr(run, key, value)
        made = workbench.registry.save(run)
        start = 3.0 - made.id / 10
        points = [
            Point(run_id=made.id, step=at, loss=start - at / 100, learning_rate=0.01, tokens_per_second=9.0,
                  memory_bytes=1 << 30, tokens=64 * at, seconds=0.5 * at)
            for at in range(1, steps + 1)
        ]  # fmt: skip
        judged = [Point(run_id=made.id, step=steps, validation_loss=start)]
        workbench.registry.measurements.add_points([*points, *judged])
        return made

    return make


def _start(workbench, name: str, **options: object) -> Run:
    return workbench.training.start("llama", "data", TrainingOptions.parse({**QUICK, **options}), name)


def _state(page: Page, word: str) -> None:
    expect(page.locator(".curve-state:visible", has_text=word)).to_be_visible(timeout=90_000)


def _titles(page: Page) -> list[str]:
    return page.locator("#list-runs .picker-title").all_inner_texts()


def _showing(page: Page, run: Run) -> Page:
    """The page at the address of a run."""
    page.goto(f"{page.url.partition('?')[0]}?section=runs&name={run.id}")
    ready(page)
    return page


def _toast(page: Page, sentence: str) -> None:
    expect(page.get_by_test_id("toast-body").filter(has_text=sentence).first).to_be_visible()


def _chats_with(page: Page, name: str) -> None:
    """The address names it only until the playground has taken it."""
    expect(page.locator("#rail [aria-current]")).to_have_text("Playground")
    expect(page.locator(".chats").get_by_text(name, exact=True)).to_be_visible()


def _steps(workbench, run: int) -> list[int]:
    """The steps of whose loss the registry knows."""
    return [point.step for point in workbench.registry.measurements.points(run) if point.loss is not None]


def _is_drawn(page: Page, steps: list[int]) -> None:
    """Wait until the curve has a point for each of these steps."""
    count = len(steps)
    page.wait_for_function(
        "all => document.querySelector('.curve-plot').dataset.points === `${all}`", arg=count
    )
    page.wait_for_function(
        "all => document.querySelector('.curve-plot').data?.[0].x.length === all", arg=count
    )
    assert page.evaluate(PLOTTED) == steps


def test_runs_wait_move_pause_go_on_and_stop_with_only_what_is_possible_offered(
    workbench, address, open_page
):
    page = open_page(address)
    for name in ("one", "two", "three"):
        _start(workbench, name, max_steps=90_000)
    go_to(page, "Runs")
    choose_row(page, "runs", "three")
    _state(page, "Waiting")
    for absent in ("Resume", "Save now", "Sample now", "Chat with it", "Later"):
        expect(page.get_by_role("button", name=absent, exact=True)).to_have_count(0)
    press(page, "Earlier")
    wait_for(lambda: [run.name for run in workbench.registry.queue.waiting()] == ["three", "two"])
    expect(page.get_by_role("button", name="Later", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Earlier", exact=True)).to_have_count(0)
    wait_for(lambda: _titles(page) == ["one", "three", "two"])
    choose_row(page, "runs", "one")
    _state(page, "Running")
    expect(page.locator(".run-step:visible")).to_contain_text("of 90,000")
    page.get_by_role("button", name="Pause", exact=True).dblclick()
    _state(page, "Paused")
    paused = len(_steps(workbench, 1))
    press(page, "Resume")
    wait_for(lambda: workbench.registry.get(Run, 3).state == "running")
    choose_row(page, "runs", "three")
    _state(page, "Running")
    press(page, "Stop and keep")
    _state(page, "Stopped")
    expect(page.get_by_role("button", name="Chat with it", exact=True)).to_be_visible()
    workbench.runs.stop(2)
    choose_row(page, "runs", "one")
    _state(page, "Running")
    wait_for(lambda: len(_steps(workbench, 1)) > paused + 5)
    press(page, "Stop and keep")
    _state(page, "Stopped")
    steps = _steps(workbench, 1)
    assert steps == list(range(1, len(steps) + 1)), "none is lost or doubled by the pause"
    _is_drawn(page, steps)
    states = {run.name: run.state for run in workbench.registry.all(Run)}
    assert states == dict.fromkeys(("one", "two", "three"), "stopped")
    press(page, "Chat with it")
    _chats_with(page, "one")


def test_reloads_two_tabs_and_a_killed_engine_lose_and_double_no_point(workbench, address, open_page):
    page, second = open_page(address), open_page(address)
    wait_for(workbench.engine.status)
    run = _start(workbench, "mine", max_steps=100_000, save_steps=100)
    for one in (page, second):
        go_to(one, "Runs")
    _state(page, "Running")
    for reload in range(RELOADS):
        page.reload(wait_until="domcontentloaded")
        if reload == RELOADS // 2:
            psutil.Process(workbench.engine.status()["pid"]).kill()
            expect(second.locator(".curve-state", has_text="Interrupted")).to_be_visible(timeout=10_000)
            press(second, "Resume")
    ready(page)
    assert f"section=runs&name={run.id}" in page.url
    workbench.runs.stop(run.id)
    done = workbench.runs.wait(run.id)
    assert done.state == "stopped", done.reason
    steps = _steps(workbench, run.id)
    assert len(steps) > 100, "it went on behind a checkpoint"
    assert steps == list(range(1, len(steps) + 1))
    for one in (page, second):
        expect(one.locator(".curve-state", has_text="Stopped")).to_be_visible(timeout=20_000)
        _is_drawn(one, steps)


def test_samples_log_table_and_checkpoints_are_shown_kept_and_resumed_from(workbench, address, open_page):
    options = {
        "eval_steps": 5,
        "save_steps": 5,
        "sample_prompts": "hello",
        "sample_tokens": 6,
    }
    run = _start(workbench, "first", max_steps=20, **options)
    assert workbench.runs.wait(run.id).state == "finished"
    page = _showing(open_page(address), run)
    _state(page, "Finished")
    page.locator("summary", has_text="Table").click()
    expect(page.locator(".curve-table tbody tr")).to_have_count(20)
    page.get_by_label("Chart", exact=True).select_option("rate")
    page.get_by_label("Horizontal axis").select_option("tokens")
    page.wait_for_function(
        "() => document.querySelector('.curve-plot').layout?.xaxis.title.text === 'Tokens'"
    )
    with page.expect_download() as saved:
        page.locator(".curve-save").get_by_text("CSV").click()
    lines = saved.value.path().read_text().splitlines()
    assert lines[0].startswith("run,step,loss,validation_loss")
    assert len(lines) == 1 + 20 + 5
    open_tab(page, "Samples")
    expect(page.locator(".sample-cards .card")).to_contain_text("at step 20")
    page.get_by_label("Step of the samples").fill("1")
    expect(page.locator(".sample-cards .card")).to_contain_text("at step 5")
    open_tab(page, "Log")
    expect(page.locator("ul.log")).to_contain_text("Adapter first stored")
    page.get_by_label("Search the log").fill("trainable")
    expect(page.locator("ul.log li")).to_have_count(1)
    page.get_by_label("Kind of line").select_option("alert")
    expect(page.locator("ul.log li")).to_have_text("Nothing in the log is like this.")
    open_tab(page, "Options and changes")
    expect(page.locator(".run-options dd.differs", has_text="default 16")).to_contain_text("2")
    open_tab(page, "Checkpoints")
    choose(page, "Checkpoint", "step 15")
    press(page, "Keep as an adapter")
    wait_for(lambda: "first step 15" in workbench.registry.names(Adapter))
    choose(page, "Checkpoint", "step 20")
    press(page, "Keep and chat")
    _chats_with(page, "first step 20")
    go_to(page, "Runs")
    _set_state(workbench, run.id, "interrupted")
    page.reload()
    ready(page)
    open_tab(page, "Checkpoints")
    choose(page, "Checkpoint", "step 15")
    open_sheet(page, "Rewind and resume …")
    press(page, "Rewind and resume it")
    wait_for(lambda: workbench.runs.wait(run.id).state == "finished")
    assert max(one.step for one in workbench.registry.all(Checkpoint)) == 20
    page.reload()
    ready(page)
    assert page.get_by_label("Chart", exact=True).input_value() == "rate"
    assert page.get_by_label("Horizontal axis").input_value() == "tokens"


def test_several_runs_are_compared_the_best_is_talked_to_and_its_options_become_a_preset(
    workbench, measured, trained, address, open_page
):
    best = trained("swept rank=4 learning_rate=0.0003")
    sweep = [
        measured(
            f"swept rank={rank} learning_rate={rate}",
            {"rank": rank, "learning_rate": rate},
            sweep="s",
            adapter_id=best.id if (rank, rate) == (4, 0.0003) else None,
        )
        for rank in (2, 4)
        for rate in (0.0001, 0.0003)
    ]
    measured("another")
    page = open_page(address)
    go_to(page, "Runs")
    group = page.locator("#list-runs .picker-group")
    expect(group).to_have_text(re.compile(r"swept · sweep of 4"))
    group.click()
    expect(page.locator("#list-runs .picker-row:visible")).to_have_count(1)
    group.click()
    choose_row(page, "runs", sweep[0].name)
    row(page, "runs", "another").locator(".picker-check").click()
    expect(page.locator(".title-line h2:visible")).to_have_text("2 runs side by side")
    page.wait_for_function(LINES, arg=4)
    page.get_by_label("Chart", exact=True).select_option("validation")
    page.wait_for_function(LINES, arg=2)
    dashes = page.evaluate("() => document.querySelector('.curve-plot').data.map(one => one.line.dash)")
    assert len(set(dashes)) == 2, "runs differ without colour"
    page.get_by_label("Lines of the chart").get_by_role("button", name="another").click()
    page.wait_for_function(LINES, arg=1)
    press(page, "Take the whole sweep")
    ids = ",".join(str(one.id) for one in sweep)
    page.wait_for_url(re.compile(rf"section=runs&name={ids.replace(',', '(,|%2C)')}"))
    open_tab(page, "Results")
    table = page.locator("table.compared:visible tbody tr")
    expect(table).to_have_count(4)
    expect(table.first).to_contain_text("swept rank=4 learning_rate=0.0003")
    expect(table.first.locator(".best")).to_be_visible()
    expect(page.locator("table.compared:visible th.differs")).to_have_text(["Rank (r)", "Learning rate"])
    open_tab(page, "Differences")
    lines = page.locator("table.compared:visible tbody tr")
    expect(lines).to_have_count(2)
    page.get_by_label("Options that are the same in all as well").check()
    expect(lines.filter(has_text="Micro-batch size")).to_be_visible()
    open_tab(page, "What matters")
    expect(page.locator(".js-plotly-plot .heatmaplayer").first).to_be_attached(timeout=30_000)
    expect(page.locator(".js-plotly-plot .parcoords").first).to_be_attached(timeout=30_000)
    picture(page, "runs-compared")
    page.reload()
    ready(page)
    expect(page.locator(".title-line h2:visible")).to_have_text("4 runs side by side")
    press(page, "Make its options a preset")
    _toast(page, "Saved as the preset swept rank=4")
    assert workbench.presets.find("swept rank=4 learning_rate=0.0003").options["rank"] == 4
    press(page, "Chat with the best")
    _chats_with(page, best.name)
    page.go_back()
    expect(page.locator(".title-line h2:visible")).to_have_text("4 runs side by side")


def test_a_run_is_found_changed_extended_duplicated_and_removed(workbench, measured, address, open_page):
    for name, state in (("poems", "finished"), ("chat", "stopped"), ("more poems", "failed")):
        measured(name, state=state, reason="out of memory" if state == "failed" else "")
    page = open_page(address)
    go_to(page, "Runs")
    page.locator("#list-runs").get_by_label("Search").fill("poems")
    wait_for(lambda: _titles(page) == ["more poems", "poems"])
    page.get_by_label("State", exact=True).select_option("broken")
    wait_for(lambda: _titles(page) == ["more poems"])
    page.get_by_label("State", exact=True).select_option("")
    page.locator("#list-runs").get_by_label("Search").fill("")
    choose_row(page, "runs", "chat")
    open_sheet(page, "Change …", "Change this run")
    rate = page.get_by_label("New learning rate")
    expect(rate).to_have_attribute("placeholder", "now 0.01")
    press(page, "Apply")
    _toast(page, "Give at least one new value first")
    rate.fill("0.001")
    press(page, "Apply")
    expect(page.get_by_role("dialog", name="Change this run")).to_be_hidden()
    wait_for(lambda: workbench.registry.get(Run, 2).changes[0]["values"] == {"learning_rate": 0.001})
    open_tab(page, "Options and changes")
    expect(page.get_by_text("Learning rate: 0.01 → 0.001")).to_be_visible()
    choose_row(page, "runs", "poems")
    open_sheet(page, "Extend …", "Change this run")
    page.get_by_label("New max steps").fill("5")
    press(page, "Apply")
    _toast(page, "lies behind it")
    page.keyboard.press("Escape")
    open_sheet(page, "Remove …", "Remove")
    press(page, "Keep it")
    open_sheet(page, "Remove …", "Remove")
    press(page, "Remove it")
    expect(row(page, "runs", "poems")).to_have_count(0)
    assert {run.name for run in workbench.registry.all(Run)} == {"chat", "more poems"}
    choose_row(page, "runs", "more poems")
    expect(page.locator(".run-reason:visible")).to_contain_text("out of memory")
    workbench.runs.remove(3)
    expect(page.locator(".title-line h2:visible")).to_have_text("Run 3 is not here any more")
    expect(page.get_by_role("button", name="Remove …", exact=True)).to_have_count(0)
    choose_row(page, "runs", "chat")
    press(page, "Duplicate with changes")
    expect(page.locator(".options-total")).to_have_text("As in run 2")


def test_a_run_is_watched_on_a_phone(workbench, measured, address, open_page):
    measured("older")
    measured("poems")
    page = open_page(address, width=390)
    go_to(page, "Runs")
    expect(row(page, "runs", "poems")).to_be_visible()
    expect(page.locator(".run-head:visible")).to_have_count(0)
    row(page, "runs", "poems").click()  # the list makes room for what is chosen in it
    page.wait_for_function(LINES, arg=2)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    picture(page, "runs-phone")
    page.get_by_role("link", name="All runs").click()
    expect(row(page, "runs", "older")).to_be_visible()


def test_metrics_of_an_objective_are_charted(workbench, monkeypatch, zygote, open_page):
    monkeypatch.setenv(PLUGINS_VARIABLE, "tests.test_toy_objective,tests.test_toy_adapter_kind")
    with served(workbench.settings.home, zygote) as address:
        run = _start(workbench, "mine", max_steps=8, kind="rescale", objective="near-base", penalty=0.25)
        page = _showing(open_page(address), run)
        _state(page, "Finished")
        page.get_by_label("Chart", exact=True).select_option(label="Cross-entropy")
        page.wait_for_function(
            "() => document.querySelector('.curve-plot').data?.[0].y.filter(one => one > 0).length === 8"
        )
        said = workbench.registry.measurements.points(run.id)
        shown = page.evaluate("() => document.querySelector('.curve-plot').data[0].y")
        assert shown == pytest.approx([one.metrics["cross_entropy"] for one in said if one.loss is not None])
        open_sheet(page, "Extend …", "Change this run")
        page.get_by_label("New epochs").fill("5")
        press(page, "Apply")
        _toast(page, "goes on from its last checkpoint")
        steps = {one.name: one.steps for one in wait_for(lambda: _two(workbench))}
        assert steps["mine-2"] > steps["mine"] == 8
        _state(page, "Finished")


def _two(workbench) -> list[Adapter]:
    found = workbench.registry.all(Adapter)
    return found if len(found) == 2 else []


def _set_state(workbench, run_id: int, state: str) -> None:
    run = workbench.registry.get(Run, run_id)
    run.state = state
    workbench.registry.save(run)
