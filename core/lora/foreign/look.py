"""LoRA weights of unknown origin: which layout they are in and what they are, without any base model.

Of the files only the header is read until a base has been found.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import InvalidAdapter
from core.files.safetensors_file import SafetensorsHeader, TensorEntry
from core.lora.foreign.layouts import PEFT, Layout, SortedOut, dotted, module_name, rank_of, sorted_out
from core.lora.kinds import AdapterKind
from core.lora.kinds.lora import KIND as LORA
from core.lora.peft.config import CLASSIFIES, checked, kind_of, raw_config
from core.lora.peft.config_checks import CONFIG_NAME
from core.lora.peft.embedding_files import COPY, copied_weights, embedding_in
from core.lora.peft.expert_files import KEY
from core.lora.peft.files import (
    TEMPLATE_KEY,
    TOKENIZER_KEY,
    WEIGHTS_NAME,
    Entries,
    read_adapter_header,
    recorded_fingerprint,
    recorded_hash,
    sorted_entries,
)
from core.lora.peft.own_head import PREFIX, head_entries
from core.lora.peft.whole_files import whole_entries
from core.lora.targets import layer_number

ANY_MODULE = ".+"
"""As target_modules of a configuration that names none."""


@dataclass(frozen=True)
class Evidence:
    """What the files say, without any base model."""

    layout: str
    ranks: tuple[int, ...]
    """Every rank that occurs."""
    alpha: float | None
    """None where the files do not say it."""
    use_rslora: bool
    modules: dict[str, int]
    """How many layers of each name."""
    layers: int
    """Decoder layers that are touched."""
    parameters: int
    claims: str
    """The base it says it was made for; empty if it does not say."""
    fingerprint: str
    """The base's fingerprint, if the file records it."""
    tokenizer_hash: str
    template_hash: str
    """Of the base as it was trained with it, if the file records them."""
    kind: str = LORA.label
    """The adapter kind, as people read it."""

    def sentence(self) -> str:
        """In words."""
        ranks = ", ".join(map(str, self.ranks))
        alpha = "no alpha stated" if self.alpha is None else f"alpha {self.alpha:g}"
        names = ", ".join(f"{name} × {count}" for name, count in self.modules.items())
        claims = f"says it was made for {self.claims}" if self.claims else "does not say what it was made for"
        kind = "rsLoRA" if self.use_rslora else self.kind
        return f"{kind} in {self.layout} layout, rank {ranks}, {alpha}, on {names}; {claims}."


@dataclass(frozen=True)
class Found:
    """Adapter files that were looked at, in a place where nobody changes them."""

    evidence: Evidence
    weights_file: Path
    config: dict[str, Any] | None
    """PEFT's adapter_config.json, checked; None if there is none."""
    kind: AdapterKind
    content: SortedOut

    has_wholes: bool = False
    """Whether more stands in it than factors of linear layers, as PEFT saves it: a head, modules, biases,
    factors of an embedding or of experts.
    """

    @property
    def is_loaded_whole(self) -> bool:
        """Whether only PEFT's own files are taken of it: it tells labels, or has whole parameters."""
        classifies = self.config is not None and self.config.get("task_type") == CLASSIFIES
        return classifies or self.has_wholes

    @property
    def layout(self) -> Layout:
        """How its factors are written."""
        return self.content.layout

    @property
    def tensors(self) -> Entries:
        """By the path that the file gives: the entries of A and B, or of what another kind has."""
        return self.content.tensors

    @property
    def is_pefts_own(self) -> bool:
        """Whether the files are as PEFT saves them, with nothing beside the factors."""
        content = self.content
        return self.config is not None and content.layout is PEFT and content.as_written and not content.whole


def look(folder: Path, which: str = "") -> Found:
    """Recognise what take() has brought into `folder`; `which` names one of several adapters in a file.

    Raises InvalidAdapter with what is wrong.
    """
    weights, path = folder / WEIGHTS_NAME, folder / CONFIG_NAME
    header = read_adapter_header(weights)
    about = raw_config(path) if path.is_file() else {}
    config = _pefts_config(about)
    kind = kind_of(config) if config else LORA
    head = {**head_entries(header, config or {}), **whole_entries(header, config or {})}
    of_peft = config is not None and bool(head or embedding_in(header) or config.get(KEY))
    if of_peft or kind is not LORA:
        copies = {_module(entry): entry for entry in copied_weights(header)}
        content = SortedOut(PEFT, sorted_entries(header, kind, head.values()), {}, copies)
    else:
        content = sorted_out(header, which)
    layout, tensors = content.layout, content.tensors
    claims = (
        about.get("base_model_name_or_path")
        or about.get("model")
        or header.metadata.get("ss_base_model_version")
    )
    evidence = Evidence(
        layout=layout.name,
        ranks=tuple(sorted(_ranks(kind, config, layout, tensors))),
        alpha=_alpha(kind, config, header),
        use_rslora=bool(config and config.get("use_rslora")),
        modules=dict(sorted(Counter(module_name(path, layout) for path in tensors).items())),
        layers=len({layer_number(dotted(path, layout)) for path in tensors} - {None}),
        parameters=sum(entry.count for pair in tensors.values() for entry in pair.values()),
        claims=str(claims or "")[:200],
        fingerprint=recorded_fingerprint(header),
        tokenizer_hash=recorded_hash(header, TOKENIZER_KEY),
        template_hash=recorded_hash(header, TEMPLATE_KEY),
        kind=kind.label,
    )
    return Found(evidence, weights, config, kind, content, of_peft)


def _module(entry: TensorEntry) -> str:
    """Of the base's weight that stands beside factors on it."""
    return entry.name.removeprefix(PREFIX).removesuffix(COPY)


def _pefts_config(about: dict[str, Any]) -> dict[str, Any] | None:
    """The configuration, checked, if it is PEFT's: whatever the tensors are called, it says their scale.

    Raises InvalidAdapter for a setting that is not known, or for an adapter of MLX that is no LoRA.
    """
    if "peft_type" in about or "target_modules" in about:
        return checked(about)
    if "lora_alpha" in about:  # somebody wrote down what matters
        return checked({"peft_type": LORA.peft_type, "target_modules": ANY_MODULE, **about})
    if about.get("fine_tune_type", "lora") != "lora":
        raise InvalidAdapter(
            f"{CONFIG_NAME} says that it is no LoRA adapter but fine_tune_type "
            f"{str(about['fine_tune_type'])[:40]!r}; only lora can be used."
        )
    return None


def _ranks(kind: AdapterKind, config: Mapping[str, Any] | None, layout: Layout, tensors: Entries) -> set[int]:
    if config is None or (kind is LORA and not config.get(KEY)):
        return {rank_of(pair, layout) for pair in tensors.values()}
    return {kind.stated_rank(config, path) for path in tensors}


def _alpha(kind: AdapterKind, config: Mapping[str, Any] | None, header: SafetensorsHeader) -> float | None:
    """From PEFT's configuration; MLX gives the scale itself; kohya writes it into the header."""
    if config is not None:
        return float(kind.stated(config)["alpha"])
    for key in ("lora_alpha", "ss_network_alpha", "alpha"):
        if key in header.metadata:
            return positive(header.metadata[key], key)
    return None


def positive(value: object, what: str) -> float:
    """A number above 0 that a scale can be made of. Raises InvalidAdapter."""
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not 0 < number <= 65536:
        raise InvalidAdapter(f"{what} is {str(value)[:40]!r}; expected a number above 0 and up to 65,536.")
    return number
