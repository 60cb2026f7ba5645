"""Which way an architecture as configured can go to compute what transformers' own plain forward does.

A model of the same configuration with random numbers is asked twice: by transformers' eager attention, each
row alone; and by the three passes of ours, rows packed into a block, a prompt read in pieces, and one token
beside a cache. Widths, windows and layers are cut down first, so a large base costs as little as a tiny one,
and rows are longer than every window and every change of the context that the base can reach. Where ours
differs or does not fit, the general way is compared in the same manner (general_agreement.py). Where that
differs, too, the base is refused: it would be trained and answered with something else than its authors'
model, without a sign.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from core.base_model.attention import (
    NAME,
    Attending,
    OneToken,
    Packed,
    Prefill,
    attend,
    find_attention_modules,
    set_attention,
    set_experts,
)
from core.base_model.decisions import decide, decided, deciding
from core.base_model.general_agreement import TOLERANCE, difference, general_way, longrope_border
from core.base_model.model_config import model_class, reads_pictures, refusing
from core.base_model.reach import require_reached
from core.base_model.way import Way
from core.errors import InvalidModel
from core.lora.wrapping import wrap_linear_layers

log = logging.getLogger(__name__)
QUICK = Way(True, NAME)
_CONTEXT, _WINDOW, _WIDTH, _VOCABULARY = 96, 16, 32, 256
_MANY = 30_000_000  # parameters of a model whose layers and widths are cut down too
_FEW = 8
_EAGER, _GROUPED = "eager", "grouped_mm"  # as transformers calls them
_EXPERTS = frozenset({"num_experts", "num_local_experts", "n_routed_experts"})
_WINDOWS = ("window", "attention_chunk_size", "original_max_position_embeddings", "local_attention")
_NO_WINDOW = ("layer", "pattern", "use_")


def find_way(config: PretrainedConfig) -> Way:
    """The way on which a base of this configuration is computed: the quick one if that agrees. Compared once
    (core/base_model/decisions.py).

    Raises InvalidModel, saying where and why, if none computes what transformers does.
    """
    by = deciding(config.to_dict(), _kind_of_device())
    if (way := decided(by)) is None:
        way = _compared(config)
        decide(by, way)
    return way


def _kind_of_device() -> str:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found.type if found else "cpu"


def _compared(config: PretrainedConfig) -> Way:
    name = model_class(config).__name__
    log.info("comparing a %s with transformers", name)
    with refusing(f"transformers cannot compute a {name} as config.json describes it"):
        model = _random_model(_cut_down(config))
        rows = _rows(model.config)
        set_experts(model, _EAGER)
        wanted = [_alone(model, row) for row in rows]
    if not all(one.isfinite().all() for one in wanted):
        raise InvalidModel(
            f"A {name} as config.json describes it computes no finite numbers, whatever its weights are. Put "
            "back the config.json that belongs to these weights."
        )
    experts, way = _experts(model, rows, wanted), QUICK
    try:
        _require_quick(model, rows, wanted)
    except InvalidModel as why_not:
        way = replace(general_way(model, rows, wanted, str(why_not)), reread_at=longrope_border(config))
    require_reached(model, wrap_linear_layers(model))
    return replace(way, experts=experts)


def _experts(model: PreTrainedModel, rows: Sequence[Tensor], wanted: Sequence[Tensor]) -> str:
    """What computes the experts of a mixture from here on: all pairs of a token and an expert in one product
    for each parameter, where that gives the logits `wanted`, else the model's own loop.
    """
    if not model._can_set_experts_implementation():
        return ""
    set_experts(model, _GROUPED)
    if difference(wanted, [_alone(model, row) for row in rows]) <= TOLERANCE:
        return _GROUPED
    set_experts(model, _EAGER)
    return _EAGER


def _require_quick(model: PreTrainedModel, rows: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    """Raise InvalidModel unless our passes give `wanted`, the logits of each row."""
    attention = _attention_of_ours(model)
    with refusing(f"A {type(model).__name__} is asked in a way that cannot be used yet"):
        passes = {
            "where rows are packed for training": _packed(model, attention, rows),
            "while an answer is written": _decoded(model, attention, rows[:2]),
        }
    for where, found in passes.items():
        if not (far := difference(wanted, found)) <= TOLERANCE:
            raise InvalidModel(f"On the quick way its logits differ by {far:.1%} of their spread {where}.")


# The model, cut down.


def _cut_down(config: PretrainedConfig) -> PretrainedConfig:
    small = copy.deepcopy(config)
    context = _context(small)
    for part in _parts(small):
        for name, value in list(vars(part).items()):
            setattr(part, name, _with_short_windows(name, value, context))
        if _context(part) > _CONTEXT:
            part.max_position_embeddings = _CONTEXT
    if _parameters(small) > _MANY:
        for part in _parts(small):
            _cut_layers(part)
            _cut_widths(part)
    return small


def _parts(config: PretrainedConfig) -> list[PretrainedConfig]:
    parts = [getattr(config, name, None) for name in config.sub_configs]
    return [config, *(part for part in parts if isinstance(part, PretrainedConfig))]


def _context(config: PretrainedConfig) -> int:
    return getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 30


def _with_short_windows(name: str, value: Any, context: int) -> Any:
    """A window that the base can leave stays one that it can leave, and becomes short."""
    if isinstance(value, dict) and "rope" in name:
        return {
            key: _with_short_windows(key if not isinstance(one, dict) else name, one, context)
            for key, one in value.items()
        }
    is_window = any(word in name for word in _WINDOWS) and not any(word in name for word in _NO_WINDOW)
    return min(value, _WINDOW) if is_window and type(value) is int and 0 < value < context else value


def _parameters(config: PretrainedConfig) -> int:
    with torch.device("meta"):
        return sum(one.numel() for one in model_class(config)(config).parameters())


def _cut_layers(part: PretrainedConfig) -> None:
    """One layer of each kind that the configuration lists, two at least."""
    if type(getattr(part, "depth", None)) is int:  # what some call it that read pictures
        part.depth = min(part.depth, 2)
    count = getattr(part, "num_hidden_layers", None)
    if not count:
        return
    lists = {name: value for name, value in vars(part).items() if isinstance(value, (list, tuple))}
    numbers = {name: value for name, value in lists.items() if _is_of_numbers(value, count)}
    each = {name: value for name, value in lists.items() if name not in numbers and len(value) == count}
    kinds = [
        str([value[at] for value in each.values()] + [at in value for value in numbers.values()])
        for at in range(count)
    ]
    kept = sorted({kinds.index(kind) for kind in kinds} | set(range(min(2, count))))
    for name, value in each.items():
        setattr(part, name, type(value)(value[at] for at in kept))
    for name, value in numbers.items():
        setattr(part, name, type(value)(kept.index(at) for at in value if at in kept))
    for name, value in list(vars(part).items()):  # of kinds that follow from a layer's number
        if type(value) is int and name.endswith(("_layer_period", "_layer_offset")):
            setattr(part, name, min(value, 2 if name.endswith("period") else 1))
    part.num_hidden_layers = len(kept)


def _is_of_numbers(value: Sequence[Any], layers: int) -> bool:
    """Whether a list tells which layers are of a kind, by their numbers."""
    is_rising = all(type(one) is int for one in value) and list(value) == sorted(set(value))
    return is_rising and bool(value) and value[-1] < layers and (len(value) > 2 or list(value) != [0, 1])


def _cut_widths(part: PretrainedConfig) -> None:
    """What no other width follows from."""
    for name, value in list(vars(part).items()):
        if type(value) is not int:
            continue
        if name.endswith("intermediate_size"):
            setattr(part, name, min(value, _WIDTH))
        elif name == "vocab_size":
            setattr(part, name, min(value, _VOCABULARY))
        elif name.endswith("token_id"):
            setattr(part, name, value % _VOCABULARY)
        elif (name in _EXPERTS and (getattr(part, "n_group", None) or 1) == 1) or name.endswith("per_tok"):
            setattr(part, name, min(value, _FEW))
        elif name.endswith("chunk_size"):  # in which a recurrence is computed, whatever it is
            setattr(part, name, min(value, _WINDOW))


def _random_model(config: PretrainedConfig) -> PreTrainedModel:
    """In float32, with numbers so large that every token attends to some tokens more than to others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config)._from_config(config, attn_implementation="eager", dtype=torch.float32)
        for parameter in model.parameters():
            spread = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.1
            noise = torch.randn(parameter.shape) * spread
            parameter.data = noise if parameter.dim() > 1 else parameter.data + noise
    embedding: nn.Parameter = model.get_input_embeddings().weight
    embedding.data *= embedding.shape[-1] ** 0.5
    return model.eval()


