"""The model that classifies texts: a base's layers, shared by all, and a head for each adapter.

It is transformers' own class for the architecture, and its own forward pass computes. The modules of its head
are taken out, and in the place of each stands a HeadPart, which computes the rows of each adapter with that
adapter's own numbers: so K adapters share the batch, whatever their labels are. A base that writes text lends
its layers; then two models share one set of weights.

A head is the module that gives the labels' scores, `classifier` or `score`, and whatever else the base's
files hold no numbers for, such as a pooler. Its numbers are kept in float32 and it computes in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from core.base_model.model_config import classifier_class, refusing
from core.errors import InvalidAdapter, InvalidModel
from core.lora.layer import LoraLinear, where_and_in
from core.lora.wrapping import wrap_linear_layers

SCORING = ("classifier", "score")
"""What transformers calls the module that gives the scores, and what PEFT takes for one."""
_PROBE = (3, 5)  # rows and tokens

Head = Mapping[str, Tensor]
"""An adapter's own numbers for the head, by the parameters' paths in the model, float32."""


class HeadPart(nn.Module):
    """In the place of a module of the head."""

    def __init__(self, path: str, module: nn.Module, heads: list[Head]) -> None:
        """heads: those in use, one for each group of rows; a list that the classifier fills."""
        super().__init__()
        self.path, self._heads = path, heads
        self._module = [module]  # in a list it is no child, since its own numbers are not the model's

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [rows, …]: as many consecutive rows for each head. Where heads have different numbers of
        labels, fewer are filled up with zeros behind them.
        """
        parts = hidden.float().chunk(len(self._heads))
        found = [self._computed(head, part) for head, part in zip(self._heads, parts, strict=True)]
        width = max(one.shape[-1] for one in found)
        return torch.cat([nn.functional.pad(one, (0, width - one.shape[-1])) for one in found])

    def _computed(self, head: Head, hidden: Tensor) -> Tensor:
        own = {
            name.removeprefix(f"{self.path}."): one
            for name, one in head.items()
            if name.startswith(f"{self.path}.")
        }
        result: Tensor = functional_call(self._module[0], own, (hidden,))
        return result


@dataclass
class Classifier:
    """A model without a head of its own, and what its heads are made of."""

    model: PreTrainedModel
    parts: dict[str, nn.Module]
    """The modules of a head by path; each head has numbers of its own for them."""
    stored: Head
    """The head that the base's files hold whole; empty if they hold none or a part of one."""
    causal: bool
    """Whether the layers are those of a base that writes text: then no mask is needed."""
    layers: Mapping[str, LoraLinear]
    _in_use: list[Head] = field(default_factory=list)

    def __post_init__(self) -> None:
        for path, module in self.parts.items():
            replace_module(self.model, path, HeadPart(path, module, self._in_use))

    @property
    def pad_id(self) -> int:
        """What fills up shorter rows."""
        return int(self.model.config.get_text_config().pad_token_id)

    def logits(self, ids: Tensor, mask: Tensor, heads: Sequence[Head]) -> Tensor:
        """Scores [rows, labels] in float32 of ids [rows, length], which are padded on the right; mask
        [rows, length] is 1 where there is a token. As many consecutive rows for each of `heads`.
        """
        seen = {} if self.causal else {"attention_mask": mask}
        with self._using(heads):
            found: Tensor = self.model(input_ids=ids, **seen, **self._no_cache).logits
        return found.float()

    @property
    def _no_cache(self) -> dict[str, Any]:
        return {"use_cache": False} if self.causal else {}

    @contextmanager
    def _using(self, heads: Sequence[Head]) -> Iterator[None]:
        self._in_use.extend(heads)
        try:
            yield
        finally:
            self._in_use.clear()

    # Heads.

    def shapes(self, labels: int) -> dict[str, tuple[int, ...]]:
        """Of a head's parameters with so many labels, by path."""
        model = classifier_of_config(self.model.config, labels)
        return {
            f"{path}.{name}": tuple(one.shape)
            for path in self.parts
            for name, one in model.get_submodule(path).named_parameters()
        }

    def fresh(self, labels: int, seed: int) -> dict[str, Tensor]:
        """A new head, drawn on the CPU as transformers draws it."""
        found: dict[str, Tensor] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = classifier_of_config(self.model.config, labels)
            draw: Any = model._init_weights
            for path in self.parts:
                module = model.get_submodule(path).to_empty(device="cpu")
                module.apply(draw)
                found |= {f"{path}.{name}": one.detach() for name, one in module.named_parameters()}
        return found

    def require_head(self, head: Head, labels: int, name: str) -> None:
        """Raise InvalidAdapter, with what differs, unless these are a head's numbers for this base."""
        wanted, found = self.shapes(labels), {path: tuple(one.shape) for path, one in head.items()}
        if wanted == found:
            return
        differing = sorted(path for path in {**wanted, **found} if wanted.get(path) != found.get(path))
        first = differing[0]
        raise InvalidAdapter(
            f"The head of {name} does not fit this base: {first} is {_shape(found.get(first))} where "
            f"{_shape(wanted.get(first))} is needed ({len(differing)} such tensors). Adapters whose head was "
            "left in part at random numbers, which nobody stored, cannot be used."
        )

    @cached_property
    def takes_several(self) -> bool:
        """Whether K adapters can share a batch: each layer gets the rows themselves, and nothing that all
        rows share, such as DeBERTa's embeddings of relative positions.
        """
        rows, length = _PROBE
        seen: set[int] = set()
        hooks = [
            layer.register_forward_pre_hook(lambda _, given: seen.add(given[0].shape[0]))
            for layer in self.layers.values()
        ]
        device, _ = where_and_in(next(iter(self.layers.values())).base)
        ids, mask = (torch.ones(rows, length, dtype=torch.long, device=device) for _ in range(2))
        head = {name: one.to(device) for name, one in self.fresh(2, 0).items()}
        try:
            with torch.no_grad():
                self.logits(ids, mask, [head])
        finally:
            for hook in hooks:
                hook.remove()
        return seen <= {rows, rows * length}


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))


