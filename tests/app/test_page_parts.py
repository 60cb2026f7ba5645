"""Parts of the page that need no browser: what it remembers, says and shows first."""

import asyncio
import re
import threading
from importlib import resources

import gradio as gr
import pytest
from gradio.state_holder import SessionState

from app.web.page import _opened
from app.web.parts.answers import WrongAnswer, checked
from app.web.parts.head import head_html, live_head
from app.web.parts.shell import choose_from, inform
from app.web.sections.home.journey import steps_done
from app.web.sections.train.planning import _more_steps
from core.train.config import TrainConfig


def _served(workbench):
    """The page as Gradio has it once it is mounted."""
    from gradio.routes import App

    from app.web.application import build_app

    apps = [getattr(one, "app", None) for one in build_app(workbench).routes]
    (page,) = [one for one in apps if isinstance(one, App)]
    return page


def test_only_the_tabs_used_last_are_remembered(workbench, monkeypatch):
    """Each takes about 0.8 MB, and every load of the page is one."""
    from gradio import state_holder

    held = _served(workbench).state_holder
    monkeypatch.setattr(state_holder, "SessionState", lambda blocks: object())
    for number in range(500):
        held["the one that polls"], held[f"loaded {number} times"]
    assert len(held.session_data) == len(held.time_last_used) <= 40
    assert "the one that polls" in held


def test_the_page_that_is_served_is_described_as_gradio_would_describe_it_then(workbench):
    """It is described once, before its handlers are checked and it is mounted."""
    page = _served(workbench).get_blocks()
    assert len(page.config["components"]) > 400
    anew = type(page.default_config).get_config(page.default_config)
    assert {name: page.config[name] for name in anew} == anew


def test_what_is_asked_for_while_home_is_looked_up_is_not_forgotten(workbench, monkeypatch):
    """*Do all of it* is pressed while the page is brought up to date, as right after it was opened."""
    monkeypatch.setattr("app.web.sections.home.section.start_step", lambda workbench, done: None)
    page = _served(workbench).get_blocks()
    (press,) = [fn for fn in page.fns.values() if _is_of(page, fn, "all-steps")]
    (show,) = [fn for fn in page.fns.values() if press.outputs[0] in fn.inputs]
    looking, pressed = threading.Event(), threading.Event()

    def recent(_):
        looking.set()
        assert pressed.wait(20)
        return ""

    monkeypatch.setattr("app.web.sections.home.section.recent_html", recent)
    session = SessionState(page)

    async def overlapping():
        shown = asyncio.create_task(page.process_api(show, [None] * len(show.inputs), state=session))
        await asyncio.to_thread(looking.wait, 20)
        await page.process_api(press, [], state=session)
        pressed.set()
        await shown

    asyncio.run(overlapping())
    assert session[press.outputs[0]._id] == [steps_done(workbench)], "what follows by itself from there"


def _is_of(page, fn, elem_id):
    return any(page.blocks[of].elem_id == elem_id for of, _ in fn.targets if of in page.blocks)


def test_a_page_at_rest_looks_for_work_a_hundred_times_a_second_at_most(workbench, monkeypatch):
    """A thousand times, as Gradio does by itself, are a tenth of a core."""
    queue, waits = _served(workbench).get_blocks()._queue, []

    async def sleep(seconds):
        waits.append(seconds)
        queue.stopped = True

    monkeypatch.setattr("gradio.queueing.asyncio.sleep", sleep)
    asyncio.run(queue.start_processing())
    assert waits
    assert min(waits) >= 0.01


@pytest.mark.parametrize(
    ("outputs", "answer"),
    [
        ([gr.Button()], [gr.Button(visible=True)]),  # a list is no update of a single output
        ([gr.HTML()], ["text"]),
        ([gr.HTML(), gr.HTML()], ["one"]),
        ([gr.HTML(), gr.HTML()], "ab"),
        ([gr.HTML(), gr.HTML()], ["one", "two", "three"]),
        ([gr.HTML(), gr.Button()], ["one", [gr.Button()]]),
        ([gr.Dropdown(multiselect=True)], [gr.Dropdown(choices=[])]),
        ([gr.Dropdown()], ["one"]),
        ([gr.State()], [gr.skip()]),
        ([], "nobody sees it"),
    ],
)
def test_an_answer_that_does_not_fit_its_outputs_is_named(outputs, answer):
    def handler():
        return answer

    def streaming():
        yield answer

    with pytest.raises(WrongAnswer, match=r"handler gives .* outputs"):
        checked(handler, outputs)()
    with pytest.raises(WrongAnswer, match=rf"streaming gives .* for {len(outputs)} outputs"):
        list(checked(streaming, outputs)())


