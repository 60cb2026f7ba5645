"""A classifier as it leaves the house: a standard transformers model for sequence classification, and its
check.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from core.base_model.classifier import classifier_of_config, head_parts
from core.base_model.files import read_json, stored_tensors
from core.base_model.load import load_base
from core.base_model.model_config import classifier_class, is_writing, load_config, refusing
from core.base_model.probes import PROBES, lack_of_memory
from core.base_model.tensors import empty_with_head
from core.base_model.tokenizer import load_tokenizer
from core.data.labels import LabelSet
from core.data.plain_texts import text_ids
from core.errors import InvalidAdapter
from core.events import Progress
from core.export.duties import FAILED, NOT_CHECKABLE, PASSED, Exported, Finding
from core.generate.labelling import classify
from core.merge.verify import TOLERANCE
from core.reporting import Report


def named_tensors(base_folder: Path) -> dict[str, str]:
    """How a classifier calls the tensors that the base's files hold, by their names there. Those of a head
    are left out: of one that writes text, and of one in whose place each adapter has its own.
    """
    config = load_config(base_folder)
    if is_writing(config):
        model = classifier_of_config(config, 2)
        parts = [name for name, _ in model.named_children() if name != model.base_model_prefix]
    else:
        model, missing = empty_with_head(base_folder)
        parts = list(head_parts(model, missing))
    found = {name: _name(model, name) for name in stored_tensors(base_folder)}
    return {
        name: called
        for name, called in found.items()
        if called and not any(called.startswith(f"{part}.") for part in parts)
    }


def _name(model: PreTrainedModel, stored: str) -> str:
    """As the model calls a stored tensor; empty for one that it has no place for."""
    prefix = model.base_model_prefix
    children = {name for name, _ in model.named_children()}
    shared = {name for name, _ in model.base_model.named_children()}
    name = stored if stored.partition(".")[0] in children else f"{prefix}.{stored}"
    inside = name.removeprefix(f"{prefix}.")
    return name if inside == name or inside.partition(".")[0] in shared else ""


def state_labels(path: Path, base_folder: Path, labels: LabelSet) -> None:
    """Say in config.json which class the model is, what its scores stand for, and what fills up rows."""
    config = load_config(base_folder)
    pad_id = config.get_text_config().pad_token_id
    if pad_id is None:
        tokenizer = load_tokenizer(base_folder)
        ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        pad_id = next(one for one in ids if one is not None)
    stated = read_json(path)
    stated.pop("num_labels", None)
    stated |= {
        "architectures": [classifier_class(config).__name__],
        "id2label": {str(place): name for place, name in enumerate(labels.names)},
        "label2id": {name: place for place, name in enumerate(labels.names)},
        "problem_type": labels.problem_type,
        "pad_token_id": pad_id,
    }
    path.write_text(json.dumps(stated, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_merged(what: Exported, report: Report) -> Finding:
    """transformers itself loads the folder, and tells of fixed texts what base + adapter tell."""
    if why := lack_of_memory(what.base_folder):
        return Finding(NOT_CHECKABLE, f"Its answers were not checkable: {why}.")
    report(Progress("Loading the base and the adapter"))
    labels = what.adapter.labels
    assert labels is not None
    wanted = _scores_here(what, labels)
    report(Progress("Loading the merged model with transformers"))
    with refusing("transformers cannot load the merged model"):
        model = AutoModelForSequenceClassification.from_pretrained(what.folder, dtype=torch.float32).eval()
        found = _scores_there(model, what.folder)
    return _compared(wanted, found, labels, model, what.folder)


def _scores_here(what: Exported, labels: LabelSet) -> Tensor:
    """Of base + adapter, [texts, labels]."""
    base = load_base(what.base_folder, device=torch.device("cpu"), dtype=torch.float32)
    (told,) = classify(base, [what.adapter], PROBES)
    if told.labels != labels:
        raise InvalidAdapter("The adapter's labels are not those that were exported.")
    return torch.tensor(told.scores)


@torch.no_grad()
def _scores_there(model: PreTrainedModel, folder: Path) -> Tensor:
    """Of the merged model, each text alone, [texts, labels]."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    longest = int(model.config.get_text_config().max_position_embeddings)
    rows: Sequence[list[int]] = text_ids(tokenizer, PROBES)
    return torch.cat([model(input_ids=torch.tensor([ids[:longest]])).logits for ids in rows])


def _compared(
    wanted: Tensor, found: Tensor, labels: LabelSet, model: PreTrainedModel, folder: Path
) -> Finding:
    stored = next(entry.dtype for _, entry in stored_tensors(folder).values())
    tolerance = TOLERANCE[{"BF16": torch.bfloat16, "F16": torch.float16}.get(stored, torch.float32)]
    difference = float((wanted - found).abs().max()) / max(float(wanted.abs().max()), 1e-6)
    said: Any = model.config.id2label or {}
    told = tuple(said[place] for place in sorted(said))
    said_right = told == labels.names and model.config.problem_type == labels.problem_type
    passed = said_right and bool(found.isfinite().all()) and difference <= tolerance
    agreement = float((wanted.argmax(1) == found.argmax(1)).float().mean())
    sentence = (
        f"{'Passed' if passed else 'FAILED'}: transformers loads it for sequence classification, and its "
        f"scores differ by {difference:.2g} of their size from those of base + adapter ({tolerance:g} is "
        f"allowed); {agreement:.0%} of the texts have the same likeliest label."
    )
    if not said_right:
        sentence += " Its config.json does not name the adapter's labels."
    figures = {"relative_difference": difference, "tolerance": tolerance, "label_agreement": agreement}
    return Finding(PASSED if passed else FAILED, sentence, figures)
