"""Train as a cockpit: the options and their pickers, the plan and Start in view in every state, what a reload
and an address bring, measuring, and the way to the run.
"""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Locator, Page, expect

from core.seam import PLUGINS_VARIABLE
from core.train.training_options import TrainingOptions
from storage.tables import Base, Dataset, Run
from tests.conftest import _save
from tests.core.families import tiny_model
from tests.ui import held_measuring
from tests.ui.conftest import (
    choose,
    choose_row,
    drawn,
    go_to,
    open_tab,
    press,
    ready,
    served,
    settled,
    sheet,
)
from tests.workbenches import QUICK, do_job, wait_for

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]
SIZES = [(1280, 800), (1920, 1080)]
IN_VIEW = """ids => ids.every(id => {
    const {width, height, top, bottom, right} = document.getElementById(id).getBoundingClientRect();
    return width > 40 && height > 20 && top >= 0 && bottom <= innerHeight && right <= innerWidth;
}) && document.scrollingElement.scrollHeight <= innerHeight"""


@pytest.fixture
def held(tmp_path, monkeypatch):
    """While this file is there, measuring waits."""
    monkeypatch.setenv(held_measuring.HELD_VARIABLE, str(tmp_path / "held"))
    return tmp_path / "held"


@pytest.fixture
def address(workbench, zygote, held, monkeypatch):
    """With another objective and another adapter kind, for the choices between them."""
    plugins = "tests.test_toy_objective", "tests.test_toy_adapter_kind", held_measuring.__name__
    monkeypatch.setenv(PLUGINS_VARIABLE, ",".join(plugins))
    with served(workbench.settings.home, zygote) as found:
        yield found


def open_train(page: Page) -> None:
    go_to(page, "Train")
    expect(page.locator("#plan .plan-facts")).to_be_visible(timeout=30_000)


def option(page: Page, name: str) -> Locator:
    """What stands around an option's field."""
    return page.locator(f"[data-option={name}]")


def unfold(page: Page, subject: str) -> None:
    page.get_by_role("button", name=re.compile(f"^{subject}")).and_(page.locator(".option-fold")).click()


def planned(page: Page, text: str) -> None:
    expect(page.locator("#plan")).to_contain_text(text)


def start_and_plan_in_view(page: Page, state: str) -> None:
    for width, height in SIZES:
        page.set_viewport_size({"width": width, "height": height})
        drawn(page)
        assert page.evaluate(IN_VIEW, ["start-training", "plan"]), (state, width, height)


def test_start_and_the_plan_are_in_view_in_every_state_of_the_form(workbench, trained, address, open_page):
    trained("kept")
    page = open_page(address)
    open_train(page)
    start_and_plan_in_view(page, "folded")
    for subject in page.locator(".option-fold").all():
        subject.click()
    start_and_plan_in_view(page, "unfolded")
    page.get_by_label("Rank (r)").fill("0")
    planned(page, "rank must be between 1 and 1,024")
    expect(option(page, "rank").locator(".fault")).to_have_text("Rank (r) must be between 1 and 1,024.")
    expect(page.get_by_label("Rank (r)")).to_have_attribute("aria-invalid", "true")
    start_and_plan_in_view(page, "refused")
    press(page, "Start training")
    expect(page.get_by_test_id("toast-body").filter(has_text="rank must be")).to_be_visible()
    # Nor does Gradio write "Error" over a field.
    expect(page.locator("[data-testid=status-tracker] .error:visible")).to_have_count(0)
    assert workbench.registry.all(Run) == []
    page.get_by_label("Rank (r)").fill("4")
    page.get_by_label("Max steps").fill("8")
    planned(page, "Only 8 optimiser steps")
    page.get_by_label("Add an option to sweep").select_option(label="Seed")
    for seed in range(1, 5):
        page.keyboard.type(str(seed))
        page.keyboard.press("Enter")
    planned(page, "4 adapters, trained at once")
    start_and_plan_in_view(page, "warnings and a sweep")
    expect(page.locator("#plan .bar[role=meter]")).to_be_visible(timeout=60_000)
    page.set_viewport_size({"width": 390, "height": 844})
    drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    box = page.locator("#start-training").bounding_box()
    assert box["y"] + box["height"] <= page.locator("#rail").bounding_box()["y"]


