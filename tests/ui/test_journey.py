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

from app.service.datasets import SAMPLE_NAME
from app.service.workbench import Workbench
from app.shared.settings import settings_for
from storage.tables import Base, Export, Run
from tests.core.helpers import peft_from
from tests.ui.conftest import choose_row, go_to, open_sheet, picture, press, ready, section_link, served
from tests.workbenches import copy_adapter

pytestmark = [
    pytest.mark.starter,
    pytest.mark.browser,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("journey"),  # one journey
]
MINUTES = 60_000
PROMPT = "How do I cook pasta?"
ADAPTER = SAMPLE_NAME.removesuffix(" (sample)")
COUNT_CLICKS = """addEventListener('click', event => {
    if (event.isTrusted && event.detail) sessionStorage.clicks = 1 + Number(sessionStorage.clicks ?? 0);
}, {capture: true})"""


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
        page.add_init_script(COUNT_CLICKS)
        page.reload()
        ready(page)
        begin_all_of_it(page)
        watch_and_reload(page)
        chat_side_by_side(page)
        train_on_own_data(page, upload)
        export_and_check(page)


def clicks(page: Page) -> int:
    return int(page.evaluate("Number(sessionStorage.clicks ?? 0)"))


def begin_all_of_it(page: Page) -> None:
    expect(page.get_by_text("Your first adapter")).to_be_visible()
    picture(page, "1-home-empty")
    press(page, "Do all of it")
    page.locator("#masthead").get_by_role("link", name=ADAPTER).click(timeout=5 * MINUTES)


def points_on(page: Page) -> int:
    """How many training steps the curve shows."""
    return int(page.locator(".curve-plot").get_attribute("data-points") or 0)


def watch_and_reload(page: Page) -> None:
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
    # The base that was added says the same.
    done = page.locator(".notice").filter(has=page.locator("b", has_text=ADAPTER))
    done.get_by_role("link", name="Chat with it").click()
    expect(page.locator(".chats").get_by_text(ADAPTER, exact=True)).to_be_visible()  # it has its place
    page.get_by_role("textbox", name="Prompt", exact=True).fill(PROMPT)
    page.get_by_role("textbox", name="Prompt", exact=True).press("Enter")
    assert clicks(page) <= 5, "from an empty home to a chat beside the base"
    answers = page.locator(".bot.message")
    expect(answers).to_have_count(2, timeout=MINUTES)
    expect(answers.nth(1)).to_contain_text("Ahoy", timeout=MINUTES)
    expect(page.get_by_role("textbox", name="Prompt", exact=True)).to_have_value("")
    expect(answers.nth(0)).not_to_contain_text("Ahoy")
    expect(answers.nth(0)).to_contain_text(re.compile(r"[\s\S]{80}"), timeout=MINUTES)
    picture(page, "6-playground")


def train_on_own_data(page: Page, file: Path) -> None:
    """From the file to a running training, which then is stopped."""
    before = clicks(page)
    go_to(page, "Data")
    adding = open_sheet(page, "Add data")
    adding.locator("#data-upload input[type=file]").set_input_files(file)  # a click for a person
    expect(adding.get_by_text("captain.jsonl").first).to_be_visible()
    expect(adding.get_by_text("Ahoy! Paris it be").first).to_be_visible()
    press(page, "Import")
    imported = page.locator(".title-line h2:visible", has_text=re.compile("^captain$"))  # not the sample
    expect(imported).to_be_visible(timeout=MINUTES)
    picture(page, "3-data")
    press(page, "Train on it")
    expect(page.get_by_role("combobox", name="Data set", exact=True)).to_have_value("captain")
    expect(page.get_by_text("4,884,480 in 210 layers")).to_be_visible()
    press(page, "Start training")
    assert clicks(page) - before + 1 <= 7
    expect(page.locator(".curve-state", has_text="Running")).to_be_visible(timeout=2 * MINUTES)
    press(page, "Stop and keep")
    expect(page.locator(".curve-state", has_text="Stopped")).to_be_visible(timeout=2 * MINUTES)


def export_and_check(page: Page) -> None:
    go_to(page, "Export")
    form = open_sheet(page, "Export an adapter")
    field = form.get_by_role("combobox", name="Adapter")
    field.fill(ADAPTER)
    form.locator(".choice-popup").get_by_role("option", name=ADAPTER).click()
    form.locator("#export-button").click()
    expect(page.get_by_text("Passed: logits differ by at most")).to_be_visible(timeout=3 * MINUTES)
    picture(page, "7-export")
    go_to(page, "Adapters")
    choose_row(page, "adapters", ADAPTER)
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
    copy_adapter(workbench, ADAPTER, tmp_path / "adapter")
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
    run = workbench.registry.all(Run)[-1]  # the first one
    points = workbench.registry.measurements.points(run.id)
    steps = [point.step for point in points if point.loss is not None]
    assert steps == list(range(1, run.details["total_steps"] + 1))
    assert run.state == "finished"
    assert json.dumps(run.config)
