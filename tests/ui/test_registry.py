"""Adapters on the page: imported, combined, resized, merged, taken away for Ollama, with their lineage."""

from __future__ import annotations

import re
import zipfile

import pytest
from playwright.sync_api import Locator, Page, expect

from storage.tables import Adapter, Base, Export
from tests.core.helpers import new_peft
from tests.ui.conftest import (
    choose_row,
    drawn,
    go_to,
    open_sheet,
    open_tab,
    picture,
    press,
    ready,
    row,
    served,
    sheet,
)
from tests.workbenches import wait_for

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]
JOB = 90_000  # a job starts a process that imports torch


@pytest.fixture
def address(workbench, zygote):
    with served(workbench.settings.home, zygote) as found:
        yield found


def take(where: Page | Locator, label: str, name: str) -> None:
    """Choose an adapter in a field that finds it among many."""
    field = where.get_by_role("combobox", name=label)
    field.fill(name)
    where.locator(".choice-popup").get_by_role("option", name=name).first.click()


def chosen_format(page: Page, where: Locator, option: str) -> None:
    where.get_by_label("Format", exact=True).click()
    page.get_by_role("option", name=option).click()


def test_an_adapter_of_another_kind_becomes_a_lora(workbench, trained, address, open_page):
    trained("here")
    trained("shards", "miss")
    page = open_page(address)
    go_to(page, "Adapters")
    choose_row(page, "adapters", "here")
    expect(page.get_by_role("button", name="Resize", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Convert to LoRA", exact=True)).to_be_hidden()
    choose_row(page, "adapters", "shards")
    expect(page.locator(".facts:visible", has_text="MiSS").first).to_be_visible()
    form = open_sheet(page, "Convert to LoRA")
    form.get_by_role("button", name="Convert and keep").click()
    expect(page.get_by_test_id("toast-body").filter(has_text="Give the LoRA a name first")).to_be_visible()
    form.get_by_label("Name of the LoRA").fill("plain")
    form.get_by_role("button", name="Convert and keep").click()
    expect(form.locator(".facts", has_text="plain")).to_be_visible(timeout=JOB)
    made = workbench.registry.find(Adapter, "plain")
    assert (made.source, made.parents[0]["name"], workbench.adapters.kind(made).name) == (
        "converted",
        "shards",
        "lora",
    )


def test_import_combine_resize_merge_and_a_bundle_for_ollama(
    workbench, trained, address, open_page, tiny_llama, tmp_path
):
    trained("here")
    new_peft(tiny_llama).save_pretrained(tmp_path / "theirs")
    page = open_page(address)
    go_to(page, "Adapters")
    form = open_sheet(page, "Import", "Import an adapter")
    form.get_by_label("Or a folder or file on this machine").fill(str(tmp_path / "theirs"))
    form.get_by_role("button", name="Look at it").click()
    expect(form.get_by_text("PEFT layout, rank 4, alpha 8")).to_be_visible(timeout=JOB)
    form.get_by_role("button", name="Keep it").click()
    expect(form).to_be_hidden()
    expect(row(page, "adapters", "theirs")).to_be_visible(timeout=JOB)

    choose_row(page, "adapters", "here")
    form = open_sheet(page, "Combine", "Combine adapters")
    expect(form.get_by_label("Weight of here", exact=True)).to_have_value("1")  # begins with the chosen one
    take(form, "Adapters to combine", "theirs")
    expect(form.get_by_label("Weight of theirs", exact=True)).to_have_value("0.5")
    for name, weight in (("here", "0.7"), ("theirs", "0.3")):
        form.get_by_label(f"Weight of {name}", exact=True).fill(weight)
    form.get_by_label("Method").click()
    page.get_by_role("option", name="Concatenation").click()
    expect(form.get_by_label("Rank (r)")).to_be_hidden()  # which does not matter to it
    form.get_by_label("Name of the new adapter").fill("both")
    form.get_by_role("button", name="Combine and keep").click()
    expect(form.get_by_text("Sign conflicts")).to_be_visible(timeout=JOB)
    made = workbench.registry.find(Adapter, "both")
    assert (made.rank, [one["name"] for one in made.parents]) == (6, ["here", "theirs"])
    assert [one["weight"] for one in made.parents] == [0.7, 0.3]
    form.get_by_role("link", name="both").click()
    expect(form).to_be_hidden()
    expect(page.locator(".title-line h2:visible")).to_have_text("both")

    open_tab(page, "Lineage")
    lineage = page.locator("svg.lineage")
    for name in ("llama", "here", "theirs"):
        expect(lineage.get_by_role("link", name=name)).to_be_visible()
    picture(page, "adapters-combined")
    form = open_sheet(page, "Resize")
    expect(form.get_by_label("New rank")).to_have_value("3")  # half of what it has
    form.get_by_label("Measure the validation loss").uncheck()
    form.get_by_label("Name of the resized one").fill("smaller")
    form.get_by_role("button", name="Resize and keep").click()
    expect(form.get_by_text("both at rank 3")).to_be_visible(timeout=JOB)
    assert workbench.registry.find(Adapter, "smaller").rank == 3
    page.keyboard.press("Escape")
    lineage.get_by_role("link", name="smaller").click()
    expect(page.locator(".title-line h2:visible")).to_have_text("smaller")
    page.go_back()
    expect(page.locator(".title-line h2:visible")).to_have_text("both")
    page.go_forward()
    expect(page.locator(".title-line h2:visible")).to_have_text("smaller")

    page.get_by_role("button", name="Export", exact=True).locator("visible=true").click()
    form = sheet(page, "Export an adapter")
    expect(form.get_by_role("combobox", name="Adapter")).to_have_value("smaller")
    expect(form.get_by_text("with the LoRA adapter smaller merged in")).to_be_visible()
    form.locator("#export-button").click()
    expect(form).to_be_hidden()
    expect(page.get_by_text("Passed: logits differ by at most")).to_be_visible(timeout=JOB)
    assert workbench.registry.find(Base, "smaller merged").merged["adapter_name"] == "smaller"
    expect(page.get_by_role("link", name="smaller merged")).to_be_visible()
    form = open_sheet(page, "Export an adapter")
    chosen_format(page, form, "Ollama model")
    expect(form.get_by_text("`ollama create NAME -f Modelfile` makes a model of it.")).to_be_visible()
    expect(form.get_by_label("Shard size (GB)")).to_be_hidden()
    form.locator("#export-button").click()
    wait_for(lambda: len(workbench.registry.all(Export)) == 2, 120)
    newest = workbench.registry.all(Export)[0]
    done = page.locator("[data-notice]").filter(has_text="Export smaller as ollama")
    done.get_by_role("link", name="Show it").click(timeout=JOB)
    expect(page.get_by_text("tensors read back")).to_be_visible(timeout=JOB)
    assert page.url.endswith(f"?section=export&name={newest.id}")
    with page.expect_download() as given:
        page.get_by_role("link", name="Download as zip").click()
    given.value.save_as(tmp_path / "bundle.zip")
    with zipfile.ZipFile(tmp_path / "bundle.zip") as archive:
        assert archive.testzip() is None
        names = {name.rpartition("/")[2]: name for name in archive.namelist()}
        assert set(names) == {"Modelfile", "README.md", "model.gguf"}
        modelfile = archive.read(names["Modelfile"]).decode()
    assert modelfile.startswith("FROM ./model.gguf")
    assert 'PARAMETER stop "<|im_end|>"' in modelfile
    picture(page, "exports")
    use_an_export(page, workbench, newest)


def use_an_export(page: Page, workbench, newest: Export) -> None:
    """What is shown of an export, and what can be done with it."""
    open_tab(page, "Use it")
    expect(page.get_by_text(f"ollama create smaller -f {newest.folder}/Modelfile")).to_be_visible()
    page.get_by_role("button", name="Copy: Ollama").click()
    expect(page.get_by_text(re.compile("^(Copied|Marked)"))).to_be_visible()
    open_tab(page, "Files")
    expect(page.get_by_role("cell", name="model.gguf")).to_be_visible()
    open_tab(page, "Card")
    expect(page.get_by_text("Combined from")).to_be_visible()
    press(page, "Check the files")
    expect(page.get_by_test_id("toast-body").filter(has_text="as they were written")).to_be_visible()
    page.get_by_role("button", name="Remove …", exact=True).locator("visible=true").click()
    press(page, "Remove it")
    wait_for(lambda: len(workbench.registry.all(Export)) == 1)
    expect(page.get_by_text("Passed: logits differ by at most")).to_have_count(1)  # the other is shown
    press(page, "Chat with it")
    expect(page.locator("#rail [aria-current]")).to_have_text("Playground")
    expect(page.get_by_role("combobox", name="Base model")).to_have_value("smaller merged")


def test_many_adapters_are_searched_starred_deleted_and_brought_back(workbench, trained, address, open_page):
    first = trained("adapter 000")
    for at in range(1, 130):
        workbench.registry.add(Adapter(**first.model_dump() | {"id": None, "name": f"adapter {at:03}"}))
    page = open_page(address)
    go_to(page, "Adapters")
    foot, rows = page.locator("#list-adapters .picker-foot"), page.locator("#list-adapters .picker-row")
    expect(foot).to_have_text("100 of 130; scroll for more")
    rows.last.scroll_into_view_if_needed()
    expect(rows).to_have_count(130)
    page.get_by_placeholder("Search name, tag, note, base, data").fill("adapter 07")
    expect(rows).to_have_count(12)
    choose_row(page, "adapters", "adapter 077")
    page.get_by_role("button", name="☆ Star").click()
    expect(page.get_by_role("button", name="★ Starred")).to_be_visible()
    wait_for(lambda: workbench.registry.find(Adapter, "adapter 077").starred)
    form = open_sheet(page, "Edit")
    expect(form.get_by_label("Name", exact=True)).to_have_value("adapter 077")
    form.get_by_label("Tags").fill("good, chat")
    form.get_by_role("button", name="Save").click()
    expect(form).to_be_hidden()
    expect(page.locator(".facts:visible dd", has_text="good, chat")).to_be_visible()
    choose_row(page, "adapters", "adapter 078")
    form = open_sheet(page, "Edit")
    expect(form.get_by_label("Name", exact=True)).to_have_value("adapter 078")
    expect(form.get_by_label("Tags")).to_have_value("")
    page.keyboard.press("Escape")
    choose_row(page, "adapters", "adapter 077")
    form = open_sheet(page, "Edit")
    expect(form.get_by_label("Tags")).to_have_value("good, chat")
    form.get_by_label("Name", exact=True).fill("adapter 07 <b>new</b>")
    form.get_by_label("Note").fill("for later")
    form.get_by_role("button", name="Save").click()
    expect(page.locator(".title-line h2:visible")).to_have_text("★ adapter 07 <b>new</b>")
    renamed = workbench.registry.find(Adapter, "adapter 07 <b>new</b>")
    assert (renamed.note, renamed.tags, renamed.starred) == ("for later", "good, chat", True)

    page.reload()
    ready(page)
    expect(page.locator(".title-line h2:visible")).to_have_text("★ adapter 07 <b>new</b>")
    expect(page.get_by_placeholder("Search name, tag, note, base, data")).to_have_value("adapter 07")
    page.get_by_placeholder("Search name, tag, note, base, data").fill("")
    page.get_by_label("Starred", exact=True).select_option("yes")
    expect(rows).to_have_count(1)
    page.get_by_role("button", name="Delete …", exact=True).locator("visible=true").click()
    press(page, "Delete it")
    wait_for(lambda: renamed.name not in workbench.registry.names(Adapter))
    expect(foot).to_have_text("Nothing matches.")
    page.get_by_label("Starred", exact=True).select_option("")
    form = open_sheet(page, "Deleted", "Deleted adapters")
    form.get_by_role("radio", name="adapter 07").check()
    form.get_by_role("button", name="Bring back").click()
    wait_for(lambda: renamed.name in workbench.registry.names(Adapter))
    page.keyboard.press("Escape")
    expect(row(page, "adapters", renamed.name)).to_be_visible()
    assert workbench.registry.find(Adapter, renamed.name).tags == "good, chat"


def test_a_look_inside_stays_over_a_reload_and_is_compared(workbench, trained, address, open_page):
    for name in ("one", "another"):
        trained(name)
    page = open_page(address)
    go_to(page, "Adapters")
    choose_row(page, "adapters", "one")
    open_tab(page, "Inside")
    take(page, "Compare its directions with", "another")
    press(page, "Look inside")
    expect(page.get_by_text("It uses about rank")).to_be_visible(timeout=JOB)
    charts = page.locator("[role=tabpanel]:visible .chart-plot .heatmaplayer")
    expect(charts).to_have_count(3, timeout=JOB)  # Plotly's script comes first
    page.get_by_label("Show", exact=True).click()
    page.get_by_role("option", name="Effective rank").click()
    said = page.get_by_role("figure", name="What it changes, by layer and module")
    expect(said).to_be_visible()
    page.wait_for_function(
        "() => document.querySelector('[aria-label=\"What it changes, by layer and module\"]')"
        ".data[0].hovertemplate.includes('Effective rank')"
    )
    page.reload()
    ready(page)
    open_tab(page, "Inside")
    expect(page.get_by_text("Of its directions")).to_contain_text("another")
    expect(charts).to_have_count(3)
    choose_row(page, "adapters", "another")
    expect(page.get_by_text("It uses about rank")).to_have_count(0)
    press(page, "Verify")
    expect(page.get_by_text("digest, layers, shapes, numbers and base are right")).to_be_visible(timeout=JOB)
    page.reload()
    ready(page)
    expect(page.get_by_text("digest, layers, shapes, numbers and base are right")).to_be_visible()
    drawn(page)