def test_options_are_marked_reset_found_and_picked(workbench, address, open_page):
    page = open_page(address)
    open_train(page)
    rank = option(page, "rank")
    expect(rank).to_contain_text("default 16")
    page.get_by_label("Rank (r)").fill("8")
    expect(rank.locator(".dot")).to_be_visible()
    expect(page.locator(".options-total")).to_have_text("1 changed")
    rank.get_by_role("button", name="Reset to 16").click()
    expect(page.get_by_label("Rank (r)")).to_have_value("16")
    expect(page.locator(".options-total")).to_have_text("All defaults")

    choose(page, "Preset", "Small data")
    expect(page.get_by_label("Rank (r)")).to_have_value("8")
    expect(rank).to_contain_text("Small data 8")
    expect(page.locator(".preset-line")).to_contain_text("learnt by heart")
    unfold(page, "When it stops")
    alerts = page.get_by_role("group", name="Stop on")
    expect(alerts.get_by_role("checkbox", name="no-improvement")).to_be_checked()
    alerts.get_by_role("checkbox", name="overfitting").check()
    expect(page.locator(".option-group", has=alerts).locator(".option-count")).to_have_text("1 changed")

    kinds = page.get_by_role("group", name="Kinds of layers")
    shapes = workbench.registry.find(Base, "llama").layer_shapes
    layers = [shape for path, shape in shapes.items() if path.endswith("q_proj")]
    expect(kinds.locator("label", has_text="q_proj")).to_contain_text(f"{len(layers)} layer")
    targets = page.locator("#option-target_modules")
    press(page, "Query and value")
    expect(targets).to_have_value("q_proj,v_proj")
    kinds.get_by_role("checkbox", name="o_proj").check()
    expect(targets).to_have_value("q_proj,v_proj,o_proj")
    planned(page, f"in {3 * len(layers)} layers")
    targets.fill("self_attn.q_proj")
    expect(kinds.get_by_role("checkbox", name="v_proj")).not_to_be_checked()
    planned(page, f"in {len(layers)} layers")

    search = page.get_by_role("searchbox", name="Search options")
    search.fill("clipped norm")
    expect(page.get_by_label("Max gradient norm")).to_be_visible()
    expect(page.get_by_label("Rank (r)")).to_be_hidden()
    search.fill("")
    press(page, "Reset all")
    expect(page.locator(".options-total")).to_have_text("As in Small data")
    expect(targets).to_have_value("all-linear")


@pytest.fixture
def mixture(workbench, tokenizer, tmp_path):
    """A base with experts, there before the page is."""
    folder = _save(tiny_model("mixtral"), tokenizer, tmp_path / "mixture")
    assert do_job(workbench, "add_model", {"origin": str(folder), "name": "mixture"}).state == "finished"


def test_experts_are_chosen_beside_the_layers(mixture, address, open_page):
    page = open_page(address)
    open_train(page)
    choose(page, "Base model", "mixture")
    planned(page, "get no adapters, unless Experts (target_parameters) is chosen")
    unfold(page, "Adapter")
    page.get_by_role("group", name="Experts").get_by_role("checkbox", name="experts").check()
    expect(page.locator("#option-target_parameters")).to_have_value("experts")
    planned(page, "Each of the 4 experts of 2 layers gets factors of its own")
    choose(page, "Base model", "llama")
    planned(page, "No experts of this model have a parameter called 'experts'")


