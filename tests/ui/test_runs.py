"""Runs on the page: a queue, pausing, stopping, a sweep compared and talked to; reloads, two tabs and a
killed engine.
"""

from __future__ import annotations

import os
import re

import psutil
import pytest
from playwright.sync_api import expect

from core.train.training_options import TrainingOptions
from storage.tables import Run
from tests.ui.conftest import choose, go_to, picture, ready, served, settled, unfold
from tests.workbenches import QUICK, wait_for

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]
RELOADS = int(os.environ.get("RELOADS", "10"))
PLOTTED = "() => document.querySelector('.curve-plot').data[0].x"


@pytest.fixture
def address(workbench, zygote):
    with served(workbench.settings.home, zygote) as found:
        yield found


def _fill(page, **options):
    for label, value in options.items():
        page.get_by_label(label.replace("_", " "), exact=False).first.fill(value)


def _state(page, word):
    expect(page.locator(".curve-state", has_text=word)).to_be_visible(timeout=90_000)


def test_three_queued_one_paused_one_stopped_a_sweep_compared_and_the_best_talked_to(
    workbench, address, open_page
):
    page = open_page(address)
    go_to(page, "Train")
    unfold(page, "More options")
    _fill(
        page,
        **{
            "Learning rate": "0.01",
            "Max steps": "1500",
            "Micro-batch size": "2",
            "Gradient accumulation": "1",
            "Rank (r)": "2",
        },
    )
    for name in ("one", "two", "three"):
        page.get_by_label("Name of the adapter").fill(name)
        page.get_by_role("button", name="Start training").click()
        expect(page.get_by_label("Run", exact=True)).to_have_value(re.compile(f"· {name} ·"), timeout=30_000)
        settled(page)  # until then a click on Start counts as the second half of a double click
    go_to(page, "Runs")
    page.get_by_role("gridcell", name="three").first.click()
    page.get_by_role("button", name="Earlier").click()
    wait_for(lambda: [run.name for run in workbench.registry.queue.waiting()] == ["three", "two"])
    page.get_by_role("gridcell", name="one", exact=True).first.click()
    page.get_by_role("button", name="Show", exact=True).click()
    expect(page.get_by_label("Run", exact=True)).to_have_value(re.compile("· one ·"))
    _state(page, "Running")
    page.get_by_role("button", name="Pause").first.dblclick()
    _state(page, "Paused")
    page.get_by_role("button", name="Resume").first.click()
    wait_for(lambda: workbench.registry.get(Run, 3).state == "running")
    choose(page, "Run", "3 · three")
    _state(page, "Running")
    page.get_by_role("button", name="Stop and keep").first.click()
    _state(page, "Stopped")
    workbench.runs.stop(2)
    choose(page, "Run", "1 · one")
    _state(page, "Finished")
    page.wait_for_function(
        "() => document.querySelector('.curve-plot').dataset.points === '1500'", timeout=30_000
    )
    assert page.evaluate(PLOTTED) == list(range(1, 1501))
    assert {run.name: run.state for run in workbench.registry.all(Run)} == {
        "one": "finished",
        "two": "stopped",
        "three": "stopped",
    }

    _fill(page, **{"Max steps": "30", "Sweep": "rank=2,4\nlearning_rate=0.01,0.0001"})
    expect(page.get_by_text("4 adapters, trained at once")).to_be_visible()
    page.get_by_label("Name of the adapter").fill("swept")
    page.get_by_role("button", name="Start training").click()
    wait_for(lambda: [run.state for run in workbench.registry.all(Run)].count("finished") == 5)
    go_to(page, "Runs")
    page.get_by_role("gridcell", name="swept rank=4 learning_rate=0.0001").first.click()
    page.get_by_role("button", name="The whole sweep").click()
    compared = page.locator("table.compared tbody tr")
    expect(compared).to_have_count(4)
    expect(compared.first).to_contain_text("learning_rate=0.01")
    expect(page.locator("table.compared th.differs")).to_have_text(["rank", "learning_rate"])
    expect(page.locator(".js-plotly-plot .heatmaplayer").first).to_be_attached(timeout=30_000)
    picture(page, "runs-compared")
    best = compared.first.locator("td").first.inner_text().partition("· ")[2].removesuffix("best").strip()
    page.get_by_role("button", name="Chat with the best").click()
    expect(page.locator(".chats").get_by_text(best, exact=True)).to_be_visible(timeout=30_000)
    page.get_by_role("textbox", name="Prompt", exact=True).fill("hello")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".bot.message")).to_have_count(2, timeout=60_000)


