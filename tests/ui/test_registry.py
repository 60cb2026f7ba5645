"""Adapters on the page: imported, combined, resized, merged, taken away for Ollama, with their lineage."""

from __future__ import annotations

import re
import zipfile

import pytest
from playwright.sync_api import expect

from storage.tables import Adapter, Base, Export
from tests.core.helpers import new_peft
from tests.ui.conftest import choose, go_to, picture, served, unfold
from tests.workbenches import wait_for

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]
JOB = 90_000  # a job starts a process that imports torch


@pytest.fixture
def address(workbench, zygote):
    with served(workbench.settings.home, zygote) as found:
        yield found


def test_import_combine_resize_merge_and_a_bundle_for_ollama(
    workbench, trained, address, open_page, tiny_llama, tmp_path
):
    trained("here")
    new_peft(tiny_llama).save_pretrained(tmp_path / "theirs")
    page = open_page(address)
    go_to(page, "Adapters")
    unfold(page, "Import an adapter")
    page.get_by_label("Or a folder or file on this machine").fill(str(tmp_path / "theirs"))
    page.get_by_role("button", name="Import", exact=True).click()
    expect(page.get_by_text("Imported as theirs for llama")).to_be_visible(timeout=JOB)
    expect(page.get_by_text("PEFT layout, rank 4, alpha 8")).to_be_visible()
    unfold(page, "Combine adapters")
    for name in ("here", "theirs"):
        choose(page, "Adapters to combine", name)
    page.keyboard.press("Escape")
    page.get_by_label("Weights").first.fill("0.7, 0.3")
    page.get_by_label("Method").first.click()
    page.get_by_role("option", name="cat", exact=True).click()
    page.get_by_label("Name of the new adapter").fill("both")
    page.get_by_role("button", name="Combine and keep").click()
    expect(page.get_by_text("Sign conflicts")).to_be_visible(timeout=JOB)
    row = workbench.registry.find(Adapter, "both")
    assert (row.rank, [one["name"] for one in row.parents]) == (6, ["here", "theirs"])
    page.get_by_role("gridcell", name="both", exact=True).first.click()
    lineage = page.locator("svg.lineage")
    for name in ("llama", "here", "theirs", "both"):
        expect(lineage.locator("text", has_text=name).first).to_be_visible()
    picture(page, "adapters-combined")
    unfold(page, "Resize the chosen adapter")
    page.get_by_label("New rank").fill("3")
    page.get_by_label("Measure the validation loss").uncheck()
    page.get_by_label("Name of the resized one").fill("smaller")
    page.get_by_role("button", name="Resize and keep").click()
    expect(page.get_by_text("both at rank 3").last).to_be_visible(timeout=JOB)
    wait_for(lambda: "smaller" in workbench.registry.names(Adapter))
    assert workbench.registry.find(Adapter, "smaller").rank == 3
    expect(lineage.locator("text", has_text="smaller")).to_be_visible()

    go_to(page, "Export")
    choose(page, "Adapter", "smaller")
    expect(page.get_by_role("combobox", name="Adapter", exact=True)).to_have_value("smaller")
    page.get_by_role("button", name="Export", exact=True).click()
    wait_for(lambda: workbench.registry.all(Export), 120)
    expect(page.get_by_text("Passed: logits differ by at most")).to_be_visible(timeout=JOB)
    assert workbench.registry.find(Base, "smaller merged").merged["adapter_name"] == "smaller"
    choose(page, "Format", "ollama")
    page.get_by_role("button", name="Export", exact=True).click()
    wait_for(lambda: len(workbench.registry.all(Export)) == 2, 120)
    expect(page.get_by_text("tensors read back")).to_be_visible(timeout=JOB)
    with page.expect_download() as given:
        page.get_by_role("link", name="Download as zip").first.click()
    given.value.save_as(tmp_path / "bundle.zip")
    with zipfile.ZipFile(tmp_path / "bundle.zip") as archive:
        assert archive.testzip() is None
        names = {name.rpartition("/")[2]: name for name in archive.namelist()}
        assert set(names) == {"Modelfile", "README.md", "model.gguf"}
        modelfile = archive.read(names["Modelfile"]).decode()
    assert modelfile.startswith("FROM ./model.gguf")
    assert 'PARAMETER stop "<|im_end|>"' in modelfile
    picture(page, "exports")


def test_many_adapters_are_searched_starred_deleted_and_brought_back(workbench, trained, address, open_page):
    first = trained("adapter 00")
    for at in range(1, 60):
        workbench.registry.add(Adapter(**first.model_dump() | {"id": None, "name": f"adapter {at:02}"}))
    page = open_page(address)
    go_to(page, "Adapters")
    expect(page.get_by_label("Page", exact=True)).to_have_value("1 of 2")
    expect(page.get_by_role("gridcell", name="adapter 59")).to_be_visible()
    page.get_by_label("Search", exact=True).fill("adapter 07")
    expect(page.get_by_role("gridcell", name="adapter 59")).to_have_count(0)
    page.get_by_role("gridcell", name="adapter 07").first.click()
    unfold(page, "Name, star, tags and note")
    page.get_by_label("Star", exact=True).check()
    page.get_by_label("Tags", exact=True).fill("good, chat")
    page.get_by_role("button", name="Save", exact=True).click()
    wait_for(lambda: workbench.registry.find(Adapter, "adapter 07").starred)
    expect(page.get_by_role("gridcell", name="★")).to_be_visible()
    page.get_by_label("Search", exact=True).fill("adapter 0")
    page.get_by_role("gridcell", name="adapter 08").first.click()
    expect(page.get_by_label("Tags", exact=True)).to_have_value("")
    page.get_by_role("gridcell", name="adapter 07").first.click()
    expect(page.get_by_label("Tags", exact=True)).to_have_value("good, chat")
    page.get_by_label("Note", exact=True).fill("for later")
    page.get_by_role("button", name="Save", exact=True).click()
    wait_for(lambda: workbench.registry.find(Adapter, "adapter 07").note == "for later")
    assert workbench.registry.find(Adapter, "adapter 07").starred
    page.get_by_role("button", name="Delete …").click()
    page.get_by_role("button", name="Delete it").click()
    wait_for(lambda: "adapter 07" not in workbench.registry.names(Adapter))
    unfold(page, "Deleted adapters")
    expect(page.get_by_role("combobox", name="Deleted", exact=True)).to_have_value(
        re.compile("adapter 07"), timeout=15_000
    )
    page.get_by_role("button", name="Bring back").click()
    wait_for(lambda: "adapter 07" in workbench.registry.names(Adapter))
    assert workbench.registry.find(Adapter, "adapter 07").tags == "good, chat"
