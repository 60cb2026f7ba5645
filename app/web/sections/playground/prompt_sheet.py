"""The playground's sheet of prompt sets: writing them, having them answered, and judging the answers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.components import Component

from app.service.workbench import Workbench
from app.shared.speakers import PLAIN_BASE
from app.web.parts.job_result import said_of
from app.web.parts.markup import day
from app.web.parts.panes import ask_first, bar, opener, require_same, sheet
from app.web.parts.routes import wish
from app.web.parts.shell import FOLLOWING, QUIET, WORKING, Shell, choose_from, inform, refusal, told
from app.web.sections.playground.ballot_sheet import opened
from app.web.sections.playground.column_fields import sampling_of
from app.web.sections.playground.prompt_matrix import PER_PAGE, exports_html, matrix_html
from app.web.sections.playground.prompt_set_form import NEW, kept, set_form, sets_update

KEY = "prompts"
_REMOVE = "Remove …"
_HELP = (
    "Lists of prompts that are kept, and answered by all that are judged as a job: close the page, and it "
    "goes on. Each answer is kept at once."
)
_OPEN = f"asked => {{ if (asked) window.workbench.openSheet('{KEY}'); }}"


def prompt_sheet(
    shell: Shell, base: gr.Dropdown, columns: gr.Dropdown, sampling: Mapping[str, Component], view: gr.HTML
) -> None:
    """Lay it out and bind its handlers. base and columns say who answers; view is the sheet of answers."""
    workbench = shell.workbench
    with sheet(KEY, "Prompt sets", _HELP):
        form = set_form(shell, base, columns)
        gr.HTML("<h3 class='group-title'>Answers</h3>")
        remove_run, run = _reading(shell, view)
    written = [form.chosen, form.name, form.text]

    @told
    def begin(
        now: str, wanted: str, prompts: str, base: str | None, columns: list[str], **values: Any
    ) -> tuple[object, ...]:
        if not base:
            raise refusal("Choose a base model under Judge first.")
        found, speakers = kept(workbench, now, wanted, prompts), [to_speaker(one) for one in columns or []]
        begun, _ = workbench.prompts.start(found, base, speakers, sampling_of(values))
        inform(f"{found} is being answered; its progress is shown at the top.", "Prompt set")
        return sets_update(workbench, found), gr.Dropdown(choices=run_choices(workbench), value=begun.id)

    given = {"now": form.chosen, "wanted": form.name, "prompts": form.text, "base": base, "columns": columns}
    shell.soon(
        form.answer.click(begin, None, [form.chosen, run], inputs_kwargs={**given, **sampling}, **WORKING)
    )

    def drop_set(asked: int | None, now: str, *written: str) -> tuple[object, ...]:
        require_same(now, asked, workbench.prompts.find(now).id)
        workbench.prompts.remove(now)
        return sets_update(workbench, NEW), "", ""

    def set_id(now: str, *written: str) -> int | None:
        if now == NEW:
            raise refusal("Choose the set to remove first.")
        return workbench.prompts.find(now).id

    question = "Remove this prompt set? What was answered to its prompts stays."
    dropped = ask_first(
        "remove-prompts", _REMOVE, question, set_id, drop_set, written, written, asks=form.remove
    )

    def drop_run(asked: int | None, now: int | None) -> None:
        require_same("This choice", asked, now)
        workbench.prompts.remove_run(_required(now))

    question = "Remove these answers? Votes on them stay."
    cleared = ask_first("remove-answers", _REMOVE, question, _required, drop_run, [run], asks=remove_run)
    for event in (dropped, cleared):
        event.success(None, None, None, js=f"() => window.workbench.openSheet('{KEY}')", **QUIET)
        shell.soon(event)


def _reading(shell: Shell, view: gr.HTML) -> tuple[gr.Button, gr.Dropdown]:
    """The matrix of a run, and what can be done with it. Returns the button that asks to remove it, and the
    choice of it.
    """
    workbench = shell.workbench
    with gr.Row(elem_classes="asked"):
        run = gr.Dropdown([], label="Answered", interactive=True, scale=4, elem_id="prompt-run")
        page = gr.Number(1, label="Page", precision=0, minimum=1, scale=1, visible=False)
    with bar():
        judge = gr.Button("Judge them, blind", variant="primary", size="md", scale=0)
        go_on = gr.Button("Answer what is missing", size="md", scale=0)
        remove = opener("remove-answers", "Remove the answers …", variant="stop")
    said, matrix, links = gr.HTML(), gr.HTML(), gr.HTML()
    opening = gr.Textbox(visible=False)

    def show(now: int | None, at: int | None) -> tuple[object, ...]:
        offered = run_choices(workbench)
        numbers = [number for _, number in offered]
        shown = now if now in numbers else next(iter(numbers), None)
        return choose_from(offered, now), *_of_run(workbench, shown, int(at or 1))

    outputs = [run, said, matrix, links, page, go_on, judge]
    shell.refresh(show, [run, page], outputs)
    gr.on(
        [run.input, page.input],
        lambda now, at: _of_run(workbench, now, int(at or 1)),
        [run, page],
        outputs[1:],
        **FOLLOWING,
    )

    @told
    def put(now: int | None) -> str:
        return opened(workbench.prompts.following(_required(now)))

    judge.click(put, run, view, **WORKING)

    @told
    def more(now: int | None) -> None:
        workbench.prompts.go_on(_required(now))

    shell.soon(go_on.click(more, run, None, **WORKING))

    def wished(number: str) -> tuple[object, ...]:
        found = int(number) if number.isdigit() else None
        return (
            gr.Dropdown(choices=run_choices(workbench), value=found),
            *_of_run(workbench, found, 1),
            f"{number} {time.time()}",
        )

    asked = wish("playground", KEY)
    asked.submit(wished, asked, [*outputs, opening], **WORKING)
    opening.change(None, opening, None, js=_OPEN)
    return remove, run


def run_choices(workbench: Workbench) -> list[tuple[str, int]]:
    """All runs, the newest first, with what tells them apart."""
    return [
        (f"{one.id}: {one.set_name} on {one.base_name}, {day(one.created)}", one.id or 0)
        for one in workbench.prompts.runs()
    ]


def _of_run(workbench: Workbench, number: int | None, page: int) -> tuple[object, ...]:
    """What is shown of a run: where its job is, its matrix, its exports, and which buttons make sense."""
    if number is None:
        nothing = matrix_html(None, 1)
        return "", nothing, "", gr.Number(visible=False), *[gr.Button(interactive=False)] * 2
    found = workbench.prompts.matrix(number)
    pages = -(-len(found.cells) // PER_PAGE)
    under_way = found.job is not None and found.job.active
    left = workbench.prompts.left_to_judge(found)
    return (
        said_of(found.job),
        matrix_html(found, min(page, pages)),
        exports_html(number),
        gr.Number(visible=pages > 1, maximum=pages, label=f"Page of {pages}"),
        gr.Button(interactive=not under_way and (not found.is_whole or found.refused > 0)),
        gr.Button(interactive=left > 0),
    )


def to_speaker(name: str) -> str | None:
    """Who a name in a list of columns stands for."""
    return None if name == PLAIN_BASE else name


def _required(number: int | None) -> int:
    if number is None:
        raise refusal("Nothing has been answered yet; have a set answered first.")
    return number
