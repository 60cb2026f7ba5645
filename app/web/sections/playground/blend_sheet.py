"""A mixture of adapters, weighed by sliders and heard at once; what sounds right is kept as an adapter."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from app.service.blends import Agreement, mixture, steps_of
from app.service.workbench import Workbench
from app.web.parts.choice import adapters_beside, choice, weighed
from app.web.parts.panes import bar, sheet
from app.web.parts.routes import link
from app.web.parts.shell import QUIET_QUEUED, WORKING, Shell, refusal, told
from app.web.sections.playground.column_fields import ColumnFields
from app.web.sections.playground.who_answers import columns_choices, is_mixture
from core.errors import InvalidConfig
from core.generate.config import GenerationConfig

KEY = "blend"
_METHODS = [
    ("As it was heard: factors side by side (cat)", "cat"),
    ("Smaller: the best of a rank (svd)", "svd"),
]
_PROMPTS = ("How do I cook pasta?", "Tell me about the sea.", "What is a good plan for tomorrow?")


def blend_sheet(shell: Shell, fields: ColumnFields, chat: gr.HTML) -> tuple[gr.HTML, gr.Checkbox]:
    """Lay it out and bind its handlers. Returns the field of adapters and weights, which triggers `submit` as
    they change, and whether the column follows.
    """
    workbench = shell.workbench
    help = "The weighted sum of what the adapters change, heard as a column of its own."
    with sheet(KEY, "Blend", help, beside=True):
        parts = choice(
            "blend",
            "Adapters, each with its weight",
            lambda asked: adapters_beside(workbench.registry, asked),
            placeholder="Add an adapter",
            help="1 takes all of what an adapter changes, a negative weight takes it away.",
            several=True,
        )
        with bar():
            hear = gr.Button("Hear it", variant="primary", size="md", scale=0)
            sweep = gr.Button("Five steps of the first", size="md", scale=0)
        live = gr.Checkbox(
            True, label="While I slide: the column follows and answers the last question again"
        )
        gr.HTML("<h3 class='group-title'>Keep this mixture</h3>")
        name = gr.Textbox(value="", label="Name of the new adapter")
        method = gr.Dropdown(_METHODS, value="cat", label="How", interactive=True)
        rank = gr.Number(0, label="Rank (r)", info="0: the highest of its parts.", precision=0, visible=False)
        with bar():
            keep = gr.Button("Keep and compare", size="md", scale=0)
        kept = gr.HTML()
    method.change(lambda chosen: gr.Number(visible=chosen == "svd"), method, rank)

    def answer(chat_now: str, columns: list[str], config: GenerationConfig) -> None:
        """What is new answers the last question at once, where one was asked."""
        turns = workbench.conversations.turns(int(chat_now or 0))
        new = [one for one in columns if turns and one not in turns[-1].answers]
        if new:
            workbench.conversations.also(int(chat_now), new, config)

    @told
    def heard(chosen: str, chat_now: str, *values: Any) -> object:
        said, new = fields.read(values), [mixture(_weights(chosen))]
        shown = _with(workbench, said.base, said.adapters, new)
        answer(chat_now, new, said.config)
        return shown

    @told
    def swept(chosen: str, chat_now: str, *values: Any) -> object:
        said, new = fields.read(values), steps_of(_weights(chosen))
        shown = _with(workbench, said.base, [], new)
        answer(chat_now, new, said.config)
        return shown

    given = [parts, chat, *fields.inputs]
    hear.click(heard, given, fields.who.adapters, **QUIET_QUEUED)
    sweep.click(swept, given, fields.who.adapters, **QUIET_QUEUED)

    @told
    def kept_as(chosen: str, base_now: str, called: str, how: str, highest: float, chat_now: str) -> str:
        if not called.strip():
            raise refusal("Give the new adapter a name first.")
        weights = _weights(chosen)
        prompts = _questions(workbench, chat_now) or _PROMPTS
        options = {"method": how, "rank": int(highest)}
        found = workbench.blends.keep(base_now, weights, called.strip(), options, prompts)
        return agreement_html(called.strip(), found)

    shell.soon(keep.click(kept_as, [parts, fields.who.base, name, method, rank, chat], kept, **WORKING))
    return parts, live


def moved(
    workbench: Workbench, chosen: str, base: str, columns: list[str] | None
) -> tuple[gr.Dropdown, str, str] | None:
    """Where exactly one mixture is a column: the columns with the one that is weighed now in its place, the
    old one and the new one. None if there is none, or it is that already.
    """
    weights = weighed(chosen)
    old = [one for one in columns or [] if is_mixture(workbench, one)]
    if len(old) != 1 or not weights or mixture(weights) == old[0]:
        return None
    others = [one for one in columns or [] if one != old[0]]
    return _with(workbench, base, others, [mixture(weights)]), old[0], mixture(weights)


def _with(workbench: Workbench, base: str, columns: list[str] | None, new: list[str]) -> gr.Dropdown:
    wanted = list(dict.fromkeys([*(columns or []), *new]))
    return gr.Dropdown(choices=columns_choices(workbench, base, wanted), value=wanted)


def _weights(chosen: str) -> dict[str, float]:
    weights = weighed(chosen)
    if not weights:
        raise InvalidConfig("Choose the adapters of the mixture first.")
    return weights


def _questions(workbench: Workbench, chat: str) -> list[str]:
    turns = workbench.conversations.turns(int(chat)) if chat else []
    return list(dict.fromkeys(turn.question.content for turn in turns))


def agreement_html(name: str, found: Agreement) -> str:
    """What was kept, and how alike it answers."""
    same = f"{found.same} of {found.prompts}" if found.same < found.prompts else f"all {found.prompts}"
    sign = "good" if found.same == found.prompts else "busy"
    return (
        f"<div class='card'><p>Kept as {link(name, 'adapters', name=name)}.</p>"
        f"<p><span class='state {sign}'>{escape(same)} greedy answers the same</span> as the mixture's "
        f"({found.tokens:,} tokens).</p></div>"
    )
