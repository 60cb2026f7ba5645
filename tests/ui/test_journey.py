"""The whole journey on the real starter model, in a real browser, and what it leaves behind."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Page, expect
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.service.workbench import Workbench
from app.shared.settings import settings_for
from storage.tables import Adapter, Base, Export, Run
from tests.core.helpers import peft_from
from tests.ui.conftest import choose, choose_row, go_to, open_sheet, picture, ready, row, section_link, served
from tests.workbenches import copy_adapter

pytestmark = [pytest.mark.starter, pytest.mark.browser, pytest.mark.timeout(900)]
MINUTES = 60_000
PROMPT = "How do I cook pasta?"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for the whole file."""
    return tmp_path_factory.mktemp("journey") / "home"


def test_from_nothing_to_a_checked_export(home, open_page, tmp_path):
    rows = (
        (resources.files("assets") / "captain_conversations.jsonl").read_text(encoding="utf-8").splitlines()
    )
    upload = tmp_path / "captain.jsonl"
    upload.write_text("\n".join(rows[:40]), encoding="utf-8")
    with served(home) as address:
        page = open_page(address)
        get_the_starter(page)
        upload_data(page, upload)
        train_and_reload(page)
        chat_side_by_side(page)
        export_and_check(page)


def get_the_starter(page: Page) -> None:
    expect(page.get_by_text("Your first adapter")).to_be_visible()
    picture(page, "1-home-empty")
    page.get_by_role("button", name="Get the starter model").click()
    expect(page.get_by_role("button", name="Add the sample data")).to_be_visible(timeout=5 * MINUTES)
    go_to(page, "Models")
    expect(row(page, "models", "SmolLM2-135M-Instruct")).to_have_attribute("aria-selected", "true")
    picture(page, "2-models")


def upload_data(page: Page, file: Path) -> None:
    go_to(page, "Data")
    adding = open_sheet(page, "Add data")
    adding.locator("#data-upload input[type=file]").set_input_files(file)
    expect(adding.get_by_text("captain.jsonl").first).to_be_visible()
    expect(adding.get_by_text("Ahoy! Paris it be").first).to_be_visible()
    adding.get_by_role("button", name="Import", exact=True).click()
    expect(page.locator(".title-line h2:visible", has_text="captain")).to_be_visible(timeout=MINUTES)
    picture(page, "3-data")


def points_on(page: Page) -> int:
    """How many training steps the curve shows."""
    return int(page.locator(".curve-plot").get_attribute("data-points") or 0)


def train_and_reload(page: Page) -> None:
    go_to(page, "Train")
    expect(page.get_by_role("combobox", name="Data set", exact=True)).to_have_value("captain")
    choose(page, "Preset", "Quick try")
    page.get_by_role("button", name=re.compile("^When it stops")).click()
    page.get_by_label("Max steps").fill("30")
    expect(page.get_by_label("Rank (r)")).to_have_value("8")
    expect(page.get_by_text("2,442,240 in 210 layers")).to_be_visible()
    page.get_by_role("button", name="Start training").click()
    page.wait_for_function(
        "Number(document.querySelector('.curve-plot')?.dataset.points) >= 2", timeout=2 * MINUTES
    )
    node = page.locator(".curve-plot").element_handle()
    seen = points_on(page)
    page.wait_for_function(
        "before => Number(document.querySelector('.curve-plot').dataset.points) > before", arg=seen
    )
    assert node.evaluate("node => node === document.querySelector('.curve-plot')"), "the chart was rebuilt"
    picture(page, "4-train-running")
    seen = points_on(page)
    page.reload()
    ready(page)
    expect(section_link(page, "Runs")).to_have_attribute("aria-current", "page")
    page.wait_for_function(
        "before => Number(document.querySelector('.curve-plot')?.dataset.points) >= before", arg=seen
    )
    expect(page.locator(".curve-plot .scatterlayer .trace").nth(1)).to_be_attached()
    expect(page.locator(".curve-state", has_text="Running")).to_be_visible()
    expect(page.locator(".curve-state", has_text="Finished")).to_be_visible(timeout=5 * MINUTES)
    picture(page, "5-train-finished")


