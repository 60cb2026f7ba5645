"""The playground's sheet to begin judging: who is asked and what, the leaderboard, and the votes to take
along.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

from app.service.chats import MAX_SIDE_BY_SIDE
from app.service.vote_rows import PAIRS, VOTES
from app.service.workbench import Workbench
from app.shared.speakers import PLAIN_BASE
from app.web.parts.panes import bar, opener, sheet
from app.web.parts.shell import FOLLOWING, QUIET, WORKING, Shell, inform, offered, refusal, told, values_of
from app.web.sections.playground.ballot_sheet import KEY as BALLOT
from app.web.sections.playground.ballot_sheet import ballot_sheet, opened
from app.web.sections.playground.column_fields import sampling_of
from app.web.sections.playground.leaderboard import leaderboard_html
from app.web.sections.playground.prompt_sheet import KEY as PROMPTS
from app.web.sections.playground.prompt_sheet import prompt_sheet, to_speaker
from app.web.sections.playground.who_answers import (
    adapters_for,
    base_to_begin_with,
    columns_choices,
    writing_bases,
)
from storage.tables import Adapter, Base

KEY = "judge"
_HELP = (
    "Several answer the same prompt, and you say which answer is best, without knowing whose it is. The "
    "votes become a leaderboard of the base, and a data set if you like."
)
_FORMS = {VOTES: "All votes (JSONL)", PAIRS: "Chosen and rejected answers (JSONL)"}


def judge_sheet(
    shell: Shell, button: gr.Button, chosen: Sequence[Component], sampling: Mapping[str, Component]
) -> None:
    """Lay it out and bind its handlers.

    button: the one that opens it. chosen: the playground's base and columns, which it begins with. sampling:
    the fields of a GenerationConfig, by name.
    """
    workbench = shell.workbench
    with sheet(KEY, "Judge answers", _HELP):
        prompt = gr.Textbox(
            label="First prompt",
            lines=2,
            max_lines=10,
            placeholder="Shift+Enter asks, Enter breaks the line.",
        )
        system = gr.Textbox(label="System prompt (may be empty)", lines=1, max_lines=6)
        with gr.Row(elem_classes="judge-who"):
            base = gr.Dropdown([], label="Base model", interactive=True, scale=1, elem_id="judge-base")
            columns = gr.Dropdown(
                [],
                label="Who is judged (two to eight)",
                info="A checkpoint is typed as run-3@200, a blend as a=0.7+b=0.3.",
                multiselect=True,
                max_choices=MAX_SIDE_BY_SIDE,
                allow_custom_value=True,
                interactive=True,
                scale=3,
                elem_id="judge-columns",
            )
        with bar():
            ask = gr.Button("Ask and judge", variant="primary", size="md", scale=0)
            opener(BALLOT, "Back to the last answers")
            opener(PROMPTS, "Prompt sets …")
            blind = gr.Checkbox(
                True, label="Blind: names are hidden until the vote", scale=0, min_width=280, container=False
            )
        gr.HTML("<h3 class='group-title'>Leaderboard</h3>")
        board = gr.HTML()
        with gr.Row(elem_classes="asked"):
            name = gr.Textbox(label="Name of a data set of the chosen answers", scale=3)
            make = gr.Button("Make the data set", size="md", scale=0)
        links = gr.HTML()
    view = ballot_sheet(workbench)
    prompt_sheet(shell, base, columns, sampling, view)

    kept = shell.kept["judge"]

    def show(base_now: str | None, columns_now: list[str] | None, before: str) -> tuple[object, ...]:
        """What there is to choose from; on a page that was loaded anew what was chosen before."""
        shown, system_now = (base_now, columns_now), gr.skip()
        if not base_now and before:
            base_now, columns_now, system_now = json.loads(before)
        found = base_to_begin_with(workbench, base_now)
        return (
            offered(writing_bases(workbench), found, shown[0]),
            *_of_base(workbench, found, columns_now, shown[1]),
            system_now,
        )

    shell.refresh(show, [base, columns, kept], [base, columns, board, links, system])
    gr.on(
        [base.change, columns.change, system.change],
        None,
        [base, columns, system, kept],
        kept,
        js="(...chosen) => chosen[0] ? JSON.stringify(chosen.slice(0, 3)) : chosen[3]",
        show_progress="hidden",
    )

    def show_of(base_now: str | None, columns_now: list[str] | None) -> tuple[object, ...]:
        return _of_base(workbench, base_now, columns_now, columns_now)

    base.input(show_of, [base, columns], [columns, board, links], **FOLLOWING)

    def begin(base_now: str | None, *columns_now: list[str] | None) -> tuple[object, ...]:
        """With the playground's choice, where nothing else was chosen here; or what that begins with."""
        taken, own = [list(one or []) for one in columns_now]
        base_now = base_to_begin_with(workbench, base_now)
        still = [one for one in own if one in values_of(choices_on(workbench, base_now, own))]
        taken = [one for one in taken if one in values_of(choices_on(workbench, base_now, taken))]
        taken = taken or adapters_for(workbench, base_now)[:1]
        wanted = still if len(still) > 1 else list(dict.fromkeys([PLAIN_BASE, *taken]))
        chosen = gr.Dropdown(choices=writing_bases(workbench), value=base_now)
        return chosen, *_of_base(workbench, base_now, wanted, own)

    button.click(begin, [*chosen, columns], [base, columns, board, links], **QUIET)

    @told
    def put(
        base: str | None, columns: list[str] | None, system: str, prompt: str, blind: bool, **values: Any
    ) -> tuple[object, ...]:
        if not base:
            raise refusal("Add a base model that writes text first, under Models.")
        speakers = [to_speaker(one) for one in columns or []]
        ballot = workbench.judging.ask(
            base, speakers, conversation(system, prompt), sampling_of(values), blind=blind
        )
        return opened(ballot), ""

    given = {"base": base, "columns": columns, "system": system, "prompt": prompt, "blind": blind}
    gr.on(
        [ask.click, prompt.submit], put, None, [view, prompt], inputs_kwargs={**given, **sampling}, **WORKING
    )

    @told
    def to_data(base_now: str | None, wanted: str) -> str:
        inform(workbench.votes.to_data(wanted, base_now or "").sentence, "Data set made")
        return ""

    make.click(to_data, [base, name], name, concurrency_id="control", **WORKING)


