"""Forms: what is refused is refused where it was typed, and stays there; what is shown belongs to what is
entered.
"""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from app.shared.references import refer
from core.combine.config import CombineConfig
from tests.ui.conftest import choose_row, go_to, open_sheet, picture, ready, served
from tests.workbenches import do_job

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]
JOB = 90_000  # a job starts a process that imports torch


@pytest.fixture
def address(workbench, zygote):
    with served(workbench.settings.home, zygote) as found:
        yield found


def _toast(page: Page, said: str) -> None:
    expect(page.get_by_test_id("toast-body").filter(has_text=said)).to_be_visible()


def test_a_base_that_cannot_be_one_is_refused_in_the_open_sheet(workbench, address, open_page, tmp_path):
    (tmp_path / "theirs.gguf").write_bytes(b"no such thing")
    page = open_page(address)
    go_to(page, "Models")
    form = open_sheet(page, "Add a base model")
    origin = form.get_by_label("Or a folder, a file or a hub id")
    name = form.get_by_role("textbox", name="Name Empty")
    name.fill("mine")
    for typed, said in (
        ("/no/such/folder", "There is no /no/such/folder here: neither a folder nor a file."),
        (str(tmp_path), "has no config.json"),
        (str(tmp_path / "theirs.gguf"), "theirs.gguf is not a GGUF file"),
        ("https://huggingface.co/someone", "is no page of a model"),
    ):
        origin.fill(typed)
        form.get_by_role("button", name="Add", exact=True).click()
        _toast(page, said)
        expect(form).to_be_visible()
        expect(origin).to_have_value(typed)
        expect(name).to_have_value("mine")
    assert workbench.registry.jobs.active() == []
    origin.fill("https://huggingface.co/someone/tiny/")
    form.get_by_role("button", name="Add", exact=True).click()
    expect(form).to_be_hidden()
    expect(page.locator(".activity", has_text="Add someone/tiny").first).to_be_visible()


def test_the_address_of_a_data_set_is_its_hub_id(workbench, address, open_page):
    page = open_page(address)
    go_to(page, "Data")
    form = open_sheet(page, "Add data")
    form.get_by_label("Or a path, or a data set of the hub").fill("https://hf.co/someone/rows")
    form.get_by_role("button", name="Import", exact=True).click()
    _toast(page, "is a model, not a data set")
    expect(form).to_be_visible()
    form.get_by_label("Or a path, or a data set of the hub").fill("https://hf.co/datasets/someone/rows")
    form.get_by_role("button", name="Import", exact=True).click()
    expect(form).to_be_hidden()
    assert workbench.registry.jobs.of_kind("import_data")[0].arguments["files"] == ["someone/rows"]


def test_an_export_that_cannot_be_written_is_refused_in_the_open_sheet(
    workbench, trained, address, open_page, tmp_path
):
    trained("here")
    (tmp_path / "notes.txt").write_text("mine")
    page = open_page(address)
    go_to(page, "Export")
    form = open_sheet(page, "Export an adapter")
    expect(form.get_by_role("combobox", name="Adapter")).to_have_value("here")
    folder = form.get_by_role("textbox", name="Folder")
    for typed, said in (
        (str(tmp_path), "is a folder that is not empty; choose a new folder."),
        (str(tmp_path / "notes.txt" / "out"), "notes.txt is a file. Choose another place."),
    ):
        folder.fill(typed)
        form.locator("#export-button").click()
        _toast(page, said)
        expect(form).to_be_visible()
        expect(folder).to_have_value(typed)
    assert workbench.registry.jobs.of_kind("export_adapter") == []
    folder.fill(str(tmp_path / "new"))
    form.locator("#export-button").click()
    expect(form).to_be_hidden()
    (job,) = workbench.registry.jobs.of_kind("export_adapter")
    assert job.arguments["folder"] == str(tmp_path / "new")


