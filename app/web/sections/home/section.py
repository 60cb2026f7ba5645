"""Home: what this machine is, what goes on, and, at the start, the way to the first adapter."""

from __future__ import annotations

import shutil

import gradio as gr
import psutil

from app.service.datasets import SAMPLE_NAME
from app.service.quickstart import QUICK_OPTIONS
from app.service.workbench import Workbench
from app.web.parts.markup import day, facts, number, size
from app.web.parts.shell import WORKING, Shell, told
from app.web.sections.home.other_jobs import other_jobs
from app.web.sections.home.storage_view import storage_view
from core.train.training_options import TrainingOptions
from storage.tables import Adapter, Base, Dataset, Run

TAB, TITLE = "home", "Home"
_GET_STARTER = "Get the starter model (93 MB)"
_ADD_SAMPLE = "Add the sample data"
_TRAIN = "Train the first adapter"
_WATCH = "Watch it train"
_CHAT = "Talk to it beside the base"


def build(shell: Shell) -> None:
    """Lay out the tab and bind its handlers."""
    workbench = shell.workbench
    with gr.Column(visible=False) as first:
        steps = gr.HTML()
        with gr.Row():
            go = gr.Button(_GET_STARTER, variant="primary", scale=0, min_width=260, elem_id="first-step")
    cards = gr.HTML()
    storage_view(shell)
    other_jobs(shell)

    def show() -> tuple[object, ...]:
        done = journey(workbench)
        fetching = done == 0 and bool(workbench.registry.jobs.active())
        button = gr.Button(
            "Getting it …" if fetching else _next_label(workbench, done), interactive=not fetching
        )
        return gr.Column(visible=done < 4), journey_html(done), button, cards_html(workbench)

    shell.refresh(show, [], [first, steps, go, cards])

    @told
    def advance(label: str) -> object:
        if label == _GET_STARTER:
            workbench.models.add("starter")
        elif label == _ADD_SAMPLE:
            workbench.datasets.add_sample()
        elif label == _TRAIN:
            _train_first(workbench)
            return gr.Tabs(selected="train")
        elif label == _WATCH:
            return gr.Tabs(selected="train")
        else:
            return gr.Tabs(selected="playground")
        return gr.skip()

    shell.soon(go.click(advance, go, shell.tabs, **WORKING))


def journey(workbench: Workbench) -> int:
    """How many of the first four steps are done: base, data, adapter, and a chat with it."""
    registry = workbench.registry
    if not registry.names(Base):
        return 0
    if not registry.names(Dataset):
        return 1
    if not registry.names(Adapter):
        return 2
    return 4 if workbench.chats.begun() else 3


def _next_label(workbench: Workbench, done: int) -> str:
    if done == 2 and workbench.registry.runs.active():
        return _WATCH
    return (_GET_STARTER, _ADD_SAMPLE, _TRAIN, _CHAT, _CHAT)[done]


def _train_first(workbench: Workbench) -> Run:
    """Train on the newest base and data with settings for a short try."""
    base, data = workbench.registry.all(Base, limit=1)[0], workbench.registry.all(Dataset, limit=1)[0]
    options = QUICK_OPTIONS if data.name == SAMPLE_NAME else {}
    return workbench.training.start(base.name, data.name, TrainingOptions.parse(options))


def journey_html(done: int) -> str:
    """The card that leads through the first adapter."""
    texts = (
        (
            "A base model",
            "SmolLM2-135M-Instruct, small enough for any machine. Any other model can be added under Models.",
        ),
        ("Data", "62 short conversations in the voice of a sea captain. Your own file goes under Data."),
        ("Training", "Rank 8 on every linear layer, three passes: one to two minutes on two CPU cores."),
        ("Chat", "The base and your adapter answer the same question side by side."),
    )
    items = []
    for index, (title, text) in enumerate(texts):
        kind, mark = ("done", "✓") if index < done else ("next" if index == done else "", str(index + 1))
        items.append(
            f"<li class='{kind}'><span "
            f"class='mark'>{mark}</span><span>{title}<small>{text}</small></span></li>"
        )
    return (
        "<div class='card'><h3>Your first adapter</h3><p class='lead'>Four steps, a few minutes. "
        "The base model stays as it is; what you train is a small adapter beside it.</p>"
        f"<ol class='steps'>{''.join(items)}</ol></div>"
    )


def cards_html(workbench: Workbench) -> str:
    """Hardware, what is kept, and the newest results."""
    status = workbench.engine.status()
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(workbench.settings.home)
    engine = "starts when it is needed" if status is None else ("training" if status["runs"] else "ready")
    machine = facts(
        [
            ("Device", status["device"] if status else "known when the engine has started"),
            ("Engine", engine),
            ("Resident base", status["resident"] or "none yet" if status else "none yet"),
            ("Memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"),
            ("Disk", f"{size(disk.free)} free"),
            ("Home folder", workbench.settings.home),
        ],
        "This machine",
    )
    registry = workbench.registry
    kept = facts(
        [
            ("Base models", len(registry.names(Base))),
            ("Data sets", len(registry.names(Dataset))),
            ("Runs", len(registry.all(Run))),
            ("Adapters", len(registry.names(Adapter))),
        ],
        "Kept here",
    )
    newest = [
        (
            one.name,
            (
                f"loss {number(one.train_loss, 3)}, validation {number(one.validation_loss, 3)}, "
                f"{day(one.created)}"
            ),
        )
        for one in registry.all(Adapter, limit=5)
    ]
    recent = facts(newest or [("None yet", "Train one under Train.")], "Newest adapters")
    return f"<div class='cards'>{machine}{kept}{recent}</div>"
