"""Walks through what no journey needs: each control is pressed, and what it does is seen."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from app.service.datasets import SAMPLE_NAME
from core.seam import PLUGINS_VARIABLE
from storage.tables import Adapter, Base, Dataset, Job
from tests.core.helpers import new_peft
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
    unfold,
)
from tests.workbenches import wait_for, write_refusing_template

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]
JOB = 90_000


@pytest.fixture
def plugins(monkeypatch):
    """Another objective with metrics and another adapter kind, for the choices between them."""
    monkeypatch.setenv(PLUGINS_VARIABLE, "tests.test_toy_objective,tests.test_toy_adapter_kind")


@pytest.fixture
def address(plugins, workbench, zygote):
    with served(workbench.settings.home, zygote) as found:
        yield found


def _toast(page: Page, sentence: str) -> None:
    expect(page.get_by_test_id("toast-body").filter(has_text=sentence).first).to_be_visible()


def test_rows_left_out_brought_back_appended_and_split_anew(workbench, address, open_page):
    def now() -> Dataset:
        return workbench.registry.find(Dataset, "data")

    def version(number: int) -> None:
        wait_for(lambda: now().version == number)
        expect(row(page, "data", "data")).to_contain_text(f"version {number}")

    page = open_page(address)
    go_to(page, "Data")
    open_sheet(page, "Add data").get_by_role("button", name="Use the sample conversations").click()
    expect(page.locator(".title-line h2:visible", has_text=SAMPLE_NAME)).to_be_visible(timeout=JOB)
    choose_row(page, "data", "data")
    open_tab(page, "Rows and tokens")
    page.locator("#row-list").get_by_role("option").filter(has_text="hello 3").first.click()
    expect(page.locator(".one-row .title-line")).to_have_text("Row 4")
    open_tab(page, "Edit")
    press(page, "Leave this row out")
    version(2)
    assert now().excluded_rows == 1
    press(page, "Bring this row back")
    version(3)
    assert now().excluded_rows == 0
    press(page, "Add as a new row")
    version(4)
    assert (now().rows, workbench.datasets.row(now(), 24).example.messages[0]["content"]) == (25, "hello 3")
    press(page, "Leave this row out")
    version(5)
    open_tab(page, "Report")
    press(page, "Bring all back")
    version(6)
    assert now().excluded_rows == 0
    open_tab(page, "Split and versions")
    page.get_by_role("radio", name="number", exact=True).check()
    page.get_by_label("Share in %, or number of rows").fill("7")
    press(page, "Split anew")
    version(7)
    assert now().validation_rows == 7


def test_adapters_are_tried_before_they_are_kept(
    workbench, trained, address, open_page, tiny_llama, tmp_path
):
    for name in ("one", "two"):
        trained(name)
    new_peft(tiny_llama).save_pretrained(tmp_path / "theirs")
    page = open_page(address)
    go_to(page, "Adapters")
    choose_row(page, "adapters", "one")
    expect(page.get_by_text("Fingerprint of the base")).to_be_visible()
    form = open_sheet(page, "Resize")
    form.get_by_label("Measure the validation loss").uncheck()
    form.get_by_role("button", name="Try").click()
    expect(form.get_by_text("one at rank 1")).to_be_visible(timeout=JOB)
    page.keyboard.press("Escape")
    form = open_sheet(page, "Combine", "Combine adapters")
    form.get_by_role("combobox", name="Adapters to combine").press("ArrowDown")
    form.locator(".choice-popup").get_by_role("option", name="two").wait_for()
    form.get_by_role("combobox", name="Adapters to combine").press("ArrowDown")
    form.get_by_role("combobox", name="Adapters to combine").press("Enter")
    expect(form.get_by_label("Weight of two", exact=True)).to_have_value("0.5")
    form.get_by_role("button", name="Try").click()
    expect(form.get_by_text("not kept: this was a try")).to_be_visible(timeout=JOB)
    page.keyboard.press("Escape")
    form = open_sheet(page, "Import", "Import an adapter")
    form.get_by_label("Or a folder or file on this machine").fill(str(tmp_path / "theirs"))
    form.get_by_label("Or a folder or file on this machine").press("Enter")
    expect(form.get_by_text("PEFT layout, rank 4, alpha 8")).to_be_visible(timeout=JOB)
    assert workbench.registry.names(Adapter) == {"one", "two"}, "nothing of it is kept"

    page.reload()
    ready(page)
    form = open_sheet(page, "Combine", "Combine adapters")
    expect(form.get_by_label("Weight of two", exact=True)).to_have_value("0.5")
    expect(form.get_by_text("not kept: this was a try")).to_be_visible()
    form.get_by_role("button", name="Take two out").click()
    expect(form.get_by_label("Weight of two", exact=True)).to_have_count(0)
    page.keyboard.press("Escape")
    form = open_sheet(page, "Import", "Import an adapter")
    form.get_by_label("Or a folder or file on this machine").fill(str(tmp_path / "theirs"))
    form.get_by_role("button", name="Look at it").click()
    expect(form.get_by_text("Under way")).to_be_visible()  # what was found before the reload goes away
    expect(form.get_by_text("Under way")).to_have_count(0, timeout=JOB)
    expect(form.get_by_text("PEFT layout, rank 4, alpha 8")).to_be_visible(timeout=JOB)
    form.get_by_role("textbox", name="Name").fill("two")
    form.get_by_role("button", name="Keep it").click()
    _toast(page, "The name 'two' is taken by another adapter")
    form.get_by_role("textbox", name="Name").fill("theirs")
    form.get_by_role("button", name="Keep it").click()
    expect(form).to_be_hidden()
    expect(row(page, "adapters", "theirs")).to_be_visible(timeout=JOB)


def test_bases_are_verified_and_storage_is_cleaned(workbench, address, open_page, tiny_llama, tmp_path):
    bare = write_refusing_template(tiny_llama, tmp_path / "bare", "")
    workbench.jobs.wait(workbench.models.add(str(bare), "bare"))
    page = open_page(address)
    go_to(page, "Models")
    choose_row(page, "models", "llama")
    press(page, "Verify fingerprint")
    _toast(page, f"Unchanged: {workbench.registry.find(Base, 'llama').fingerprint[:16]}")
    open_sheet(page, "Add a base model").get_by_role("button", name="Add the starter model").click()
    cancel = page.get_by_role("button", name="Cancel: Add starter")
    expect(cancel).to_be_visible(timeout=JOB)
    cancel.click()
    expect(cancel).to_be_hidden(timeout=JOB)
    newest = workbench.registry.all(Job, limit=1)[0]
    assert (newest.kind, newest.arguments["origin"]) == ("add_model", "starter")
    go_to(page, "Data")
    choose(page, "Base model to check with", "bare")
    open_tab(page, "Rows and tokens")
    page.locator("#row-list").get_by_role("option").filter(has_text="hello 3").first.click()
    choose(page, "Chat template", "chatml")
    press(page, "Use this template for the base")
    _toast(page, "bare is trained and chatted with in the chatml template")
    assert workbench.registry.find(Base, "bare").template == "chatml"

    go_to(page, "Settings")
    unfold(page, "Storage")
    expect(page.get_by_text("in all").first).to_be_visible()
    page.get_by_label("Quota (GB)").fill("5")
    page.get_by_label("Quota (GB)").press("Enter")
    _toast(page, "Quota is set")
    press(page, "Measure again")
    expect(page.get_by_text("of 5 GB allowed")).to_be_visible()
    assert workbench.usage.quota() == 5
    press(page, "Clean up")
    _toast(page, "became free")
    (workbench.settings.logs / "written-meanwhile.log").write_bytes(bytes(3_000_000))
    press(page, "Measure again")
    expect(page.get_by_text("3.0 MB").first).to_be_visible()
    _others_may_join(workbench, page)


def _others_may_join(workbench, page):
    """The key is typed and never shown; the command for the other machine names the address."""
    secret, command = "not-for-any-eyes", page.locator(".command pre:visible")
    page.get_by_label("Key to join").fill("short")
    page.get_by_label("Key to join").press("Enter")
    expect(page.get_by_text("Not set: Key to join must be 8 to 200 letters")).to_be_visible()
    page.get_by_label("Key to join").fill(secret)
    page.get_by_label("Key to join").press("Enter")
    _toast(page, "Key to join is set")
    assert workbench.preferences.values().join_key == secret
    expect(page.get_by_label("Key to join")).to_have_value("")
    expect(page.get_by_text("127.0.0.1:29500 is reached from this machine alone")).to_be_visible()
    page.get_by_label("Other machines join at").fill("10.0.0.1:29501")
    page.get_by_label("Other machines join at").press("Enter")
    expect(command).to_contain_text("lora-workbench worker --join 10.0.0.1:29501")
    picture(page, "settings-machines")
    page.reload()
    ready(page)
    expect(command).to_be_visible()
    assert secret not in page.content()
    expect(page.get_by_label("Key to join")).to_have_attribute(
        "placeholder", "A key is set; type another one to change it"
    )
    press(page, "Forget the key")
    expect(page.get_by_text("once a key is set here")).to_be_visible()
    assert workbench.preferences.values().join_key == ""
