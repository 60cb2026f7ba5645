"""Jobs on the page: each kind is cancelled in the middle of its work, and what follows is never stuck."""

from __future__ import annotations

import os
import re

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from app.jobs.kinds import JOBS
from app.service.workbench import Workbench
from app.shared.references import refer
from core.generate.config import GenerationConfig
from core.seam import PLUGINS_VARIABLE
from core.train.training_options import TrainingOptions
from storage.tables import RUNNING, STOPPED, Adapter, Base, Dataset, Export, Job
from tests.core.helpers import new_peft
from tests.ui import held_jobs
from tests.ui.conftest import choose_row, go_to, open_sheet, open_tab, picture, press, served, sheet, unfold
from tests.workbenches import QUICK, wait_for, write_rows

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]
TABLES = (Base, Dataset, Adapter, Export)


@pytest.fixture
def pipe(tmp_path, monkeypatch):
    """Every job waits behind its first report until somebody writes to it."""
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setenv(held_jobs.HELD_VARIABLE, str(tmp_path / "pipe"))
    monkeypatch.setenv(PLUGINS_VARIABLE, held_jobs.__name__)
    return tmp_path / "pipe"


@pytest.fixture
def address(pipe, workbench, zygote):
    with served(workbench.settings.home, zygote) as found:
        yield found


def _end(page: Page, job: Job) -> Locator:
    """The Cancel of a job, in its line at the top of the page."""
    return page.get_by_role("button", name=f"Cancel: {job.title}", exact=True)


def _cancel(page: Page, workbench: Workbench, kind: str) -> Job:
    """Cancel the job that has just been started, once it is at work; the page offers it and says so."""
    (job,) = wait_for(workbench.registry.jobs.active)
    assert job.kind == kind
    button = _end(page, job)
    expect(button).to_be_visible(timeout=60_000)
    wait_for(lambda: workbench.registry.get(Job, job.id).message not in ("", "Starting"))
    assert workbench.registry.get(Job, job.id).state == RUNNING
    button.press("Enter")  # a sheet may lie over it for whoever has a mouse
    expect(page.locator(".notice.said", has_text=f"{job.title}: cancelled").first).to_be_visible()
    expect(button).to_be_hidden()
    ended = workbench.registry.get(Job, job.id)
    assert (ended.state, ended.message) == (STOPPED, f"Cancelled. {JOBS.get(kind).left}.")
    return ended


def _said(where: Page | Locator) -> None:
    expect(where.locator("p.fault:visible", has_text="Cancelled. Nothing was added.").first).to_be_visible()


def test_a_job_of_every_kind_is_cancelled_in_the_middle_of_its_work(
    workbench, trained, address, open_page, other_llama, tiny_llama, tmp_path
):
    for name in ("one", "two"):
        trained(name)
    trained("shards", "miss")
    new_peft(tiny_llama).save_pretrained(tmp_path / "theirs")
    rows = write_rows(tmp_path / "more.jsonl")
    run = workbench.training.start("llama", "data", TrainingOptions.parse(QUICK), "held against others")
    assert workbench.runs.wait(run.id).state == "finished"
    before = [workbench.registry.all(table) for table in TABLES]
    page = open_page(address)
    cancelled = []

    def cancel(kind):
        cancelled.append(_cancel(page, workbench, kind).kind)

    unfold(page, "Other jobs")
    page.locator("#job-look_about").click()
    cancel("look_about")
    _said(page)

    go_to(page, "Models")
    adding = open_sheet(page, "Add a base model")
    adding.get_by_label("Or a folder, a file or a hub id").fill(str(other_llama))
    adding.get_by_role("button", name="Add", exact=True).click()
    expect(adding).to_be_hidden()
    cancel("add_model")

    go_to(page, "Data")
    adding = open_sheet(page, "Add data")
    adding.locator("#data-upload input[type=file]").set_input_files(rows)
    expect(adding.locator("#first-rows .turn").first).to_be_visible()
    press(page, "Import")
    cancel("import_data")
    choose_row(page, "data", "data")
    press(page, "Check with this base")
    cancel("check_data")

    go_to(page, "Adapters")
    choose_row(page, "adapters", "one")
    press(page, "Verify")
    cancel("verify_adapter")
    open_tab(page, "Inside")
    press(page, "Look inside")
    cancel("inspect_adapter")
    open_tab(page, "Speed")
    press(page, "Measure its speed")
    cancel("measure_latency")
    form = open_sheet(page, "Resize")
    form.get_by_label("Name of the resized one").fill("smaller")
    form.get_by_label("New rank").fill("1")
    form.get_by_role("button", name="Resize and keep").click()
    cancel("resize_adapter")
    _said(form)
    page.keyboard.press("Escape")
    choose_row(page, "adapters", "shards")
    form = open_sheet(page, "Convert to LoRA")
    form.get_by_label("Name of the LoRA").fill("plain")
    form.get_by_role("button", name="Convert and keep").click()
    cancel("convert_adapter")
    _said(form)
    page.keyboard.press("Escape")
    choose_row(page, "adapters", "one")
    form = open_sheet(page, "Combine", "Combine adapters")
    form.get_by_role("combobox", name="Adapters to combine").fill("two")
    form.locator(".choice-popup").get_by_role("option", name="two").first.click()
    form.get_by_label("Name of the new adapter").fill("both")
    form.get_by_role("button", name="Combine and keep").click()
    cancel("combine_adapters")
    _said(form)
    page.keyboard.press("Escape")
    form = open_sheet(page, "Import", "Import an adapter")
    form.get_by_label("Or a folder or file on this machine").fill(str(tmp_path / "theirs"))
    form.get_by_role("button", name="Look at it").click()
    cancel("import_adapter")
    page.keyboard.press("Escape")

    press(page, "Export")
    sheet(page, "Export an adapter").locator("#export-button").click()
    cancel("export_adapter")
    workbench.baselines.begin(run.id, 1, full=False)
    cancel("measure_prompting")
    workbench.prompts.keep("mine", [[{"role": "user", "content": "hello"}]])
    workbench.prompts.start("mine", "llama", [None, "one"], GenerationConfig())
    cancel("run_prompts")

    assert sorted(cancelled) == sorted(JOBS.names)  # a new kind of job needs its own lines here
    assert [workbench.registry.all(table) for table in TABLES] == before
    left = [*workbench.registry.blobs.folder.parent.glob("staging/*"), *workbench.settings.exports.glob("*")]
    assert left == []


