"""Classifying texts from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.cli.common import Home, Json, open_workbench
from app.cli.console import Console, guarded
from app.service.classifiers import CUT, Told
from app.shared.text import lines_of
from core.errors import InvalidInput

_SHOWN = 10  # labels of each text, for people


@guarded
def classify(
    text: Annotated[list[str] | None, typer.Option(help="A text to classify; repeat for several.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="A file with a text to classify in each line; empty ones are left out.", exists=True
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="An adapter; repeat for several side by side.")
    ] = None,
    base: Annotated[
        str, typer.Option(help="A base; without adapters the head that its own files hold is asked.")
    ] = "",
    home: Home = None,
    json: Json = False,
) -> None:
    """Tell the labels of texts, with the probability of each, by adapters that were trained to classify."""
    lines = _lines(file)
    texts = [*(text or []), *lines.values()]
    workbench, console = open_workbench(home), Console(json)
    found = workbench.classifiers.classify(texts, list(dict.fromkeys(adapter or [])), base)
    if json:
        numbers = [*(None for _ in text or []), *lines]
        content = [_content(number, row) for number, row in zip(numbers, found, strict=True)]
        console.result({"texts": content}, [])
        return
    for row in found:
        console.say(row[0].text)
        if row[0].cut:
            console.say(CUT)
        console.records(_table(row))


def _lines(path: Path | None) -> dict[int, str]:
    """By their number in the file. Raises InvalidInput."""
    if path is None:
        return {}
    try:
        return {
            number: line
            for number, line in enumerate(lines_of(path.read_text(encoding="utf-8-sig")), 1)
            if line.strip()
        }
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} is not UTF-8 text; save it as UTF-8.") from None


def _content(line: int | None, row: list[Told]) -> dict[str, object]:
    place: dict[str, object] = {} if line is None else {"line": line}
    told = [_record(one) for one in row]
    return {"text": row[0].text, **place, "cut": row[0].cut, "told": told}


def _record(told: Told) -> dict[str, object]:
    return {
        "adapter": told.adapter,
        "answer": told.answer,
        "problem_type": told.problem_type,
        "probabilities": told.probabilities,
    }


def _table(row: list[Told]) -> list[dict[str, str]]:
    """The likeliest labels of one text, each with every adapter's probability."""
    labels: dict[str, float] = {}
    for one in row:
        for label, share in one.probabilities.items():
            labels[label] = max(share, labels.get(label, share))
    shown = sorted(labels, key=labels.__getitem__, reverse=True)[:_SHOWN]
    return [
        {"label": label}
        | {one.adapter or "its own head": _figure(one, one.probabilities.get(label)) for one in row}
        for label in shown
    ]


def _figure(told: Told, share: float | None) -> str:
    if share is None:
        return ""
    return f"{share:.4g}" if told.problem_type == "regression" else f"{100 * share:.1f} %"