def test_the_form_survives_a_reload_and_follows_an_address(workbench, address, open_page, monkeypatch):
    monkeypatch.setattr(type(workbench.engine), "wake", lambda self: None)
    for table, like, name in ((Base, "llama", "twin"), (Dataset, "data", "more")):
        values = workbench.registry.find(table, like).model_dump(exclude={"id", "created"})
        workbench.registry.add(table(**values | {"name": name}))
    page = open_page(address)
    open_train(page)
    expect(page.get_by_role("combobox", name="Base model")).to_have_value("twin")
    choose(page, "Base model", "llama")
    choose(page, "Data set", "data")
    choose(page, "Preset", "Knowledge")
    expect(page.locator(".options-total")).to_have_text("As in Knowledge")
    page.get_by_label("Name of the adapter").fill("mine")
    page.get_by_label("May train at once").check()
    page.get_by_label("Alpha (α)").fill("20")
    unfold(page, "Sweep")
    page.get_by_label("Add an option to sweep").select_option(label="Rank (r)")
    for value in ("4", "8", "8"):
        page.keyboard.type(value)
        page.keyboard.press("Enter")
    expect(page.locator(".option-group", has=page.locator(".sweep")).locator(".option-count")).to_have_text(
        "2 combinations"
    )
    planned(page, "2 adapters")
    settled(page)
    page.reload()
    ready(page)
    expect(page.get_by_label("Alpha (α)")).to_have_value("20")
    for label, value in (("Base model", "llama"), ("Data set", "data"), ("Preset", "Knowledge")):
        expect(page.get_by_role("combobox", name=label)).to_have_value(value)
    expect(page.get_by_label("Name of the adapter")).to_have_value("mine")
    expect(page.get_by_label("May train at once")).to_be_checked()
    expect(page.locator(".value-chip")).to_have_count(2)
    planned(page, "2 adapters")
    page.get_by_role("button", name="Remove 4").click()
    expect(page.locator(".value-chip")).to_have_count(1)
    page.get_by_role("button", name="Remove from the sweep").click()
    expect(page.locator(".value-chip")).to_have_count(0)

    run = workbench.training.start("twin", "more", TrainingOptions.parse(QUICK | {"seed": 7}), "early")
    page.evaluate("query => window.workbench.go(query)", f"?section=train&from={run.id}")
    expect(page.get_by_role("combobox", name="Base model")).to_have_value("twin")
    expect(page.get_by_role("combobox", name="Data set")).to_have_value("more")
    expect(page.locator(".options-total")).to_have_text(f"As in run {run.id}")
    unfold(page, "Others")
    expect(page.get_by_label("Seed")).to_have_value("7")
    expect(page).to_have_url(re.compile(r"\?section=train$"))
    page.evaluate("window.workbench.go('?section=train&data=data')")
    expect(page.get_by_role("combobox", name="Data set")).to_have_value("data")
    expect(page.get_by_label("Seed")).to_have_value("7")
    page.goto(f"{address.partition('?')[0]}?section=train&base=llama")
    ready(page)
    expect(page.get_by_role("combobox", name="Base model")).to_have_value("llama")
    expect(page.get_by_label("Seed")).to_have_value("7")


def test_presets_are_saved_chosen_and_deleted(workbench, address, open_page):
    page = open_page(address)
    open_train(page)
    page.get_by_label("Rank (r)").fill("12")
    press(page, "Save as a preset …")
    saving = sheet(page, "Save as a preset")
    saving.get_by_label("Name of the preset").fill("twelve")
    press(page, "Save preset")
    expect(page.get_by_role("combobox", name="Preset")).to_have_value("twelve")
    expect(saving).to_be_hidden()
    expect(page.locator(".options-total")).to_have_text("As in twelve")
    assert workbench.presets.find("twelve").options["rank"] == 12
    press(page, "Delete preset …")
    press(page, "Delete preset it")
    wait_for(lambda: "twelve" not in [one.name for one in workbench.presets.usable()])
    expect(page.get_by_role("combobox", name="Preset")).to_have_value("No preset")


def test_measuring_tells_how_far_it_is_can_be_cancelled_and_offers_what_fits(address, held, open_page):
    page = open_page(address)
    open_train(page)
    page.get_by_label("Max length").fill("64")
    unfold(page, "Sweep")
    page.get_by_label("Add an option to sweep").select_option(label="Rank (r)")
    for rank in range(1, 25):
        page.keyboard.type(str(rank))
        page.keyboard.press("Enter")
    planned(page, "24 adapters")  # what is measured goes away when the form changes
    settled(page)
    held.touch()
    press(page, "Measure first")
    press(page, "Cancel measuring")
    expect(page.get_by_text("The measuring was ended.")).to_be_visible(timeout=60_000)
    held.unlink()
    press(page, "Measure first")
    expect(page.locator("#measured .bar").first).to_be_visible(timeout=60_000)
    expect(page.get_by_text("Measured: fits")).to_be_visible(timeout=90_000)
    expect(page.get_by_role("button", name="Cancel measuring")).to_be_hidden()
    start_and_plan_in_view(page, "measured")
    page.get_by_label("Max length").fill("128")
    expect(page.get_by_text("Measured: fits")).to_be_hidden()


