"""The model card that goes with everything exported: what it is made of, and what may be done with it.

Needs no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.base_model.quantisation import LABELS, NONE
from core.export.config import ExportConfig

MUCH_ROUNDED = 0.01
"""Of what the adapter changes, from which on another number format is advised."""


@dataclass(frozen=True)
class Provenance:
    """Where an export comes from, for its card and its files' headers."""

    base_name: str
    base_fingerprint: str
    base_licence: str
    adapter_name: str
    adapter_digest: str
    dataset_name: str
    config: dict[str, Any]
    train_loss: float | None
    validation_loss: float | None
    base_template: str = ""
    """The known chat template chosen for a base that has none of its own."""
    tokenizer_hash: str = ""
    template_hash: str = ""
    """Of the base as the adapter was trained with it; empty where nobody recorded them."""
    parents: tuple[str, ...] = ()
    """What the adapter was combined from, each with its weight."""
    learnt_on: str = ""
    """The adapter that it learnt on top of, whose ΔW is part of it."""
    base_source: str = ""
    """Where other software finds the base: its hub id, or its folder."""
    classifies: bool = False
    """Whether the adapter tells labels and writes no text."""
    base_revision: str = ""
    """The commit of a base that came from the hub."""
    whole: bool = False
    """Whether it is full fine-tuning: whole weights in the place of the base's."""

    @property
    def trained_on(self) -> str:
        """How the base was held in memory while it was trained."""
        return str(self.config.get("train", {}).get("quantisation", NONE))

    def metadata(self) -> dict[str, str]:
        """For the header of each safetensors file, so that merging the same adapter twice can be noticed."""
        return {
            "format": "pt",
            "base_fingerprint": self.base_fingerprint,
            "base_name": self.base_name,
            "merged_adapter": self.adapter_digest,
            "merged_adapter_name": self.adapter_name,
        }


def model_card(about: Provenance, config: ExportConfig, facts: Mapping[str, Any]) -> str:
    """The model card: front matter the hub understands, then what went into the model."""
    adapter_alone = not config.kind.merges
    front = [
        "---",
        f"library_name: {'peft' if adapter_alone else 'transformers'}",
        f"pipeline_tag: {'text-classification' if about.classifies else 'text-generation'}",
    ]
    if about.base_licence:
        front.append(f"license: {about.base_licence}")
    own = ["- full-fine-tuning"] if about.whole else ["- lora", "- adapter" if adapter_alone else "- merged"]
    front += ["tags:", *own, "---", ""]
    losses = {"train": about.train_loss, "validation": about.validation_loss}
    shown = ", ".join(f"{name} {value:.4f}" for name, value in losses.items() if value is not None)
    rounding = facts.get("rounding_loss")
    rows = [
        ("Base model", plain(about.base_name)),
        ("Fingerprint of the base", f"`{about.base_fingerprint}`"),
        ("Licence of the base", about.base_licence or "not stated"),
        ("Digest of the adapter", f"`{about.adapter_digest}`"),
        ("Combined from", plain(", ".join(about.parents))),
        ("Learnt on top of", plain(about.learnt_on)),
        ("Data set", plain(about.dataset_name) or "not known"),
        ("Final loss", shown or "not known"),
        ("Weights", "" if adapter_alone else config.dtype),
        ("Rounding", rounding_words(rounding, "these weights") if rounding else ""),
        *quantised_rows(facts),
    ]
    what = config.kind.describe(plain(about.base_name), plain(about.adapter_name))
    if about.whole:
        what = f"{plain(about.adapter_name)}: {plain(about.base_name)} after full fine-tuning."
    table = ["| | |", "|---|---|", *[f"| {name} | {value} |" for name, value in rows if value]]
    configuration = [
        "Training configuration:",
        "",
        "```json",
        json.dumps(about.config, indent=2, ensure_ascii=False),
        "```",
        "",
    ]
    warned = [line for warning in facts.get("warnings", ()) for line in (f"**Mind:** {plain(warning)}", "")]
    title = f"# {plain(about.adapter_name)}"
    return "\n".join([*front, title, "", what, "", *warned, *table, "", *configuration])


def rounding_words(share: float, number_format: str) -> str:
    """What rounding to a number format did, in words. share: its error in the weights, by the adapter's part
    of them.
    """
    if share < 1:
        return f"Rounding to {number_format} took {share:.1%} of what the adapter changes"
    return f"Rounding to {number_format} moves the weights by {share:.1f} times as much as the adapter does"


def quantised_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is told of a merge in which a quantised base has a part; nothing of any other."""
    if "merged_onto" not in facts:
        return []
    onto, trained = facts["merged_onto"], facts["trained_on"]
    is_original = onto not in LABELS
    weights = "the original weights" if is_original else f"the weights in {LABELS[onto]}, made float32 again"
    differs = (
        f"by {facts['base_difference']:.1%} from those in {LABELS[trained]}, which it was trained beside"
        if is_original
        else f"by {facts['base_difference']:.2%} from the original ones"
    )
    kept = facts.get("energy_kept")
    return [
        ("Merged onto", weights),
        *([("Of ΔW's energy kept", f"{kept:.2%}")] if kept else []),
        ("These weights differ", differs),
    ]


def plain(text: str) -> str:
    """A name in one line, without what Markdown tables or HTML would act on."""
    return "".join(" " if char in "|<>\n\r`" else char for char in text).strip()


def file_name(name: str) -> str:
    """A name that every file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "adapter"
