"""Forms: what is refused is refused where it was typed, and stays there; what is shown belongs to what is
entered.
"""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.ui.conftest import go_to, open_sheet, served

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