def test_reloads_two_tabs_and_a_killed_engine_lose_and_double_no_point(workbench, address, open_page):
    page, second = open_page(address), open_page(address)
    for one in (page, second):
        go_to(one, "Train")
    wait_for(workbench.engine.status)
    run = workbench.training.start(
        "llama", "data", TrainingOptions.parse({**QUICK, "max_steps": 1200, "save_steps": 100}), "mine"
    )
    _state(page, "Running")
    for reload in range(RELOADS):
        page.reload(wait_until="domcontentloaded")
        if reload == RELOADS // 2:
            psutil.Process(workbench.engine.status()["pid"]).kill()
            expect(second.locator(".curve-state", has_text="Interrupted")).to_be_visible(timeout=10_000)
            second.get_by_role("button", name="Resume").first.click()
    ready(page)
    done = workbench.runs.wait(run.id)
    assert done.state == "finished", done.reason
    for one in (page, second):
        expect(one.locator(".curve-state", has_text="Finished")).to_be_visible(timeout=20_000)
        one.wait_for_function("() => document.querySelector('.curve-plot').dataset.points === '1200'")
        assert one.evaluate(PLOTTED) == list(range(1, 1201))
    steps = [point.step for point in workbench.registry.measurements.points(run.id) if point.loss is not None]
    assert steps == list(range(1, 1201))


def test_samples_log_table_and_overlay_are_shown(workbench, address, open_page):
    options = {
        **QUICK,
        "max_steps": 20,
        "eval_steps": 5,
        "save_steps": 5,
        "sample_prompts": "hello",
        "sample_tokens": 6,
    }
    for name in ("first", "second"):
        assert (
            workbench.runs.wait(
                workbench.training.start("llama", "data", TrainingOptions.parse(options), name).id
            ).state
            == "finished"
        )
    page = open_page(address)
    go_to(page, "Train")
    _state(page, "Finished")
    expect(page.locator(".sample-cards .card")).to_contain_text("at step 20")
    page.get_by_label("Step of the samples").fill("1")
    expect(page.locator(".sample-cards .card")).to_contain_text("at step 5")
    expect(page.locator("ul.log")).to_contain_text("Adapter second stored")
    page.get_by_label("Search the log").fill("trainable")
    expect(page.locator("ul.log li")).to_have_count(1)
    page.locator("summary", has_text="Table").click()
    expect(page.locator(".curve-table tbody tr")).to_have_count(20)
    choose(page, "Laid over it", "1 · first")
    page.wait_for_function("() => document.querySelector('.curve-plot').data.length === 4")
    page.get_by_label("Chart", exact=True).select_option("rate")
    page.get_by_label("Horizontal axis").select_option("tokens")
    page.wait_for_function("() => document.querySelector('.curve-plot').layout.xaxis.title.text === 'Tokens'")
    assert page.evaluate("() => document.querySelector('.curve-plot').data.length") == 2
    with page.expect_download() as saved:
        page.locator(".curve-save").get_by_text("CSV").click()
    lines = saved.value.path().read_text().splitlines()
    assert lines[0].startswith("run,step,loss,validation_loss")
    assert len(lines) == 1 + 2 * (20 + 5)
    picture(page, "runs-overlay")
    choose(page, "Checkpoint", "step 15")
    page.get_by_role("button", name="Keep as adapter and chat").click()
    expect(page.locator(".chats").get_by_text("second step 15", exact=True)).to_be_visible(timeout=30_000)


def test_measuring_and_presets_fill_the_form(workbench, address, open_page):
    page = open_page(address)
    go_to(page, "Train")
    choose(page, "Preset", "Small data")
    expect(page.get_by_text("A few hundred rows are learnt by heart quickly")).to_be_visible()
    expect(page.get_by_label("Dropout")).to_have_value("0.1")
    expect(page.get_by_label("Epochs").first).to_have_value("10")
    page.get_by_role("button", name="Measure first").click()
    expect(page.get_by_text("Measured: fits")).to_be_visible(timeout=60_000)
    unfold(page, "Save these options as a preset")
    page.get_by_label("Name of the preset").fill("mine")
    page.get_by_role("button", name="Save preset").click()
    wait_for(lambda: (workbench.settings.presets / "mine.toml").exists())
    choose(page, "Preset", "Quick try")
    expect(page.get_by_label("Dropout")).to_have_value("0")
    choose(page, "Preset", "mine")
    expect(page.get_by_label("Dropout")).to_have_value("0.1")