def _rows(config: PretrainedConfig) -> list[Tensor]:
    """Three rows of ids: one as long as the context, and two that are so together, one of them shorter than
    any window.
    """
    length, vocabulary = min(_context(config), _CONTEXT), config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (2 * length,), generator=torch.Generator().manual_seed(1))
    if reads_pictures(config):
        plain = sorted(set(range(vocabulary)) - _special_ids(config))
        ids = torch.tensor(plain)[ids % len(plain)]
    return list(ids.split([length, short := max(1, length // 8), length - short]))


def _special_ids(config: PretrainedConfig) -> set[int]:
    """What may stand for a picture."""
    told = [value for part in _parts(config) for name, value in vars(part).items() if "token" in name]
    return {value for value in told if type(value) is int}


# Both ways.


@torch.no_grad()
def _alone(model: PreTrainedModel, row: Tensor) -> Tensor:
    """Logits [length, vocabulary] as transformers' own attention gives them."""
    return model(input_ids=row[None], use_cache=False).logits[0]


def _attention_of_ours(model: PreTrainedModel) -> list[Attending]:
    """The modules that attend, by our function. Raises InvalidModel."""
    with refusing(f"The attention of a {type(model).__name__} cannot be used yet"):
        set_attention(model, NAME)
        return find_attention_modules(model)


@torch.no_grad()
def _packed(model: PreTrainedModel, attention: Sequence[Attending], rows: Sequence[Tensor]) -> list[Tensor]:
    """Logits of each row, all of them in one batch of two blocks."""
    lengths = [len(row) for row in rows]
    bounds = [0, *itertools.accumulate(lengths)]
    positions = torch.cat([torch.arange(length) for length in lengths])
    with attend(attention, [Packed(bounds)] * len(attention)):
        logits = model(
            input_ids=torch.cat(list(rows)).view(2, -1), position_ids=positions.view(2, -1), use_cache=False
        ).logits
    return list(logits.flatten(0, 1).split(lengths))


@torch.no_grad()
def _decoded(model: PreTrainedModel, attention: Sequence[Attending], rows: Sequence[Tensor]) -> list[Tensor]:
    """Logits of each row: its prompt read in two pieces, its last token by itself beside a cache."""
    count, longest = len(rows), max(len(row) for row in rows)
    ids = torch.stack([torch.nn.functional.pad(row, (0, longest - len(row))) for row in rows])
    caches = [
        (
            torch.zeros(count, one.kv_heads, longest, one.key_width),
            torch.zeros(count, one.kv_heads, longest, one.value_width),
        )
        for one in attention
    ]
    read = []
    for start, stop in itertools.pairwise([0, longest // 2, longest - 1]):
        positions = torch.arange(start, stop).expand(count, -1)
        with attend(attention, [Prefill(keys, values, start) for keys, values in caches]):
            read.append(model(input_ids=ids[:, start:stop], position_ids=positions, use_cache=False).logits)
    last = torch.tensor([len(row) - 1 for row in rows])
    seen = (torch.arange(longest) <= last[:, None])[:, None, None]
    steps = [OneToken(keys, values, torch.arange(count), last, seen) for keys, values in caches]
    with attend(attention, steps):
        one = model(
            input_ids=torch.stack([row[-1:] for row in rows]), position_ids=last[:, None], use_cache=False
        ).logits
    prompts = torch.cat(read, dim=1)
    return [torch.cat([prompts[at, :end], one[at]]) for at, end in enumerate(last.tolist())]
