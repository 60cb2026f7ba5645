"""All training options as the page lays them out: the common ones, then the others under their subjects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from app.web.parts.scripts import script
from core.lora.kinds import ADAPTER_KINDS, AdapterKind
from core.options import Option
from core.train.objectives import OBJECTIVES, Objective
from core.train.training_options import by_subject, heads

COMMON = "Common options"
_PICKED = "target_modules"  # wide, so it stands below the others
_CHOICES: Mapping[str, Callable[[], Mapping[str, AdapterKind | Objective]]] = {
    "kind": ADAPTER_KINDS.all,
    "objective": OBJECTIVES.all,
}


def options_panel() -> gr.HTML:
    """The options as fields, with pickers where a text would name several things, and values to sweep.

    Its value is what FormValues writes; `submit` tells that it has changed.
    """
    return gr.HTML(
        value="",
        label="Options",
        html_template="<div class='options-slot'></div>",
        js_on_load=script("option_pickers.js", "options.js", groups=groups()),
        elem_id="train-options",
        elem_classes="options-block",
    )


def groups() -> list[dict[str, Any]]:
    """Headings with the options below each, as the page needs them. A kind that is the only one is not asked
    for.
    """
    own = _owners()
    asked = {
        subject: [one for one in options if len(_choices(one)) != 1]
        for subject, options in by_subject().items()
    }
    common = sorted(
        (one for options in asked.values() for one in options if one.common),
        key=lambda one: one.name == _PICKED,
    )
    rest = {subject: [one for one in options if not one.common] for subject, options in asked.items()}
    return [
        {"subject": subject, "options": [_described(one, own) for one in options]}
        for subject, options in ({COMMON: common} | rest).items()
        if options
    ]


def _owners() -> dict[str, tuple[str, str]]:
    """By own option: the option that chooses its kind, and the kind."""
    return {
        option.name: (chooser, head.name) for chooser, _, head in heads() for option in head.options.options()
    }


def _described(option: Option, own: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    numbers = option.kind in (int, float) and (option.minimum is not None or option.maximum is not None)
    return {
        "name": option.name,
        "label": option.label,
        "help": option.help.partition(". ")[0] + "." if option.several else option.help,
        "unit": "" if option.unit in option.label.lower() else option.unit,
        "kind": option.kind.__name__,
        "default": option.default,
        "minimum": option.minimum,
        "maximum": option.maximum,
        "range": option.range_text() if numbers else "",
        "choices": _choices(option),
        "lines": option.lines,
        "several": option.several,
        "picker": "targets" if option.name == _PICKED else "",
        "only": own.get(option.name),
    }


def _choices(option: Option) -> list[tuple[str, str, str]]:
    """Value, words and help of each."""
    if option.name in _CHOICES:
        return [(name, head.label, head.help) for name, head in _CHOICES[option.name]().items()]
    return [(value, value, "") for value in option.listed]
