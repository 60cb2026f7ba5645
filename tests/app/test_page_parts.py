"""Parts of the page that need no browser: what it remembers, says and shows first."""

import gradio as gr
import pytest

from app.web.page import _opened
from app.web.parts.head import head_html, live_head
from app.web.parts.shell import inform
from app.web.sections.train.planning import _more_steps
from core.train.config import TrainConfig


@pytest.mark.parametrize(
    ("tab", "at", "now_open", "remembered"),
    [
        ("data", 7.0, ("data", 7.0), "data"),
        ("home", 4.0, None, None),  # opened before it, arrived after it
        ("playground", 7.0, ("playground", 7.0), None),
    ],
)
def test_the_section_opened_last_is_the_one_remembered(workbench, tab, at, now_open, remembered):
    found = _opened(workbench, tab, ("playground", 5.0), workbench.changes(), at)
    assert [None if one == gr.skip() else one for one in found] == [now_open, remembered, None]


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
