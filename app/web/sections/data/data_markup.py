"""HTML of the Data section: what a file looks like, what was found in it, its versions; all escaped here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any
from urllib.parse import urlencode

from app.service.datasets import BaseCheck, Opened
from app.shared.data_import import Look
from app.web.parts.markup import conversation, day, facts
from app.web.sections.data.charts import table
from core.data.chat_options import ChatOptions
from core.data.detection import Detection
from core.data.findings import ERROR, KINDS, NOTE, Finding, Kind
from storage.tables import Dataset, DatasetVersion

MOST_FINDINGS = 300


def look_html(look: Look) -> str:
    """What a file was found to be, and what to do if that is not clear."""
    detection = look.detection
    lines = [f"<p class='lead'><b>Columns:</b> {escape(', '.join(detection.columns[:20])) or 'none'}</p>"]
    if detection.chosen is not None:
        chosen = detection.chosen
        found = f"{escape(chosen.mapping.format)}</b>, seen by: {escape(chosen.reason)}."
        lines.append(f"<p class='lead'><span class='state good'>sure</span> This is <b>{found}</p>")
    elif detection.candidates:
        lines.append(
            f"<p class='lead'><span class='state busy'>your choice</span> {_why_to_choose(detection)}: "
            "choose below.</p>"
        )
    elif detection.preferences:
        said = "These are no plain answers: nothing is trained on them as they stand."
        lines.append(f"<p class='lead'><span class='state bad'>preferences</span> {said}</p>")
    else:
        said = "No known format has these columns: say below which column is what."
        lines.append(f"<p class='lead'><span class='state bad'>unknown</span> {said}</p>")
    lines += [f"<p class='hint'>{escape(text)}</p>" for text in (*detection.near_misses, *detection.hints)]
    return f"<div class='card'>{''.join(lines)}</div>"


def _why_to_choose(detection: Detection) -> str:
    if len(detection.candidates) > 1:
        return "More than one reading is possible"
    return "This reading leaves something out" if detection.left_out else "This reading is not certain"


def preview_html(rows: Sequence[dict[str, Any]]) -> str:
    """The first rows as a mapping makes them."""
    return conversation(rows) if rows else ""


def about_html(row: Dataset, chat: ChatOptions) -> str:
    """What is known of a data set, and how its conversations are fitted to chat templates."""
    usable = row.rows - row.excluded_rows - row.faulty_rows
    return facts(
        [
            ("Format", row.reason if row.mapping else f"{row.format}: {row.reason}"),
            ("File", row.source_name),
            ("Version", f"{row.version}, {row.digest[:12]}"),
            (
                "Rows",
                f"{row.rows:,}: {usable - row.validation_rows:,} to train on, {row.validation_rows:,} "
                "for validation"
                f"{f', {row.excluded_rows:,} left out' if row.excluded_rows else ''}",
            ),
            (
                "Errors",
                f"{row.faulty_rows:,} rows; training waits until they are mended or left out"
                if row.faulty_rows
                else "none",
            ),
            ("Conversations", chat.sentence()),
            ("Warnings", f"{row.warnings:,}" if row.warnings else "none"),
            ("Added", day(row.created)),
        ],
    )


def kinds_html(opened: Opened, base: BaseCheck | None) -> str:
    """Everything that was found, by kind, with its remedy."""
    counts: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for found in (opened.findings, *([base.findings] if base else [])):
        counts.update(found.counts())
        left_out.update(found.counts(opened.version.excluded))
    hints = "".join(
        f"<p class='hint'>{escape(hint)}</p>" for hint in (opened.summary.hints if opened.summary else ())
    )
    if not counts:
        return (
            "<div class='card'><span class='state good'>clean</span> Nothing was found that needs a "
            f"look.{hints}</div>"
        )
    some_out = any(left_out.values())
    rows = "".join(
        _kind_row(KINDS[code], counts[code], left_out[code], some_out) for code in KINDS if code in counts
    )
    out = "<th>Left out</th>" if some_out else ""
    head = f"<tr><th>Level</th><th>Finding</th><th>Rows</th>{out}<th>What to do</th></tr>"
    return (
        f"<div class='card'><table class='rows kinds{' left-out' if some_out else ''}'><thead>{head}</thead>"
        f"<tbody>{rows}</tbody></table>{hints}</div>"
    )


def _kind_row(kind: Kind, count: int, left_out: int, some_out: bool) -> str:
    """A row of the table; with a column of what is left out where something is."""
    level = "calm" if left_out == count or kind.level == NOTE else "bad" if kind.level == ERROR else "busy"
    cells = f"<td>{count:,}</td>"
    if some_out:
        cells += f"<td>{f'{left_out:,}' if left_out else ''}</td>"
    badge = f"<span class='state {level}'>{kind.level}</span>"
    return f"<tr><td>{badge}</td><td>{escape(kind.title)}</td>{cells}<td>{escape(kind.remedy)}</td></tr>"


def findings_html(opened: Opened, base: BaseCheck | None, codes: Sequence[str], source: str) -> str:
    """Findings by row, the first few hundred."""
    found = [
        one
        for many in (opened.findings, *([base.findings] if base else []))
        for one in many.some(codes, 0, MOST_FINDINGS)
    ]
    total = sum(
        count
        for many in (opened.findings, *([base.findings] if base else []))
        for code, count in many.counts().items()
        if not codes or code in codes
    )
    sources = opened.summary.sources if opened.summary else [source]
    shown = sorted(found, key=lambda finding: finding.index)[:MOST_FINDINGS]
    if not shown:
        return "<p class='hint'>Nothing of this kind.</p>"
    rows = "".join(_finding_row(opened, one, sources) for one in shown)
    head = "<thead><tr><th>Row</th><th>Finding</th><th>Detail</th><th></th></tr></thead>"
    more = (
        f"<p class='hint'>{total - len(shown):,} more; all of them are in the CSV.</p>"
        if total > len(shown)
        else ""
    )
    return f"<table class='rows'>{head}<tbody>{rows}</tbody></table>{more}"


def _finding_row(opened: Opened, one: Finding, sources: Sequence[str]) -> str:
    """One finding; its row is a button that leads to it."""
    place, left_out = "all rows", ""
    if one.index >= 0:
        stored = opened.rows.stored(one.index)
        place = f"<button type='button' class='to-row' data-row='{one.index}'>row {stored.number}</button>"
        place += f" of {escape(sources[stored.file])}" if len(sources) > 1 else ""
        left_out = "left out" if opened.version.excluded[one.index] else ""
    said = f"<td>{escape(one.kind.title)}</td><td>{escape(one.detail)}</td><td>{left_out}</td>"
    return f"<tr><td>{place}</td>{said}</tr>"


def csv_link(row: Dataset, base: str | None = None, length: float | None = None) -> str:
    """Where the whole report can be downloaded."""
    about = urlencode({"base": base, "max_length": int(length)}) if base and length else ""
    return (
        f"<a class='link-button' href='/workbench/data/{row.id}/report.csv?{about}' download>Report "
        "as CSV</a>"
    )


def versions_html(versions: Sequence[DatasetVersion]) -> str:
    """The history of a data set."""
    rows = [
        (
            one.number,
            one.parent or "",
            one.change,
            f"{one.rows:,}",
            f"{one.validation_rows:,}",
            f"{one.excluded_rows:,}",
            day(one.created),
            one.digest[:12],
        )
        for one in versions
    ]
    head = ("Version", "From", "Change", "Rows", "Validation", "Left out", "When", "Digest")
    return f"<div class='card wide'>{table(head, rows)}</div>"
