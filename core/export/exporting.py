"""What leaves the house: a merged model or an adapter as a folder that other software loads, complete or not
at all.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.base_model.describe import chat_template
from core.base_model.files import read_json
from core.base_model.skeleton import Skeleton
from core.base_model.templates import chosen_template
from core.base_model.tokenizer import end_token_ids, load_tokenizer
from core.errors import InvalidInput
from core.export.cards import Provenance, model_card
from core.export.config import FLOAT_DTYPES, ExportConfig
from core.files.publish import published_folder
from core.gguf.ollama import chat_parts, modelfile
from core.gguf.write import write_adapter_gguf, write_merged_gguf
from core.lora.adapter import AdapterWeights
from core.lora.peft.files import TEMPLATE_KEY, TOKENIZER_KEY, save_adapter
from core.merge.merge import merge_into_base
from core.reporting import Report

_COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "LICENSE",
)
_MOST_CONTEXT = 32768  # Ollama reserves memory for all of it


@dataclass(frozen=True)
class Exporting:
    """What is exported."""

    base_folder: Path
    skeleton: Skeleton
    adapter: AdapterWeights
    about: Provenance
    config: ExportConfig


Facts = dict[str, Any]
"""What a writer has to tell: counts, bytes, the rounding loss."""


def export(what: Exporting, target: Path, report: Report) -> Facts:
    """Publish the folder `target` in the wanted format, complete or not at all.

    Raises InvalidInput if `target` is occupied, OutOfSpace, InvalidAdapter, InvalidModel.
    """
    with published_folder(target) as staging:
        facts = _WRITERS[what.config.format](what, staging, report)
        (staging / "README.md").write_text(model_card(what.about, what.config, facts), encoding="utf-8")
    return facts


def _safetensors(what: Exporting, staging: Path, report: Report) -> Facts:
    written = merge_into_base(
        what.base_folder,
        what.adapter,
        what.skeleton.transposed,
        staging,
        report,
        what.about.metadata(),
        what.config,
    )
    for name in _COMPANIONS:
        if (what.base_folder / name).is_file():
            shutil.copyfile(what.base_folder / name, staging / name)
    if what.config.dtype in FLOAT_DTYPES:
        _state_dtype(staging / "config.json", what.config.dtype)
    if chat_template(what.base_folder) is None:
        (staging / "chat_template.jinja").write_text(
            chosen_template(what.about.base_template), encoding="utf-8"
        )
    return {
        "merged_tensors": written.merged_tensors,
        "copied_tensors": written.copied_tensors,
        "rounding_loss": written.rounding_loss,
        "worst_rounding_loss": written.worst_rounding_loss,
    }


def _state_dtype(path: Path, dtype: str) -> None:
    """Software that loads the model takes its number format from the configuration."""
    config = read_json(path)
    config.pop("torch_dtype", None)
    path.write_text(
        json.dumps(config | {"dtype": dtype}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _peft(what: Exporting, staging: Path, report: Report) -> Facts:
    about = {TOKENIZER_KEY: what.about.tokenizer_hash, TEMPLATE_KEY: what.about.template_hash}
    save_adapter(staging, what.adapter, {key: value for key, value in about.items() if value})
    return {"tensors": 2 * len(what.adapter.layers)}


def _gguf(what: Exporting, staging: Path, report: Report) -> Facts:
    kind = "f16" if what.config.dtype == "auto" else what.config.dtype
    return {
        "tensors": _write_gguf(what, staging / f"{file_name(what.about.adapter_name)}-{kind}.gguf", report)
    }


def _gguf_adapter(what: Exporting, staging: Path, report: Report) -> Facts:
    file = staging / f"{file_name(what.about.adapter_name)}-lora.gguf"
    return {"tensors": write_adapter_gguf(what.base_folder, what.adapter, file, what.about.adapter_name)}


def _ollama(what: Exporting, staging: Path, report: Report) -> Facts:
    count = _write_gguf(what, staging / "model.gguf", report)
    tokenizer = load_tokenizer(what.base_folder, what.about.base_template)
    parts = chat_parts(tokenizer)
    stop = sorted(
        str(tokenizer.convert_ids_to_tokens(one)) for one in end_token_ids(what.base_folder, tokenizer)
    )
    settings = what.base_folder / "generation_config.json"
    context = min(
        int(read_json(what.base_folder / "config.json").get("max_position_embeddings", 2048)), _MOST_CONTEXT
    )
    generation = read_json(settings) if settings.is_file() else {}
    text = modelfile("./model.gguf", parts, stop, generation, context, what.about.base_licence)
    (staging / "Modelfile").write_text(text, encoding="utf-8")
    return {"tensors": count, "template_in_modelfile": parts is not None}


def _write_gguf(what: Exporting, target: Path, report: Report) -> int:
    return write_merged_gguf(
        what.base_folder,
        what.adapter,
        what.skeleton.transposed,
        target,
        report,
        what.about.adapter_name,
        what.config,
        what.about.base_template,
        what.about.base_licence,
    )


_WRITERS: dict[str, Callable[[Exporting, Path, Report], Facts]] = {
    "safetensors": _safetensors,
    "peft": _peft,
    "gguf": _gguf,
    "gguf-adapter": _gguf_adapter,
    "ollama": _ollama,
}


def file_name(name: str) -> str:
    """A name that every file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "adapter"


def gguf_file(folder: Path) -> Path:
    """The one GGUF file in an exported folder. Raises InvalidInput."""
    found = sorted(folder.glob("*.gguf"))
    if len(found) != 1:
        raise InvalidInput(f"{folder} holds {len(found)} GGUF files where one was expected.")
    return found[0]
