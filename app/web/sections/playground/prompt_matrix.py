"""What was answered to prompts, as a table to read: a line for each prompt, a column for each who has
answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from app.jobs.kinds.run_prompts import REFUSED
from app.service.prompt_sets import CSV, JSONL, MARKDOWN, Matrix
from app.service.prompt_texts import said
from app.web.parts.markup import empty
from storage.tables import PromptAnswer

PER_PAGE = 50
_SHORT = 180  # characters that are read at a glance; the rest opens
_NONE = "Nothing has been answered yet. Write prompts above, and have them answered."
_WORDS = {CSV: "CSV", MARKDOWN: "Markdown", JSONL: "JSON lines"}


def matrix_html(matrix: Matrix | None, page: int) -> str:
    """A page of it, from 1."""
    if matrix is None:
        return empty(_NONE)
    first = (page - 1) * PER_PAGE
    shown = list(enumerate(zip(matrix.run.prompts, matrix.cells, strict=True)))[first : first + PER_PAGE]
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in matrix.names)
    body = "".join(
        f"<tr><th scope='row'>{_folded(f'{at + 1}. {said(turns)}')}</th>{_cells(cells)}</tr>"
        for at, (turns, cells) in shown
    )
    whole = len(matrix.cells) * len(matrix.names)
    return (
        f"<p class='hint' role='status'>{matrix.answered:,} of {whole:,} answered.</p>"
        "<div class='wide' tabindex='0' role='region' aria-label='Answers'><table class='rows prompt-matrix'>"
        f"<thead><tr><th scope='col'>Prompt</th>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def exports_html(number: int) -> str:
    """Links to all answers of a run in each form."""
    links = "".join(
        f"<a class='link-button' href='/workbench/prompts/{number}/answers.{form}' download>{words}</a>"
        for form, words in _WORDS.items()
    )
    return f"<div class='judge-links'>{links}</div>"


def _cells(cells: Sequence[PromptAnswer | None]) -> str:
    return "".join(f"<td>{_cell(one)}</td>" for one in cells)


def _cell(one: PromptAnswer | None) -> str:
    if one is None:
        return "<span class='quiet'>not yet</span>"
    if one.finish == REFUSED:
        return f"<span class='fault'>{escape(one.text)}</span>"
    return _folded(one.text) if one.text.strip() else "<span class='quiet'>answered nothing</span>"


def _folded(text: str) -> str:
    """Text whose beginning is shown; the rest opens."""
    if len(text) <= _SHORT:
        return f"<div class='said-whole'>{escape(text)}</div>"
    return (
        f"<details><summary>{escape(text[:_SHORT].rstrip())} …</summary>"
        f"<div class='said-whole'>{escape(text)}</div></details>"
    )
