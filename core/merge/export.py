"""A merged model as a folder that other software loads: weights, tokenizer, template, configurations, model card."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.base_model.describe import chat_template
from core.base_model.skeleton import Skeleton
from core.base_model.templates import chosen_template
from core.lora.adapter import AdapterWeights
from core.merge.merge import MergeReport, merge_into_base
from core.publish import published_folder
from core.reporting import Report

_COMPANIONS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "LICENSE",
)  # fmt: skip


@dataclass(frozen=True)
class Provenance:
    """Where an exported model comes from, for its card and its files' headers."""

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

    def metadata(self) -> dict[str, str]:
        """For the header of each safetensors file, so that merging the same adapter twice can be noticed."""
        return {
            "format": "pt",
            "base_fingerprint": self.base_fingerprint,
            "merged_adapter": self.adapter_digest,
            "merged_adapter_name": self.adapter_name,
        }


def export_merged(
    base_folder: Path, skeleton: Skeleton, adapter: AdapterWeights, target: Path, about: Provenance, report: Report
) -> MergeReport:
    """Publish the merged model as the folder `target`, complete or not at all.

    Raises InvalidInput if `target` is occupied, OutOfSpace, InvalidAdapter.
    """
    with published_folder(target) as staging:
        result = merge_into_base(base_folder, adapter, skeleton.transposed, staging, report, about.metadata())
        for name in _COMPANIONS:
            if (base_folder / name).is_file():
                shutil.copyfile(base_folder / name, staging / name)
        if chat_template(base_folder) is None:
            (staging / "chat_template.jinja").write_text(chosen_template(about.base_template), encoding="utf-8")
        (staging / "README.md").write_text(model_card(about), encoding="utf-8")
    return result


def model_card(about: Provenance) -> str:
    """The model card: front matter the hub understands, then what went into the model."""
    front = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    if about.base_licence:
        front.append(f"license: {about.base_licence}")
    front += ["tags:", "- lora", "- merged", "---", ""]
    losses = {"train": about.train_loss, "validation": about.validation_loss}
    shown = ", ".join(f"{name} {value:.4f}" for name, value in losses.items() if value is not None)
    body = [
        f"# {_plain(about.adapter_name)}",
        "",
        f"{_plain(about.base_name)} with the LoRA adapter {_plain(about.adapter_name)} merged in: W + (α/r)BA.",
        "",
        "| | |",
        "|---|---|",
        f"| Base model | {_plain(about.base_name)} |",
        f"| Fingerprint of the base | `{about.base_fingerprint}` |",
        f"| Licence of the base | {about.base_licence or 'not stated'} |",
        f"| Digest of the adapter | `{about.adapter_digest}` |",
        f"| Data set | {_plain(about.dataset_name) or 'not known'} |",
        f"| Final loss | {shown or 'not known'} |",
        "",
        "Training configuration:",
        "",
        "```json",
        json.dumps(about.config, indent=2, ensure_ascii=False),
        "```",
        "",
    ]
    return "\n".join(front + body)


def _plain(text: str) -> str:
    """A name in one line, without what Markdown tables or HTML would act on."""
    return "".join(" " if char in "|<>\n\r`" else char for char in text).strip()