def classifier_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, missing: Sequence[str]
) -> Classifier:
    """Take the head out of a loaded classifier and put LoRA layers into the rest; `missing` names the tensors
    of the head that the files did not hold.
    """
    _state_padding(model.config, tokenizer)
    parts = {path: one.float() for path, one in head_parts(model, missing).items()}
    numbers = {
        f"{path}.{name}": one.detach()
        for path, part in parts.items()
        for name, one in part.named_parameters()
    }
    made = Classifier(model, parts, {} if missing else numbers, False, {})
    made.layers = wrap_linear_layers(model)
    return made


def classifier_around(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, layers: Mapping[str, LoraLinear]
) -> Classifier:
    """A classifier on the layers of a base that writes text. Raises InvalidModel if transformers has none."""
    config = copy.deepcopy(model.config)
    _state_padding(config, tokenizer)
    cls = classifier_class(config)
    if cls.base_model_prefix != model.base_model_prefix:
        raise InvalidModel(f"{cls.__name__} is not built on the layers of a {type(model).__name__}.")
    with refusing(f"transformers cannot build a {cls.__name__}"):
        made = classifier_of_config(config, 2)
    setattr(made, cls.base_model_prefix, model.base_model)
    made.eval()
    missing = [name for name, one in made.named_parameters() if one.device.type == "meta"]
    parts = head_parts(made, missing)
    inner = {path: layer for path, layer in layers.items() if path.startswith(f"{cls.base_model_prefix}.")}
    return Classifier(made, parts, {}, True, inner)


def classifier_of_config(config: PretrainedConfig, labels: int) -> PreTrainedModel:
    """A classifier with so many labels and without numbers."""
    config = copy.deepcopy(config)
    config.num_labels = labels
    with torch.device("meta"):
        made: PreTrainedModel = classifier_class(config)(config)
    return made


def head_parts(model: PreTrainedModel, missing: Sequence[str]) -> dict[str, nn.Module]:
    """The modules that a head consists of, by path: what gives the scores, and what has no numbers."""
    scoring = [name for name, _ in model.named_children() if name in SCORING]
    if not scoring:
        raise InvalidModel(
            f"{type(model).__name__} gives its scores by none of {' and '.join(SCORING)}, so it cannot be "
            "used yet."
        )
    inside = f"{model.base_model_prefix}."
    lacking = {".".join(name.split(".")[: 2 if name.startswith(inside) else 1]) for name in missing}
    return {path: model.get_submodule(path) for path in sorted({*scoring, *lacking})}


def _state_padding(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Which id fills up shorter rows, where the configuration does not say: decoders look for the last token
    that is another.
    """
    text = config.get_text_config()
    ids = (text.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    config.pad_token_id = text.pad_token_id = next(one for one in ids if one is not None)


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put another module in the place of the one at this path."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