def test_a_sheet_shows_how_far_its_job_is_and_ends_it(workbench, trained, address, open_page):
    """It covers what stands at the top; and what was found earlier is no result of what is under way."""
    tried = {"adapter": refer(trained("one")), "rank": 1, "name": "", "evaluate": False}
    earlier = workbench.registry.save(Job(kind="resize_adapter", title="Resize", arguments=tried))
    workbench.registry.jobs.begin(earlier.id)
    found = {"adapter": "one", "rank": 1, "energy_lost": 0.25, "bytes": 1000}
    workbench.registry.jobs.finish(earlier.id, found)
    page = open_page(address)
    go_to(page, "Adapters")
    choose_row(page, "adapters", "one")
    form = open_sheet(page, "Resize")
    expect(form.get_by_text("one at rank 1")).to_be_visible()
    form.get_by_role("button", name="Try").click()
    expect(form.get_by_text("Under way")).to_be_visible()
    expect(form.get_by_text("one at rank 1")).to_have_count(0)
    (job,) = wait_for(workbench.registry.jobs.active)
    wait_for(lambda: workbench.registry.get(Job, job.id).message not in ("", "Starting"))
    now = workbench.registry.get(Job, job.id)
    expect(form.locator(".job-here .quiet")).to_have_text(now.message)
    picture(page, "job-in-its-sheet")
    form.get_by_role("button", name=f"Cancel {job.title}").click()
    _said(form)
    assert workbench.registry.get(Job, job.id).state == STOPPED
    expect(form.get_by_text("Under way")).to_have_count(0)


def _only_ends(route: Route) -> None:
    """What ends a job reaches the server; what asks for news does not."""
    if '"end"' in (route.request.post_data or ""):
        route.continue_()
    else:
        route.abort()


def test_the_button_ends_the_job_that_it_names_and_a_held_one_gives_its_result(
    workbench, address, pipe, open_page
):
    page = open_page(address)
    first = workbench.jobs.start("look_about", {"place": "first"})
    button = _end(page, first)
    expect(button).to_be_visible(timeout=60_000)
    second = workbench.jobs.start("look_about", {"place": "second"})
    wait_for(lambda: workbench.registry.get(Job, second.id).message == "Looking")
    wait_for(lambda: workbench.registry.get(Job, first.id).message == "Looking")
    silenced: list[None] = []
    page.route("**/component_server**", lambda route: silenced.append(route.abort()))
    while len(silenced) < 2:  # what was on its way has arrived; from here on the page hears nothing
        page.wait_for_timeout(50)
    workbench.jobs.cancel(first)
    wait_for(lambda: not workbench.registry.get(Job, first.id).active)
    page.unroute("**/component_server**")
    page.route("**/component_server**", _only_ends)
    button.click()
    expect(page.locator(".notice.said", has_text="first is not under way")).to_be_visible()
    page.unroute("**/component_server**")
    expect(button).to_be_hidden(timeout=30_000)
    button = _end(page, second)
    expect(button).to_be_visible(timeout=30_000)
    assert workbench.registry.get(Job, second.id).state == RUNNING
    pipe.write_text("go on")
    expect(button).to_be_hidden(timeout=30_000)
    assert workbench.jobs.wait(second) == {"seen": "second"}
    unfold(page, "Other jobs")
    page.get_by_label("Place").fill("third")
    page.locator("#job-look_about").click()
    expect(page.get_by_role("button", name="Cancel: Look about third")).to_be_visible(timeout=30_000)
    pipe.write_text("go on")
    expect(page.locator(".facts dd", has_text="third")).to_be_visible(timeout=30_000)


def test_home_does_not_stay_at_what_an_older_answer_said(settings, zygote, open_page, monkeypatch):
    """On a busy machine an answer may arrive when the job that it tells of is over."""
    with served(settings.home, zygote) as address:
        workbench = Workbench(settings)
        page = open_page(address)
        late: list[Route] = []

        def delay(route: Route) -> None:
            answer = route.fetch()
            if "Under way" in answer.text() and not late:
                late.append((route, answer))
            else:
                route.fulfill(response=answer)

        page.route(re.compile("gradio_api/run"), delay)
        page.get_by_role("button", name="Get the starter model").click()
        (job,) = wait_for(workbench.registry.jobs.active)
        wait_for(lambda: workbench.registry.get(Job, job.id).state == RUNNING)
        page.wait_for_function("() => true")
        while not late:
            page.wait_for_timeout(50)
        workbench.jobs.cancel(job)
        expect(page.locator(".job")).to_have_count(0)
        late[0][0].fulfill(response=late[0][1])
        expect(page.get_by_role("button", name="Get the starter model")).to_be_enabled()
        expect(page.get_by_role("button", name="Under way …")).to_have_count(0)
        page.unroute_all(behavior="ignoreErrors")  # one may be on its way
        workbench.close()
