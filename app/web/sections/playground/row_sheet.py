"""A good answer becomes a row of a data set, corrected by hand if wanted."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.service.turns import messages_for
from app.service.workbench import Workbench
from app.web.parts.panes import bar, close_sheet, sheet
from app.web.parts.shell import WORKING, Shell, choose_from, inform, refusal, told
from storage.tables import ChatMessage, Dataset

KEY = "keep-row"
_NEW = "A new data set"


def row_sheet(shell: Shell) -> list[Any]:
    """Lay it out. Returns what `filled` fills: the message it is of, question and answer."""
    workbench = shell.workbench
    with sheet(
        KEY, "Keep as a row", "Question and answer become a row to train on; correct them first if need be."
    ):
        of = gr.Number(visible=False)
        question = gr.Textbox(value="", label="Question", lines=3, max_lines=8)
        answer = gr.Textbox(value="", label="Answer", lines=8, max_lines=20)
        before = gr.Checkbox(True, label="With what was said before it")
        dataset = gr.Dropdown([_NEW], value=_NEW, label="Into", interactive=True)
        name = gr.Textbox(value="", label="Name of the new data set")
        with bar():
            keep = gr.Button("Keep it", variant="primary", size="md", scale=0)

    def show(chosen: str) -> object:
        names = [row.name for row in workbench.registry.all(Dataset)]
        return choose_from([_NEW, *names], chosen, _NEW)

    shell.refresh(show, [dataset], [dataset])
    dataset.change(lambda chosen: gr.Textbox(visible=chosen == _NEW), dataset, name)

    @told
    def kept(message: float, asked: str, said: str, whole: bool, into: str, called: str) -> None:
        turns = _turns(workbench, int(message), asked, said, whole)
        if into == _NEW:
            if not called.strip():
                raise refusal("Give the new data set a name, or choose one that is there.")
            row = workbench.datasets.begin(called.strip(), turns)
        else:
            row = workbench.datasets.append(into, turns)
        inform(
            f"{row.name} has {row.rows:,} row{'' if row.rows == 1 else 's'} now, in version {row.version}."
        )

    done = keep.click(kept, [of, question, answer, before, dataset, name], None, **WORKING)
    close_sheet(done, KEY)
    shell.soon(done)
    return [of, question, answer]


def filled(workbench: Workbench, message_id: int) -> tuple[object, ...]:
    """The sheet's fields for one answer."""
    answer = workbench.registry.get(ChatMessage, message_id)
    _, turn = workbench.conversations.until(answer.chat_id, message_id)
    return message_id, turn.question.content, answer.content.strip()


def _turns(
    workbench: Workbench, message_id: int, asked: str, said: str, whole: bool
) -> list[tuple[str, str]]:
    answer = workbench.registry.get(ChatMessage, message_id)
    before, _ = workbench.conversations.until(answer.chat_id, message_id)
    system = workbench.conversations.system(answer.chat_id)
    messages = messages_for(system, before if whole else [], answer.speaker, asked)
    return [*((one["role"], one["content"]) for one in messages), ("assistant", said)]
