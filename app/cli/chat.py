"""Asking the base and adapters from the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.common import BaseName, Home, Json, base_or_default, open_workbench
from app.cli.console import Console, guarded
from core.generate.config import GenerationConfig


@guarded
def chat(
    prompt: Annotated[str, typer.Option(help="What to ask.")],
    base: BaseName = "",
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="An adapter; repeat for several side by side. None: the plain base."),
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the likeliest token.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
    home: Home = None,
    json: Json = False,
) -> None:
    """Ask the base or adapters one question.

    With several adapters the plain base answers too, side by side.
    """
    config = GenerationConfig.parse(
        {"max_tokens": max_tokens, "seed": seed, **({"temperature": 0} if greedy else {})}
    )
    chosen = list(dict.fromkeys(adapter or []))
    speakers: list[str | None] = [None, *chosen] if len(chosen) != 1 else list(chosen)
    messages = [{"role": "user", "content": prompt}]
    console, workbench, answers = Console(json), open_workbench(home), [""] * len(speakers)
    base = base_or_default(workbench, base)
    for token in workbench.chats.answer(base, speakers, [messages] * len(speakers), config):
        answers[token.row] += token.text
        if len(speakers) == 1:
            console.stream(token.text)
    said = [{"adapter": speaker, "answer": answer} for speaker, answer in zip(speakers, answers, strict=True)]
    console.answers({"prompt": prompt, "base": base, "answers": said}, streamed=len(speakers) == 1)
