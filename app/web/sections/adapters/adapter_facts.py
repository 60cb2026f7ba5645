"""What is known of an adapter: facts, samples, lineage, configuration."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from app.service.lineage import lineage
from app.service.workbench import Workbench
from app.shared.bases import closest_base
from app.web.parts.markup import Html, day, empty, facts, number, size
from app.web.parts.routes import link
from app.web.sections.adapters.lineage_graph import lineage_svg
from core.data.chat_options import ChatOptions
from storage.tables import Adapter, Dataset


def overview_html(workbench: Workbench, row: Adapter) -> str:
    """The facts, each name a link, and what its run answered to the sample prompts."""
    train = row.config.get("train", {})
    note = facts([("Tags", row.tags), ("Note", row.note)]) if row.tags or row.note else ""
    about = facts(
        [
            ("Base model", _base(workbench, row)),
            (
                "Kind",
                getattr(
                    workbench.adapters.kind(row),
                    "label",
                    "unknown: its files cannot be read; Verify says why",
                ),
            ),
            ("Made by", _made_by(row)),
            ("Data set", _data(workbench, row)),
            *([("Conversations", chat)] if (chat := ChatOptions.parse(row.chat).sentence()) else []),
            ("Rank, alpha", f"{row.rank}, {row.alpha:g}" if row.rank else "none: whole weights of the base"),
            ("Target modules", row.target_modules),
            ("Parameters", f"{row.parameters:,}"),
            ("Steps", row.steps),
            ("Training loss", "" if row.train_loss is None else number(row.train_loss)),
            ("Validation loss", "" if row.validation_loss is None else number(row.validation_loss)),
            ("Learning rate", f"{train['learning_rate']:g}, {train['lr_scheduler']}" if train else ""),
            ("Size", size(row.size_bytes)),
            ("Created", day(row.created)),
            ("Fingerprint of the base", row.base_fingerprint),
            ("Digest", row.digest),
        ]
    )
    return f"{note}{about}{_samples(workbench, row)}"


def lineage_html(workbench: Workbench, row: Adapter) -> str:
    """What it was made of, and what was made of it."""
    hint = "<p class='hint'>From left to right: what it was made of, and what was made of it.</p>"
    return f"{lineage_svg(lineage(workbench.registry, row))}{hint}"


def config_html(row: Adapter) -> str:
    """The options that it was made with, as they are stored."""
    if not row.config:
        return empty("It came from elsewhere, and nothing of how it was made was recorded.")
    written = escape(json.dumps(row.config, indent=2, ensure_ascii=False))
    return f"<pre class='mono card' tabindex='0' aria-label='Configuration'>{written}</pre>"


def _base(workbench: Workbench, row: Adapter) -> Html | str:
    base = closest_base(workbench.registry, row)
    if base is None:
        return Html(f"{escape(row.base_name)}, which is not here: {link('add it', 'models')}")
    return Html(link(base.name, "models", name=base.name))


def _data(workbench: Workbench, row: Adapter) -> Html | str:
    known = row.dataset_name in workbench.registry.names(Dataset)
    return Html(link(row.dataset_name, "data", name=row.dataset_name)) if known else row.dataset_name


def _made_by(row: Adapter) -> Html | str:
    """How it came about."""
    if row.run_id:
        run, below = link(f"run {row.run_id}", "runs", name=row.run_id), _parents(row)
        return Html(f"{run}, on top of {below}" if below else run)
    how: Any = row.config.get(row.source)
    if row.source not in ("combined", "resized", "converted") or not isinstance(how, dict):
        return row.source
    if row.source == "converted":
        return Html(f"converted to LoRA, exactly, from {_parents(row)}")
    what = "cut to a lower rank, from" if row.source == "resized" else f"{escape(str(how.get('method')))} of"
    return Html(f"{what} {_parents(row)}; {how.get('energy_lost', 0):.3%} of ‖ΔW‖² lost")


def _parents(row: Adapter) -> str:
    """Links to what it was made from."""
    return ", ".join(link(str(one["name"]), "adapters", name=one["name"]) for one in row.parents)


def _samples(workbench: Workbench, row: Adapter) -> str:
    """What its run answered to the sample prompts when it was last asked."""
    said = workbench.registry.measurements.samples(row.run_id) if row.run_id else []
    last = [one for one in said if one.step == said[-1].step]
    turns = "".join(
        f"<div class='turn user'><b>prompt</b>{escape(one.prompt)}</div>"
        f"<div class='turn assistant'><b>at step {one.step}</b>{escape(one.text[:1500])}</div>"
        for one in last
    )
    return f"<div class='card'><h3>Samples</h3>{turns}</div>" if last else ""