def test_start_leads_to_the_run_once_and_live_runs_stand_beside_the_form(workbench, address, open_page):
    page = open_page(address, 1920)
    open_train(page)
    expect(page.get_by_text("No run is active.")).to_be_visible()
    unfold(page, "Adapter")
    unfold(page, "Objective")
    choose_kind(page, "Adapter kind", "Rescaling")
    choose_kind(page, "Objective", "Near the base")
    page.get_by_label("Penalty").fill("0.25")
    page.get_by_label("Learning rate").first.fill("0.01")
    page.get_by_label("Micro-batch size").fill("2")
    unfold(page, "When it stops")
    page.get_by_label("Max steps").fill("5000")
    page.get_by_label("Name of the adapter").fill("mine")
    planned(page, "5,000, about")
    page.get_by_role("button", name="Start training").dblclick()
    (run,) = wait_for(lambda: workbench.registry.all(Run))
    expect(page).to_have_url(re.compile(rf"section=runs&name={run.id}$"))
    assert len(workbench.registry.all(Run)) == 1
    options = TrainingOptions.from_dict(run.config)
    assert (options.lora.kind, options.train.objective, options.objective.penalty) == (
        "rescale",
        "near-base",
        0.25,
    )
    go_to(page, "Train")
    live = page.locator(".live-run", has_text="mine")
    expect(live).to_contain_text(re.compile(r"step [\d,]+ of 5,000 · loss"), timeout=60_000)
    workbench.runs.stop(run.id)
    expect(live.get_by_role("link", name="Chat with it")).to_be_visible(timeout=60_000)
    expect(page.get_by_text("No run is active.")).to_be_visible()
    live.get_by_role("link", name="mine").click()
    expect(page).to_have_url(re.compile(rf"section=runs&name={run.id}$"))


def choose_kind(page: Page, label: str, kind: str) -> None:
    page.get_by_label(label, exact=True).and_(page.locator("select")).select_option(label=kind)


def test_a_sweep_is_picked_and_leads_to_its_runs(workbench, address, open_page):
    page = open_page(address)
    open_train(page)
    page.get_by_label("Micro-batch size").fill("2")
    unfold(page, "When it stops")
    page.get_by_label("Max steps").fill("400")
    unfold(page, "Sweep")
    for name, values in (("Rank (r)", "24"), ("Learning rate", ("0.01",))):
        page.get_by_label("Add an option to sweep").select_option(label=name)
        for value in values:
            page.keyboard.type(value)
            page.keyboard.press("Enter")
    page.keyboard.type("none")
    page.keyboard.press("Enter")
    expect(page.locator(".sweep")).to_contain_text("Learning rate must be a number.")
    expect(option(page, "rank")).to_contain_text("sweep: 2, 4")
    planned(page, "2 adapters")
    press(page, "Start training")
    runs = wait_for(lambda: len(found := workbench.registry.all(Run)) == 2 and found)
    assert {run.name for run in runs} == {f"data rank={rank} learning_rate=0.01" for rank in (2, 4)}
    expect(page).to_have_url(re.compile(r"section=runs&name=\d+(,|%2C)\d+$"))
    expect(page.locator("#masthead", has_text="2 adapters at once")).to_be_visible(timeout=60_000)
    for run in runs:
        workbench.runs.stop(run.id)
    workbench.runs.wait_all([run.id for run in runs])


def test_an_empty_home_says_the_next_step(settings, zygote, open_page):
    with served(settings.home, zygote) as found:
        page = open_page(found)
        go_to(page, "Train")
        page.locator("#plan").get_by_role("link", name="Add one under Models").click()
        expect(page).to_have_url(re.compile("section=models"))
        page.get_by_role("button", name="Add a base model …").click()
        expect(sheet(page, "Add a base model")).to_be_visible()
        page.keyboard.press("Escape")
        go_to(page, "Playground")
        expect(page.get_by_text("There is no base model that writes text yet.")).to_be_visible()
        go_to(page, "Runs")
        press(page, "New run")
        expect(page).to_have_url(re.compile("section=train"))


def test_an_adapter_is_chosen_to_learn_on_top_of(trained, address, open_page):
    trained("style")
    page = open_page(address)
    go_to(page, "Adapters")
    choose_row(page, "adapters", "style")
    open_tab(page, "Lineage")
    press(page, "Train on top of it")
    expect(page).to_have_url(re.compile("section=train"))
    unfold(page, "Adapter")
    expect(page.locator("[data-option=on_top_of] input")).to_have_value("style")
    expect(page.locator("#plan")).to_contain_text("Trainable")