def chat_side_by_side(page: Page) -> None:
    go_to(page, "Playground")
    expect(
        page.locator(".chats").get_by_text("captain", exact=True)
    ).to_be_visible()  # the new adapter has its place
    sampling = open_sheet(page, "Sampling")
    sampling.get_by_label("Temperature", exact=False).fill("0")
    sampling.get_by_label("Max tokens").fill("40")
    page.keyboard.press("Escape")
    page.get_by_role("textbox", name="Prompt", exact=True).fill(PROMPT)
    page.get_by_role("button", name="Send").click()
    answers = page.locator(".bot.message")
    expect(answers).to_have_count(2, timeout=MINUTES)
    expect(answers.nth(1)).to_contain_text("Ahoy", timeout=MINUTES)
    expect(page.get_by_role("textbox", name="Prompt", exact=True)).to_have_value("")
    expect(answers.nth(0)).not_to_contain_text("Ahoy")
    expect(answers.nth(0)).to_contain_text(re.compile(r"[\s\S]{80}"), timeout=MINUTES)
    picture(page, "6-playground")


def export_and_check(page: Page) -> None:
    go_to(page, "Export")
    form = open_sheet(page, "Export an adapter")
    expect(form.get_by_role("combobox", name="Adapter")).to_have_value("captain", timeout=MINUTES)
    form.locator("#export-button").click()
    expect(page.get_by_text("Passed: logits differ by at most")).to_be_visible(timeout=3 * MINUTES)
    picture(page, "7-export")
    go_to(page, "Adapters")
    choose_row(page, "adapters", "captain")
    expect(page.get_by_text("Fingerprint of the base")).to_be_visible()
    picture(page, "8-adapters")


@pytest.fixture(scope="module")
def workbench(home: Path):
    """The home after the journey."""
    if not (home / "registry.db").exists():
        pytest.skip("the journey did not get that far")
    found = Workbench(settings_for(home))
    yield found
    found.close()


def _logits(model, tokenizer):
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )["input_ids"]
    with torch.no_grad():
        return model(input_ids=ids).logits.float()


def test_the_export_loads_with_plain_transformers_and_gives_base_plus_adapter(workbench, tmp_path):
    """bf16 tolerance: the root mean square of the differences is at most 5 % of the logits' spread."""
    (export,) = workbench.registry.all(Export)
    base = workbench.registry.find(Base, "SmolLM2-135M-Instruct")
    (adapter,) = workbench.registry.all(Adapter)
    copy_adapter(workbench, adapter.name, tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(export.folder)
    expected = _logits(peft_from(Path(base.folder), tmp_path / "adapter"), tokenizer)
    plain = _logits(AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32), tokenizer)
    found = _logits(AutoModelForCausalLM.from_pretrained(export.folder, dtype=torch.float32), tokenizer)
    spread = expected.std()
    assert (found - expected).square().mean().sqrt() < 0.05 * spread
    assert (plain - expected).square().mean().sqrt() > 0.2 * spread
    assert export.passed
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(base.folder).chat_template


def test_the_export_answers_in_the_trained_style(workbench):
    (export,) = workbench.registry.all(Export)
    tokenizer = AutoTokenizer.from_pretrained(export.folder)
    model = AutoModelForCausalLM.from_pretrained(export.folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    ids = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(ids).startswith("Ahoy!")
    base = workbench.registry.find(Base, "SmolLM2-135M-Instruct")
    assert (Path(export.folder) / "README.md").read_text().count(base.fingerprint) == 1


def test_the_run_is_in_the_registry_with_every_point(workbench):
    (run,) = workbench.registry.all(Run)
    points = workbench.registry.measurements.points(run.id)
    steps = [point.step for point in points if point.loss is not None]
    assert steps == list(range(1, run.details["total_steps"] + 1))
    assert run.state == "finished"
    assert json.dumps(run.config)
