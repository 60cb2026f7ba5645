"""What was measured of an adapter's speed, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from app.service.costs import latency_rows
from app.web.parts.job_result import said_of
from app.web.parts.markup import day, empty
from storage.tables import Job

_HEAD = "<th>Answers at once</th><th>Time of</th>" + "".join(
    f"<th class='number'>{one}</th>" for one in ("Base", "Base + adapter", "Merged", "Rounds differ by")
)
_NOTHING = "Not measured yet. It takes a minute on a CPU; a training that is under way is waited for."


def latency_html(job: Job | None) -> str:
    """A measuring that is under way, or its figures, or that there is none."""
    if job is None:
        return empty(_NOTHING)
    if said := said_of(job):
        return said
    result = job.result
    lines = "".join(map(_line, latency_rows(result)))
    return (
        f"<div class='wide' tabindex='0'><table class='rows'><thead><tr>{_HEAD}</tr></thead>"
        f"<tbody>{lines}</tbody></table></div>"
        f"<p class='hint'>{escape(result['adapter'])} on {escape(result['device'])}, "
        f"{escape(result['dtype'])}, {day(job.ended)}: medians, all three in turns, behind prompts of "
        f"{result['loads'][0]['prompt']} tokens. Merged is as quick as the base where it differs by no more "
        "than the rounds do.</p>"
    )


def _line(row: Mapping[str, Any]) -> str:
    cells = "".join(
        f"<td class='number'>{row[f'{way}_ms']:,.1f} ms "
        f"<span class='quiet'>× {row[f'{way}_ratio']:.2f}</span></td>"
        for way in ("adapter", "merged")
    )
    base = f"<td class='number'>{row['base_ms']:,.1f} ms</td>"
    spread = f"<td class='number'>{row['spread']:.0%}</td>"
    return f"<tr><td>{row['rows']}</td><td>{row['time']}</td>{base}{cells}{spread}</tr>"
