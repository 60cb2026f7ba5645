"""Asking the base and adapters from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from app.cli.common import BaseName, Home, Json, Sampling, base_or_default, open_workbench, sampling
from app.cli.console import Console, guarded
from app.cli.data_sources import TemplateKwargs
from app.service.chats import answer_told
from app.service.workbench import Workbench
from app.shared.bases import base_for
from app.shared.speakers import other_base, speaker_parts


@guarded
def chat(
    prompt: Annotated[str, typer.Option(help="What to ask.")],
    base: BaseName = "",
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="An adapter, a checkpoint of a run (run-3@200, also while it trains), or a blend of such "
            "(a=0.7+b=-0.3); repeat for several side by side. None: the plain base."
        ),
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the likeliest token.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
    option: Sampling = None,
    template_kwargs: TemplateKwargs = "",
    as_trained: Annotated[
        bool,
        typer.Option(
            "--as-trained/--as-said",
            help="Whether adapters are asked with the chat options of the data that they learnt, too.",
        ),
    ] = True,
    home: Home = None,
    json: Json = False,
) -> None:
    """Ask the base, adapters, checkpoints or blends one question.

    With several the plain base answers too, side by side; eight in all.
    """
    config = sampling(
        option,
        greedy,
        max_tokens=max_tokens,
        seed=seed,
        template_kwargs=template_kwargs,
        as_trained=as_trained,
    )
    chosen = list(dict.fromkeys(adapter or []))
    speakers: list[str | None] = [None, *chosen] if len(chosen) != 1 else list(chosen)
    messages = [{"role": "user", "content": prompt}]
    console, workbench, answers = Console(json), open_workbench(home), [""] * len(speakers)
    base = base or _base_of(workbench, chosen) or base_or_default(workbench, "")
    told: list[dict[str, Any]] = [{} for _ in speakers]
    for token in workbench.chats.answer(base, speakers, [messages] * len(speakers), config):
        answers[token.row] += token.text
        told[token.row] |= answer_told(token)
        if len(speakers) == 1:
            console.stream(token.text)
    said = [
        {"adapter": speaker, "answer": answer, "told": one}
        for speaker, answer, one in zip(speakers, answers, told, strict=True)
    ]
    console.answers({"prompt": prompt, "base": base, "answers": said}, streamed=len(speakers) == 1)


def _base_of(workbench: Workbench, chosen: Sequence[str]) -> str:
    """That of the first of these speakers with an adapter in it; empty where there is none."""
    registry = workbench.registry
    for speaker in chosen:
        parts = [] if other_base(registry, speaker) else speaker_parts(registry, speaker)
        if parts:
            return base_for(registry, parts[0].adapter).name
    return ""
