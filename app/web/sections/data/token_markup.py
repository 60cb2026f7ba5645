"""HTML of what a base makes of the rows: tokens, lengths, the chat template. All of it escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from app.web.parts.markup import facts, number
from app.web.sections.data.charts import table

_TITLES = {"truncate": "truncate: cut off", "split": "split: several rows", "drop": "drop: left out"}


def tokens_html(view: dict[str, Any]) -> str:
    """A row's tokens, sequence by sequence, and what was done to its turns."""
    notes = "".join(f"<p class='hint'>{escape(note)}</p>" for note in view["notes"])
    several = len(view["sequences"])
    return notes + "".join(
        (f"<h5>Sequence {number} of {several}</h5>" if several > 1 else "") + _sequence_html(one)
        for number, one in enumerate(view["sequences"], 1)
    )


def _sequence_html(view: dict[str, Any]) -> str:
    """Those that carry loss marked, each turn on a line of its own."""
    parts: list[str] = []
    for token in view["tokens"]:
        kind = " ".join(name for name in ("trained", "special") if token[name])
        shown = escape(token["text"].replace("\n", "⏎").replace("\t", "⇥")) or "∅"
        border = " begins" if token["begins"] else ""
        parts.append(
            f"<span class='token {kind}{border}' title='id "
            f"{token['id']}{', carries loss' if token['trained'] else ''}'>"
            f"{shown}<sub>{token['id']}</sub></span>{'<br>' * token['text'].count(chr(10))}"
        )
    more = (
        f"<p class='hint'>The first {len(view['tokens']):,} tokens are shown.</p>"
        if view["count"] > len(view["tokens"])
        else ""
    )
    legend = (
        f"<p class='hint'>{view['count']:,} tokens, {view['trained']:,} carry loss: "
        "<span class='token trained'>coloured and underlined</span>; special ones <span class='token "
        "special'>framed</span>.</p>"
    )
    return f"<div class='card'>{legend}<div class='tokens'>{''.join(parts)}</div>{more}</div>"


def template_html(checks: Sequence[dict[str, Any]]) -> str:
    """What the base's chat template does right."""
    rows = "".join(
        "<tr><td><span class='state "
        f"{'good' if one['passed'] else 'bad'}'>{'yes' if one['passed'] else 'no'}</span></td>"
        f"<td>{escape(one['title'])}</td><td>{escape(one['detail'])}</td></tr>"
        for one in checks
    )
    return f"<div class='card'><h3>Chat template</h3><table class='rows'><tbody>{rows}</tbody></table></div>"


def _sequences(report: dict[str, Any]) -> str:
    """What the rows become, where some become several."""
    if report.get("sequences", 0) <= report["rows"]:
        return ""
    return (
        f"{report['rows']:,} rows become {report['sequences']:,} sequences, one row up to "
        f"{report['most_sequences']}, "
        f"each answer in its own context; an epoch computes {report['computed_tokens']:,} tokens"
    )


def token_facts_html(report: dict[str, Any], effective_batch: int) -> str:
    """The figures of a data set for one base."""
    train_rows = report.get("train_sequences") or report["rows"] - report["validation_rows"]
    steps, packed = -(-train_rows // effective_batch), -(-report["blocks"] // effective_batch)
    packing = (
        f"{report['blocks']:,} blocks of {report['max_length']:,}, {report['filled']:.1%} filled"
        if report["blocks"]
        else ""
    )
    about = facts(
        [
            ("Tokens an epoch", f"{report['tokens']:,}, {report['trained_tokens']:,} of them carry loss"),
            ("Sequences", _sequences(report)),
            (
                "Length of a row",
                f"{number(report['mean_length'], 0)} on average, half have up to "
                f"{report['percentiles']['50']:,}, "
                f"99 % up to {report['percentiles']['99']:,}, the longest {report['percentiles']['100']:,}",
            ),
            ("Recommended max length", f"{report['recommended_max_length']:,} tokens"),
            ("Packed", packing),
            (
                "Steps an epoch",
                f"{steps:,} row by row, {packed:,} packed (effective batch {effective_batch})",
            ),
        ],
        "For this base",
    )
    rows = [
        (_TITLES[policy], f"{loss['rows']:,}", f"{loss['tokens']:,}", f"{loss['trained_tokens']:,}")
        for policy, loss in report["policies"].items()
    ]
    head = ("Rows above the max length", "Rows lost", "Tokens lost", "Trained tokens lost")
    return f"{about}<div class='card'>{table(head, rows)}</div>"
