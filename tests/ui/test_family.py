"""The family on the page: kinds of adapters that train together are watched and asked together, and
classifiers tell of a text side by side.
"""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from core.train.training_options import TrainingOptions
from storage.tables import Adapter, Run
from tests.ui.conftest import (
    choose_row,
    drawn,
    go_to,
    open_tab,
    picture,
    press,
    ready,
    served,
    sheet,
)
from tests.workbenches import QUICK, finish, wait_for

BOTH_DRAWN = """() => {
    const lines = document.querySelector('.curve-plot')?.data ?? [];
    return lines.filter(line => line.y.filter(one => one > 0).length === 8).length === 2;
}"""
pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]


def test_dora_and_lora_train_together_show_both_curves_and_answer_side_by_side(workbench, zygote, open_page):
    with served(workbench.settings.home, zygote) as address:
        page = open_page(address)
        go_to(page, "Train")
        expect(page.locator("#plan .plan-facts")).to_be_visible()
        page.get_by_label("Rank (r)").fill("2")
        page.get_by_role("button", name="When it stops").click()
        page.get_by_label("Max steps").fill("8")
        page.get_by_label("Name of the adapter").fill("both")
        page.get_by_role("button", name=re.compile("^Sweep")).click()
        page.get_by_label("Add an option to sweep").select_option(label="Adapter kind")
        for kind in ("lora", "dora"):
            page.keyboard.type(kind)
            page.keyboard.press("Enter")
        expect(page.locator("#plan")).to_contain_text("2 adapters, trained at once")
        press(page, "Start training")
        page.wait_for_url("**section=runs&name=1*2")
        expect(page.locator(".title-line h2:visible")).to_have_text("2 runs side by side")
        runs = wait_for(lambda: _all_finished(workbench))
        assert {run.config["lora"]["kind"] for run in runs} == {"lora", "dora"}
        assert abs(runs[0].started - runs[1].started) < 0.5, "they train in one group"
        page.wait_for_function(BOTH_DRAWN)
        go_to(page, "Playground")
        names = sorted(row.name for row in workbench.registry.all(Adapter))
        field = page.get_by_label("Adapters, checkpoints, blends (up to seven)")
        expect(page.locator(".token")).to_have_count(1)  # the one that was trained last
        for name in names:
            if page.locator(".token", has_text=name).count() == 0:
                field.fill(name)
                page.get_by_role("option", name=name, exact=True).click()
        page.keyboard.press("Escape")
        prompt = page.get_by_role("textbox", name="Prompt", exact=True)
        prompt.fill("hello")
        prompt.press("Enter")
        expect(page.locator(".bot.message")).to_have_count(3)  # the plain base too
        for name in names:
            expect(page.locator(".chats").get_by_text(name, exact=True)).to_be_visible()
        go_to(page, "Adapters")
        choose_row(page, "adapters", names[0])
        press(page, "Train more like it")
        expect(page.locator(".options-total")).to_have_text(re.compile(r"As in run \d"))


def _all_finished(workbench) -> list[Run]:
    runs = workbench.registry.all(Run)
    return runs if [run.state for run in runs] == ["finished", "finished"] else []


def test_two_classifiers_tell_of_a_text_side_by_side(trained_on, workbench, zygote, open_page):
    trained_on("first")
    trained_on("second", seed=7)
    with served(workbench.settings.home, zygote) as address:
        page = open_page(address)
        page.goto(f"{page.url.partition('?')[0]}?section=adapters&name=second")
        ready(page)
        press(page, "Classify with it")
        telling = sheet(page, "Classify a text")
        expect(telling).to_be_visible()
        expect(telling.locator(".token")).to_have_text(re.compile("second"))
        telling.get_by_label("Adapters that classify").fill("first")
        page.get_by_role("option", name="first").click()
        telling.get_by_label("Text to classify").fill("how are you bad")
        telling.get_by_role("button", name="Classify", exact=True).click()
        table = telling.locator("table.told")
        expect(table.locator("thead th")).to_have_text(["Label", "second", "first"])
        drawn(page)
        told = workbench.classifiers.classify(["how are you bad"], ["second", "first"])[0]
        for at, one in enumerate(told):
            expect(table.locator("tbody tr").first.locator("td").nth(at)).to_have_text(one.answer)
            line = table.locator("tbody tr", has=page.locator("th", has_text=re.compile("^bad$")))
            expect(line.locator("td").nth(at)).to_contain_text(f"{100 * one.probabilities['bad']:.1f} %")
        # What else an encoder can learn is offered where the form asks for what it cannot.
        page.goto(f"{page.url.partition('?')[0]}?section=train&base=bert")
        ready(page)
        expect(page.locator("#plan .plan-bad")).to_contain_text("no head that writes text")
        press(page, "Objective: classification")
        expect(page.locator("#plan .plan-facts")).to_be_visible()


def test_the_ranks_that_adalora_spreads_are_drawn_layer_by_layer(workbench, session, zygote, open_page):
    values = {**QUICK, "kind": "adalora", "rank": 4, "max_steps": 4, "rank_hold": 0, "rank_settle": 0.25}
    run = workbench.training.start("llama", "data", TrainingOptions.parse(values), "spread")
    finish(session.next())
    workbench.training.start("llama", "data", TrainingOptions.parse(QUICK), "plain")
    finish(session.next())
    with served(workbench.settings.home, zygote) as address:
        page = open_page(address)
        page.goto(f"{page.url.partition('?')[0]}?section=runs&name={run.id}")
        ready(page)
        open_tab(page, "Ranks")
        page.wait_for_function("() => document.querySelector('.chart.tall:not([hidden]) .heatmaplayer')")
        cells = page.evaluate(
            "() => [...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => plot.data)"
            ".find(one => one.type === 'heatmap' && one.colorbar.title.text === 'Rank').z"
        )
        ranks = workbench.registry.measurements.ranks(run.id)
        assert [row[-1] for row in cells] == list(ranks[max(ranks)].values())
        picture(page, "ranks")
        choose_row(page, "runs", "plain")
        expect(page.get_by_role("tab", name="Checkpoints").last).to_be_visible()
        expect(page.get_by_role("tab", name="Ranks", exact=True)).to_have_count(0)