def test_a_combination_that_was_tried_is_shown_beside_its_own_choice_only(
    workbench, trained, address, open_page
):
    parts = [{**refer(trained(name)), "weight": 0.5} for name in ("here", "there")]
    tried = {"parts": parts, "config": CombineConfig().to_dict(), "name": "", "evaluate": False}
    assert do_job(workbench, "combine_adapters", tried).state == "finished"
    page = open_page(address)
    go_to(page, "Adapters")
    choose_row(page, "adapters", "here")
    form = open_sheet(page, "Combine", "Combine adapters")
    card, weight = (
        form.get_by_text("What would become of them"),
        form.get_by_label("Weight of here", exact=True),
    )
    expect(card).to_have_count(0)
    form.get_by_role("combobox", name="Adapters to combine").fill("there")
    form.locator(".choice-popup").get_by_role("option", name="there").first.click()
    expect(card).to_be_visible()
    weight.fill("0.7")
    weight.press("Tab")
    expect(card).to_have_count(0)
    weight.fill("0.5")
    weight.press("Tab")
    expect(card).to_be_visible()
    form.get_by_label("Method").click()
    page.get_by_role("option", name="Concatenation").click()
    expect(card).to_have_count(0)
    page.reload()
    ready(page)
    form = open_sheet(page, "Combine", "Combine adapters")
    expect(card).to_be_visible()  # the method is the first again, and the weights were kept
    picture(page, "combine-of-its-choice")
    weight.fill("0.7")
    weight.press("Tab")
    expect(card).to_have_count(0)
    page.reload()
    ready(page)
    form = open_sheet(page, "Combine", "Combine adapters")
    expect(weight).to_have_value("0.7")
    expect(card).to_have_count(0)


def test_what_resizing_loses_is_shown_beside_its_own_rank_only(workbench, trained, address, open_page):
    tried = {"adapter": refer(trained("here")), "rank": 1, "name": "", "evaluate": False}
    assert do_job(workbench, "resize_adapter", tried).state == "finished"
    page = open_page(address)
    go_to(page, "Adapters")
    choose_row(page, "adapters", "here")
    form = open_sheet(page, "Resize")
    expect(form.get_by_text("here at rank 1")).to_be_visible()
    form.get_by_label("New rank").fill("2")
    expect(form.get_by_text("here at rank 1")).to_have_count(0)
    form.get_by_label("New rank").fill("1")
    expect(form.get_by_text("here at rank 1")).to_be_visible()


def test_why_a_look_failed_is_said_where_it_was_asked_for_and_not_after_a_reload(
    workbench, address, open_page
):
    page = open_page(address)
    go_to(page, "Adapters")
    form = open_sheet(page, "Import", "Import an adapter")
    form.get_by_label("Or a folder or file on this machine").fill("/no/such/adapter")
    form.get_by_role("button", name="Look at it").click()
    expect(form.locator(".fault", has_text="/no/such/adapter")).to_be_visible(timeout=JOB)
    page.reload()
    ready(page)
    form = open_sheet(page, "Import", "Import an adapter")
    expect(form.get_by_text("What this is")).to_have_count(0)
    expect(form.locator(".fault")).to_have_count(0)


def test_a_setting_that_is_refused_says_so_beside_its_field_in_the_words_of_the_page(
    workbench, address, open_page
):
    page = open_page(address)
    go_to(page, "Settings")
    expect(page.get_by_text("The same stands in")).to_be_visible()  # and what counts, in the fields
    faults, quota = page.locator(".field-fault .fault"), page.get_by_label("Quota (GB)")
    quota.fill("-5")
    quota.press("Enter")
    expect(faults).to_have_text(["Not set: Quota must be at least 0, not -5.0. It stays at 0 GB."])
    page.get_by_label("Host").fill("bogus host")
    page.get_by_label("Host").press("Tab")
    expect(faults).to_have_count(2)
    expect(faults.last).to_contain_text("Not set: Host must be an address or a name alone")
    expect(faults.last).to_contain_text("It stays at 127.0.0.1.")
    page.get_by_label("API key").fill("short")
    page.get_by_label("API key").press("Enter")
    expect(faults.last).to_contain_text("API key must be 8 to 200 letters")
    expect(faults.last).to_contain_text("It stays empty.")
    expect(quota).to_have_value("-5")
    picture(page, "settings-refused")
    quota.fill("5")
    quota.press("Enter")
    _toast(page, "Quota is set")
    expect(faults).to_have_count(2)
    page.get_by_label("API key").fill("")
    page.get_by_label("API key").press("Enter")
    expect(faults).to_have_count(1)
    assert (workbench.preferences.values().quota, workbench.preferences.values().host) == (5, "127.0.0.1")
    page.reload()
    ready(page)
    expect(page.get_by_label("Host")).to_have_value("127.0.0.1")
    expect(faults).to_have_count(0)
