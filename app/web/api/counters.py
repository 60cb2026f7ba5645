"""What the API has done since it started, in Prometheus' text form."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from app.web.api.waiting_line import WaitingLine

_PREFIX = "lora_workbench_"
Labels = tuple[tuple[str, str], ...]


class Counters:
    """Requests, tokens and seconds, by what they are told apart by."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[Labels, float]] = {name: defaultdict(float) for name in _HELP}

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Count more of one of the figures in _HELP."""
        self._counts[name][tuple(labels.items())] += amount

    def text(self, line: WaitingLine) -> str:
        """All figures, with what runs and waits now."""
        now = {
            "requests_running": ("Requests that are being answered.", len(line.running)),
            "requests_waiting": ("Requests that wait for their turn.", len(line.waiting)),
        }
        parts = [_figure(name, help_, "gauge", [((), value)]) for name, (help_, value) in now.items()]
        for name, counted in self._counts.items():
            values = sorted(counted.items()) or [((), 0)]
            parts.append(_figure(f"{name}_total", _HELP[name], "counter", values))
        return "".join(parts)


_HELP = {
    "requests": "Requests that have ended, by path and status.",
    "prompt_tokens": "Tokens of prompts that were read, by model.",
    "generated_tokens": "Tokens that were generated, by model.",
    "answer_seconds": "Seconds from the arrival of requests to the end of their answers, by model.",
    "first_token_seconds": "Seconds from the arrival of requests to their first tokens, by model.",
    "answers": "Requests whose answers have begun, by model.",
    "cancelled": "Requests whose clients went away before the end, by model.",
}


def _figure(name: str, help_: str, kind: str, values: Sequence[tuple[Labels, float]]) -> str:
    lines = [f"# HELP {_PREFIX}{name} {help_}", f"# TYPE {_PREFIX}{name} {kind}"]
    for labels, value in values:
        said = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
        lines.append(f"{_PREFIX}{name}{'{' + said + '}' if said else ''} {value:.10g}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return re.sub(r'["\\]', r"\\\g<0>", text).replace("\n", r"\n")