def test_answers_that_fit_are_let_through():
    html, button = gr.HTML(), gr.Button()
    for outputs, answer in (
        ([html], "text"),
        ([button], gr.Button(visible=True)),
        ([html, button], gr.skip()),
        ([html, button], {button: "Go"}),
        ([html, button], ("text", gr.skip())),
        ([gr.Dropdown(multiselect=True)], ["one"]),
        ([gr.State()], [1, 2]),
        ([], None),
    ):
        assert checked(lambda answer=answer: answer, outputs)() is answer


def test_every_section_follows_the_registry_with_answers_that_fit(workbench, trained):
    """All of a section's followers, asked as the page does when it opens."""
    from gradio.context import LocalContext

    from app.web.page import build_page

    trained("one")
    page = build_page(workbench)
    followers = [one for one in page.fns.values() if one.fn and one.fn.__name__ == "everything"]
    assert len(followers) == 9, "eight sections and what stands above them"
    before = LocalContext.in_event_listener.set(True)
    try:
        for one in followers:
            values = [getattr(component, "value", None) for component in one.inputs]
            assert set(one.fn(*values)) == set(one.outputs)
    finally:
        LocalContext.in_event_listener.reset(before)  # components that later tests make are whole


@pytest.mark.parametrize(
    ("at", "now_open"),
    [
        (7.0, ("data", 7.0)),
        (4.0, None),
    ],  # the latter was opened before the one that is open, and arrived after it
)
def test_the_section_opened_last_is_the_one_that_is_kept_up_to_date(workbench, at, now_open):
    found = _opened(workbench, "data", ("playground", 5.0), workbench.changes(), at)
    assert [None if one == gr.skip() else one for one in found] == [now_open, None]


@pytest.mark.parametrize(
    ("current", "wanted"), [(None, "one"), ("", "one"), ("two", "two"), ("gone", None), ("also gone", None)]
)
def test_what_was_chosen_and_is_gone_is_not_replaced_by_another(current, wanted):
    """An export, a training or a check of another one would be the next click."""
    offered = choose_from(["one", "two"], current).constructor_args
    assert offered.get("value", current) == wanted
    assert choose_from(["one", "two"], "gone", "two").constructor_args["value"] == "two"


def test_a_page_does_not_open_with_what_was_so_when_the_server_started(workbench):
    with gr.Blocks():
        first = live_head(workbench).value
    assert "LoRA Workbench" in first
    assert "chip" not in first
    assert "asleep" in head_html(workbench)


def test_a_name_with_markup_is_text_in_a_message(monkeypatch):
    said = []
    monkeypatch.setattr(gr, "Info", lambda text, **about: said.append(text))
    inform("Saved as <img src=x>.")
    assert said == ["Saved as &lt;img src=x&gt;."]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gradient_accumulation_steps": 4}, "4 accumulation steps, take fewer"),
        ({"gradient_accumulation_steps": 1, "micro_batch_size": 2}, "a smaller micro-batch than 2"),
        ({"gradient_accumulation_steps": 1, "micro_batch_size": 1}, "more epochs, or more rows"),
        ({"gradient_accumulation_steps": 4, "max_steps": 5}, "max_steps = 5 says; raise it"),
    ],
)
def test_advice_for_few_steps_fits_the_settings(options, said):
    assert said in _more_steps(TrainConfig(**options))


def test_no_rule_lists_what_an_element_has():
    """Gradio puts its own selector before each part between commas; within :has() that matches nothing."""
    css = (resources.files("assets") / "style.css").read_text(encoding="utf-8")
    assert re.findall(r":has\([^)]*,[^)]*\)", css) == []
