"""A list whose chosen row is shown beside it. It asks for its rows by itself, a page at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import gradio as gr

from app.web.parts.scripts import script
from app.web.parts.shell import Shell


@dataclass(frozen=True)
class Row:
    """A line of a list."""

    key: str
    """What stands for it in the address bar, and is the list's value when it is chosen."""
    title: str
    sub: str = ""
    """What is said below the title."""
    figure: str = ""
    """What is said at the right, such as a loss."""
    mark: str = ""
    """A sign before the title, such as a star."""
    badges: tuple[tuple[str, str], ...] = ()
    """Words with their colour: good, bad, busy or calm."""
    share: float | None = None
    """How far it is, from 0 to 1, drawn as a bar."""
    group: str = ""
    """Rows of one group stand together under its name, and can be folded away."""


@dataclass(frozen=True)
class Facet:
    """A choice that narrows a list down, or orders it; its first choice is the one that it begins with."""

    name: str
    label: str
    choices: Sequence[tuple[str, str]]
    """Value and words of each."""


@dataclass(frozen=True)
class Query:
    """What a list asks for: rows that hold the words, by the facets' values, `most` of them from `start`
    on.
    """

    words: str = ""
    facets: dict[str, str] = field(default_factory=dict)
    start: int = 0
    most: int = 100


@dataclass(frozen=True)
class Rows:
    """An answer: one page of rows, and how many there are in all."""

    rows: Sequence[Row]
    total: int
    facets: Sequence[Facet] = ()


def picker(
    shell: Shell,
    section: str,
    title: str,
    find: Callable[[Query], Rows],
    nothing: str,
    *,
    search: str = "Search",
    several: bool = False,
    opens_first: bool = True,
) -> gr.HTML:
    """The list. Its value is the key of the chosen row, or with `several` all of them with commas between.

    Where nothing is chosen the first row is, unless that is not wanted (opens_first).

    What the section shows of the chosen one is bound with `shell.refresh`, with the list among the inputs. A
    handler that gives the list another key, such as after renaming, chooses that.
    """

    def rows(asked: dict[str, Any]) -> dict[str, Any]:
        facets = {str(key): str(value) for key, value in asked["facets"].items()}
        found = find(Query(str(asked["words"]), facets, int(asked["from"]), min(int(asked["most"]), 1000)))
        return {
            "rows": [asdict(row) for row in found.rows],
            "total": found.total,
            "facets": [asdict(one) for one in found.facets],
        }

    made = gr.HTML(
        value="",
        label=title,
        html_template="<div class='picker-slot'></div>",
        js_on_load=script(
            "picker.js",
            section=section,
            title=title,
            search=search,
            several=several,
            nothing=nothing,
            opensFirst=opens_first,
        ),
        server_functions=[rows],
        elem_id=f"list-{section}",
        elem_classes="picker-block",
    )
    shell.also_after(made.submit)
    return made


def matching(rows: Sequence[Row], query: Query) -> Rows:
    """Those of all rows that hold every word, cut to the page that is asked for."""
    words = query.words.lower().split()
    found = [row for row in rows if all(word in f"{row.title} {row.sub}".lower() for word in words)]
    return Rows(found[query.start : query.start + query.most], len(found))
