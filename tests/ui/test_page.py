"""The page on a tiny model: refusals, several tabs, deleting, single mode, looks."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from core.train.training_options import TrainingOptions
from tests.ui.conftest import choose_row, go_to, open_sheet, open_tab, picture, press, ready, row, served
from tests.workbenches import QUICK, wait_for

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
SECTIONS = ("Home", "Models", "Data", "Train", "Runs", "Adapters", "Playground", "Export", "Settings")


@pytest.fixture
def address(workbench, zygote):
    with served(workbench.settings.home, zygote) as found:
        yield found


def test_nothing_spills_over_the_window(workbench, trained, address, open_page):
    for name in ("one", "a second adapter with a long name", "x" * 120):
        trained(name)
    page = open_page(address, 1280)
    for width, dark in [(1280, False), (1920, False), (1920, True)]:
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme="dark" if dark else "light")
        page.wait_for_function("dark => document.body.classList.contains('dark') === dark", arg=dark)
        _look_at_all(page, width, dark)


def _look_at_all(page, width, dark):
    for section in SECTIONS:
        go_to(page, section)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), section
        spilling = page.evaluate(
            "[...document.querySelectorAll('.card, .facts dt, .facts dd, #masthead, .job')]"
            ".filter(one => one.offsetParent && one.scrollWidth > one.clientWidth + 1).map(one => "
            "one.outerHTML.slice(0, 200))"
        )
        assert spilling == [], section
        picture(page, f"full-{section.lower()}-{width}-{'dark' if dark else 'light'}")


def test_every_control_has_a_label(workbench, trained, address, open_page):
    trained("one")
    page = open_page(address)
    for section in SECTIONS:
        go_to(page, section)
        nameless = page.evaluate(
            """() => [...document.querySelectorAll('input, textarea, select, button')]
                .filter(one => one.offsetParent && one.type !== 'file'
                    && !(one.labels?.length || one.ariaLabel || one.title || one.innerText?.trim()
                         || one.getAttribute('aria-labelledby') || one.closest('[aria-label]')))
                .map(one => one.outerHTML.slice(0, 160))"""
        )
        assert nameless == [], section


def test_refusals_are_sentences_and_markup_in_them_is_text(address, open_page, tmp_path):
    page = open_page(address)
    bad = tmp_path / "<img src=x onerror=alert(1)>.jsonl"
    bad.write_text('{"prompt": \n')
    go_to(page, "Data")
    adding = open_sheet(page, "Add data")
    adding.locator("#data-upload input[type=file]").set_input_files(bad)
    adding.get_by_role("button", name="Import", exact=True).click()
    expect(
        page.get_by_test_id("toast-body").filter(has_text="Line 1 is not valid JSON").first
    ).to_be_visible()
    assert page.locator(".toast-body img[src=x], .toast-wrap img[src=x]").count() == 0
    page.keyboard.press("Escape")
    go_to(page, "Train")
    page.get_by_label("Rank (r)").fill("0")  # at once: what is typed before the form is filled stays
    expect(page.get_by_text("rank must be between 1 and 1,024")).to_be_visible()
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_test_id("toast-body").filter(has_text="rank must be")).to_be_visible()


def test_data_with_markup_is_shown_as_text(workbench, address, open_page, tmp_path):
    path = tmp_path / "evil.jsonl"
    path.write_text(
        '{"prompt": "<img src=x onerror=window.hacked=1>", "completion": '
        '"<script>window.hacked=1</script>"}\n'
    )
    workbench.datasets.add(path, "<b onmouseover=alert(1)>evil</b>")
    page = open_page(address)
    go_to(page, "Data")
    choose_row(page, "data", "<b onmouseover=alert(1)>evil</b>")
    expect(page.get_by_text("<script>window.hacked=1</script>").first).to_be_visible()
    open_tab(page, "Rows and tokens")
    page.locator("#row-list").get_by_role("option").filter(has_text="onerror").first.click()
    expect(page.locator(".tokens")).to_be_visible(timeout=60_000)
    assert page.evaluate("window.hacked") is None


def test_a_run_started_elsewhere_shows_up_and_can_be_stopped_here(workbench, address, open_page):
    page = open_page(address)
    go_to(page, "Runs")
    run = workbench.training.start(
        "llama", "data", TrainingOptions.parse({**QUICK, "max_steps": 5000}), "elsewhere"
    )
    expect(page.locator(".curve-state", has_text="Running")).to_be_visible(timeout=30_000)
    second = open_page(address)
    go_to(second, "Runs")
    expect(second.locator(".curve-state", has_text="Running")).to_be_visible(timeout=30_000)
    press(page, "Stop and keep")
    for one in (page, second):
        expect(one.locator(".curve-state", has_text="Stopped")).to_be_visible(timeout=30_000)
    assert workbench.runs.wait(run.id).state == "stopped"
    go_to(page, "Adapters")
    expect(row(page, "adapters", "elsewhere")).to_be_visible()


def test_a_run_is_paused_saved_and_resumed(workbench, address, open_page):
    page = open_page(address)
    go_to(page, "Runs")
    run = workbench.training.start(
        "llama", "data", TrainingOptions.parse({**QUICK, "max_steps": 100_000, "save_minutes": 0}), "mine"
    )
    expect(page.locator(".curve-state", has_text="Running")).to_be_visible(timeout=60_000)
    press(page, "Save now")
    open_tab(page, "Checkpoints")
    expect(page.get_by_role("combobox", name="Checkpoint", exact=True)).to_have_value(
        re.compile("step "), timeout=30_000
    )
    press(page, "Pause")
    expect(page.locator(".curve-state", has_text="Paused")).to_be_visible(timeout=30_000)
    end = workbench.registry.checkpoints.of(run.id)[0].step + 50
    workbench.runs.change(run.id, {"max_steps": end})
    press(page, "Resume")
    expect(page.locator(".curve-state", has_text="Finished")).to_be_visible(timeout=120_000)
    steps = [point.step for point in workbench.registry.measurements.points(run.id) if point.loss is not None]
    assert steps == list(range(1, end + 1))
    page.wait_for_function(f"() => document.querySelector('.curve-plot').dataset.points === '{end}'")


def test_a_killed_engine_leaves_the_page_alive_and_says_so(workbench, address, open_page):
    import psutil

    page = open_page(address)
    go_to(page, "Runs")
    wait_for(
        workbench.engine.status
    )  # the page's own engine; a second one starting now would take over from it
    run = workbench.training.start(
        "llama", "data", TrainingOptions.parse({**QUICK, "max_steps": 5000}), "doomed"
    )
    wait_for(lambda: workbench.registry.measurements.last_point(run.id))
    psutil.Process(workbench.engine.status()["pid"]).kill()
    expect(page.locator(".curve-state", has_text="Interrupted")).to_be_visible(timeout=30_000)
    expect(page.locator(".curve-state")).to_contain_text("killed")
    go_to(page, "Home")
    expect(page.get_by_text("This machine")).to_be_visible()


def test_the_curve_keeps_its_zoom_while_it_grows(workbench, address, open_page):
    page = open_page(address)
    go_to(page, "Runs")
    run = workbench.training.start(
        "llama", "data", TrainingOptions.parse({**QUICK, "max_steps": 5000}), "long"
    )
    page.wait_for_function("Number(document.querySelector('.curve-plot')?.dataset.points) > 5")
    # points may come before Plotly's script
    page.wait_for_function("document.querySelector('.curve-plot').layout")
    page.evaluate("Plotly.relayout(document.querySelector('.curve-plot'), {'xaxis.range': [1, 4]})")
    seen = page.evaluate("Number(document.querySelector('.curve-plot').dataset.points)")
    page.wait_for_function(
        "seen => Number(document.querySelector('.curve-plot').dataset.points) > seen + 5", arg=seen
    )
    assert page.evaluate("document.querySelector('.curve-plot').layout.xaxis.range") == [1, 4]
    page.get_by_label("Log scale").check()
    assert page.evaluate("document.querySelector('.curve-plot').layout.yaxis.type") == "log"
    workbench.runs.stop(run.id)
    workbench.runs.wait(run.id)


def test_deleting_an_adapter_asks_first(workbench, trained, address, open_page):
    trained("unwanted")
    page = open_page(address)
    go_to(page, "Adapters")
    choose_row(page, "adapters", "unwanted")
    press(page, "Delete …")
    press(page, "Keep it")
    expect(page.get_by_role("button", name="Delete it")).to_be_hidden()
    assert workbench.registry.names(type(trained("other"))) == {"unwanted", "other"}
    choose_row(page, "adapters", "unwanted")
    press(page, "Delete …")
    press(page, "Delete it")
    expect(row(page, "adapters", "unwanted")).to_have_count(0)


def test_a_section_is_brought_up_to_date_when_it_is_opened_and_while_it_is_open(trained, address, open_page):
    page = open_page(address)
    trained("made while Home was open")
    go_to(page, "Adapters")
    expect(row(page, "adapters", "made while Home was open")).to_be_visible()
    trained("made while it was open")
    expect(row(page, "adapters", "made while it was open")).to_be_visible()
    page.reload()
    ready(page)
    trained("made after a reload")
    expect(row(page, "adapters", "made after a reload")).to_be_visible()


def test_one_at_a_time_and_a_conversation_survives_a_reload(workbench, trained, address, open_page):
    trained("talker")
    page = open_page(address)
    go_to(page, "Playground")
    page.get_by_label("One at a time").check()
    expect(page.get_by_label("Who answers")).to_have_value("talker")
    open_sheet(page, "Sampling").get_by_label("Max tokens").fill("4")
    page.keyboard.press("Escape")
    prompt = page.get_by_role("textbox", name="Prompt", exact=True)
    prompt.fill("hello there")
    prompt.press("Shift+Enter")
    prompt.type("and here")
    prompt.press("Enter")
    expect(prompt).to_have_value("")
    expect(page.locator(".user.message")).to_have_count(1)
    wait_for(lambda: len(workbench.registry.chats.messages(1)) == 2)
    assert workbench.registry.chats.messages(1)[0].content == "hello there\nand here"
    page.reload()
    ready(page)
    expect(page.get_by_text("hello there").first).to_be_visible()
    expect(page.get_by_label("One at a time")).to_be_checked()
    expect(page.get_by_label("Who answers")).to_have_value("talker")
    page.get_by_role("button", name="New chat").click()
    expect(page.get_by_text("hello there")).to_have_count(0)