def conversation(system: str, prompt: str) -> list[dict[str, str]]:
    """The turns to answer."""
    said = [{"role": "system", "content": system.strip()}] if system.strip() else []
    return [*said, {"role": "user", "content": prompt}]


def choices_on(workbench: Workbench, base: str | None, chosen: list[str] | None) -> list[tuple[str, str]]:
    """Who can be judged on this base: the plain base, its adapters and checkpoints, and what is chosen
    already and can answer on it.
    """
    others = [one for one in chosen or [] if one != PLAIN_BASE]
    return [(PLAIN_BASE, PLAIN_BASE), *columns_choices(workbench, base, others, others=False)] if base else []


def _of_base(
    workbench: Workbench, base: str | None, columns: list[str] | None, shown: list[str] | None
) -> tuple[object, ...]:
    """Who can be judged on it, of whom these are chosen now that are there; its leaderboard, and its votes to
    take along.
    """
    there, board = choices_on(workbench, base, columns), workbench.judging.leaderboard(base) if base else []
    wanted = [one for one in columns or [] if one in values_of(there)]
    links = links_html(workbench.registry.find(Base, base)) if base and board else ""
    table = leaderboard_html(board, workbench.registry.names(Adapter))
    return offered(there, wanted, shown or []), table, links


def links_html(row: Base) -> str:
    """Links to the votes on a base."""
    links = (
        f"<a class='link-button' href='/workbench/votes/{row.id}/{form}.jsonl' download>{words}</a>"
        for form, words in _FORMS.items()
    )
    return f"<div class='judge-links'>{''.join(links)}</div>"
