"""A field that finds one adapter among thousands, or several with a weight each."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from app.web.parts.scripts import script
from storage.adapters import AdapterQuery
from storage.errors import NotFound
from storage.registry import Registry
from storage.tables import Adapter

_MOST = 50


@dataclass(frozen=True)
class Asked:
    """What a field asks for: what holds the words, beside what the address names and what it holds
    already.
    """

    words: str
    section: str
    name: str
    taken: tuple[str, ...]


Find = Callable[[Asked], list[tuple[str, str]]]
"""Names, each with a few words about it."""


def choice(
    kept: str,
    label: str,
    find: Find,
    *,
    help: str = "",
    placeholder: str = "Type to find one",
    optional: bool = False,
    several: bool = False,
    opens_with: tuple[str, str] = ("", ""),
) -> gr.HTML:
    """The field, whose value is the chosen name, or with `several` what `weighed` reads. It triggers `submit`
    when that changes, and keeps it under the key `kept` as long as the window is open.

    opens_with: a sheet, and a section whose chosen one it begins with when that sheet opens and nothing is
    chosen yet.
    """

    def offer(asked: dict[str, Any]) -> list[tuple[str, str]]:
        given = {key: str(asked.get(key) or "") for key in ("words", "section", "name")}
        return find(Asked(**given, taken=tuple(map(str, asked["taken"]))))

    return gr.HTML(
        value="",
        label=label,
        html_template="<div class='choice-slot'></div>",
        js_on_load=script(
            "choice.js",
            label=label,
            kept=kept,
            help=help,
            placeholder=placeholder,
            optional=optional,
            several=several,
            opensWith=opens_with[0],
            section=opens_with[1],
        ),
        server_functions=[offer],
        elem_classes="choice-block",
        elem_id=f"choose-{kept}",
    )


def weighed(value: str) -> dict[str, float]:
    """The weight of each that was chosen, by name."""
    return {str(one["name"]): float(one["weight"]) for one in json.loads(value or "[]")}


def adapter_called(registry: Registry, name: str) -> Adapter | None:
    """The adapter of this name, if it has not been removed or renamed meanwhile, here or elsewhere."""
    try:
        return registry.find(Adapter, name) if name else None
    except NotFound:
        return None


def adapters_like(registry: Registry, words: str, fingerprint: str = "") -> list[tuple[str, str]]:
    """The newest adapters that hold the words, of one base if a fingerprint is given, as choices."""
    rows, _ = registry.adapters.search(AdapterQuery(words=words, fingerprint=fingerprint), _MOST)
    return [(row.name, f"{row.base_name} · {row.rank_in_words} · {row.source}") for row in rows]


def adapters_beside(registry: Registry, asked: Asked) -> list[tuple[str, str]]:
    """Adapters of the base of those that are taken already, or of any, as choices."""
    first = adapter_called(registry, asked.taken[0] if asked.taken else "")
    found = adapters_like(registry, asked.words, first.base_fingerprint if first else "")
    return [one for one in found if one[0] not in asked.taken]
