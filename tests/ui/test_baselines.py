"""Baselines and the checklist on the page: queries alone are refused and can be insisted on; a run is held
against full fine-tuning, the plain base and examples in its prompt; quality is drawn against cost.
"""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from core.train.training_options import TrainingOptions
from storage.tables import Run
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
    served,
    sheet,
)
from tests.workbenches import QUICK, wait_for

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]


@pytest.fixture
def address(workbench, zygote):
    with served(workbench.settings.home, zygote) as found:
        yield found


def test_the_checklist_refuses_queries_alone_until_somebody_insists(workbench, address, open_page):
    page = open_page(address)
    go_to(page, "Train")
    checks = page.get_by_role("region", name="Checklist").or_(page.locator(".checklist"))
    expect(checks.first).to_contain_text("points are as they should be", timeout=30_000)
    expect(checks.first).to_contain_text("Tested on the device when the run is prepared")
    insist = page.get_by_label("Train it anyway")
    expect(insist).to_have_count(0)
    page.locator("#option-target_modules").fill("q_proj")
    expect(page.locator(".checklist li.bad")).to_contain_text("Queries alone learn clearly less")
    expect(insist).to_be_visible()
    picture(page, "checklist")
    press(page, "Start training")
    expect(page.get_by_test_id("toast-body").filter(has_text="Queries alone").first).to_be_visible()
    assert workbench.registry.all(Run) == []
    insist.check()
    press(page, "Start training")
    wait_for(
        lambda: [run.config["lora"]["target_modules"] for run in workbench.registry.all(Run)] == ["q_proj"]
    )
    page.wait_for_url("**section=runs&name=1")
    go_to(page, "Train")
    page.locator("#option-target_modules").fill("q_proj,v_proj")
    expect(page.locator(".checklist li.bad")).to_have_count(0)
    expect(insist).to_have_count(0)


def test_a_run_is_held_against_its_baselines_and_quality_is_drawn_against_cost(workbench, address, open_page):
    options = TrainingOptions.parse({**QUICK, "eval_steps": 3})
    run = workbench.training.start("llama", "data", options, "mine")
    assert workbench.runs.wait(run.id).state == "finished"
    page = open_page(address)
    page.goto(f"{page.url.partition('?')[0]}?section=runs&name={run.id}")
    ready(page)
    open_sheet(page, "Compare with baselines …")
    table = page.locator("table.baselines")
    states = table.locator("tr", has_text="State").locator("td")
    expect(states).to_have_count(4)
    expect(states.nth(1)).to_have_text("not started")
    press(page, "Train and measure")
    expect(table.locator("thead")).to_contain_text("Full fine-tuning: mine full")
    expect(states.nth(1)).to_have_text("finished", timeout=90_000)
    expect(states.nth(3)).to_contain_text("tokens longer", timeout=90_000)
    expect(states.nth(2)).to_contain_text("measured")
    losses = table.locator("tr", has_text="Validation loss").locator("td")
    assert all(float(text) > 0 for text in losses.all_inner_texts())
    picture(page, "baselines")
    press(page, "Is LoRA enough here?")
    page.wait_for_url("**section=runs&name=*%2C*")
    started = [one for one in workbench.registry.all(Run) if "rank=" in one.name]
    assert len(started) == 4
    workbench.runs.wait_all([one.id for one in started], lambda runs: None)
    ready(page)
    drawn(page)
    open_tab(page, "Quality and cost")
    figure = page.locator(".chart:visible")
    expect(figure.locator(".scatterlayer .points path")).to_have_count(5, timeout=30_000)
    expect(figure.locator(".textpoint", has_text="full")).to_be_visible()
    picture(page, "quality-and-cost")

    go_to(page, "Home")
    open_sheet(page, "What LoRA costs …")
    costs = sheet(page, "What LoRA costs")
    claims = costs.locator("table.rows").first
    choose(page, "Run", f"{run.id}: mine")
    peak = claims.locator("tr", has_text="Peak memory").locator("td")
    expect(peak.nth(1)).to_contain_text(re.compile("[GM]B"))
    expect(costs).to_contain_text("Not measured yet")
    press(page, "Train and measure what is missing")
    times = costs.locator("table.rows").nth(1).locator("tbody tr")
    expect(times).to_have_count(4, timeout=120_000)
    expect(times.nth(1)).to_contain_text("each further token")
    picture(page, "lora-costs")
    page.keyboard.press("Escape")
    go_to(page, "Adapters")
    choose_row(page, "adapters", "mine")
    open_tab(page, "Speed")
    expect(page.locator(".tabitem:visible table.rows tbody tr, table.rows:visible tbody tr")).to_have_count(4)
    press(page, "Measure its speed")
    wait_for(lambda: len(workbench.registry.jobs.of("measure_latency", limit=5)) == 2)
