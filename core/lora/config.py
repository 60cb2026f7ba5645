"""The shape of an adapter. Defaults follow common practice: rank 16, alpha 32, all linear layers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from core.errors import InvalidConfig
from core.lora.expert_shapes import EXPERTS
from core.lora.fused import parts_by_name
from core.lora.kinds import ADAPTER_KINDS
from core.lora.module_names import by_pattern
from core.lora.scaling import scaling
from core.options import Config, option

ALL_LINEAR = "all-linear"
EMBEDDING, HEAD = "embedding", "head"
_CALLED = {
    **dict.fromkeys(("embed_tokens", "wte", "embed_in", "word_embeddings"), EMBEDDING),
    **dict.fromkeys(("lm_head", "embed_out"), HEAD),
}
"""What models call the two, as people who know PEFT write them."""
ALL_BIASES, TARGETED_BIASES = "all", "lora_only"


def _adapter_kinds() -> tuple[str, ...]:
    return ADAPTER_KINDS.names  # when asked: a kind's head may need this file


@dataclass(frozen=True)
class LoraConfig(Config):
    """The shape of an adapter: h = W₀x + (α/r)·B·A·x (Hu et al. 2021, arXiv 2106.09685, section 4.1)."""

    kind: str = option(
        "lora",
        "Adapter kind",
        "What is trained on each targeted layer.",
        choices=_adapter_kinds,
        subject="Adapter",
    )
    rank: int = option(
        16,
        "Rank (r)",
        "Size of the low-rank factors: 4 to 16 for style and format, more where many rows teach what is new "
        "(LoRA Without Regret, 2025).",
        minimum=1,
        maximum=1024,
        subject="Adapter",
        common=True,
    )
    alpha: float = option(
        32.0,
        "Alpha (α)",
        "ΔW is scaled by alpha / rank. Twice the rank is common.",
        minimum=0.001,
        maximum=65536,
        subject="Adapter",
        common=True,
    )
    dropout: float = option(
        0.0,
        "Dropout",
        "Share of the adapter's inputs zeroed while training.",
        minimum=0.0,
        maximum=0.95,
        subject="Adapter",
    )
    target_modules: str = option(
        ALL_LINEAR,
        "Target modules",
        "all-linear (every linear layer but the output head), or names separated by commas: q_proj,v_proj. "
        "The words attention, feed-forward and query-value (the paper's choice) mean such layers of a base. "
        "All layers learn more than attention alone (LoRA Without Regret, 2025).",
        subject="Adapter",
        common=True,
    )
    target_parameters: str = option(
        "",
        "Experts",
        "LoRA on the experts of a mixture as well, on each expert its own (PEFT's target_parameters). Empty "
        "for attention and the layers that all tokens share. It multiplies what is trained by the number of "
        "experts, and each expert learns from its tokens alone. Routers stay frozen.",
        several=((EXPERTS, "All experts of all chosen layers"),),
        subject="Adapter",
    )
    use_rslora: bool = option(
        False,
        "rsLoRA",
        "Scale by alpha / √rank, which keeps high ranks learning: 3.9 points at rank 64 in PEFT's "
        "comparison.",
        subject="Adapter",
    )
    rank_pattern: str = option(
        "", "Rank pattern", "Another rank for some modules: q_proj=8,down_proj=32.", subject="Adapter"
    )
    alpha_pattern: str = option(
        "", "Alpha pattern", "Another alpha for some modules: q_proj=16.", subject="Adapter"
    )
    enable_lora: str = option(
        "",
        "Parts of fused layers",
        "LoRA on some parts alone of a layer that holds several: c_attn=q+v for q and v of GPT-2's c_attn "
        "(MergedLinear of the paper's authors, enable_lora=[True, False, True]), qkv_proj=q+v or "
        "gate_up_proj=up of Phi-3. Each part gets the rank. Empty for whole layers.",
        subject="Adapter",
    )
    layers_to_transform: str = option(
        "",
        "Layers to transform",
        "Decoder layers to adapt, counted from 0: 0-7,12. Empty for all.",
        subject="Adapter",
    )

    modules_to_save: str = option(
        "",
        "Modules trained whole",
        "Embedding and head trained whole beside the factors (PEFT's modules_to_save), which new tokens "
        "need, such as those of a chat template that the base never learnt. Each adapter has a copy of its "
        "own, which takes memory for its numbers, their gradients and two moments. Where the base ties both, "
        "they are trained as one.",
        several=(
            (EMBEDDING, "The input embedding, whatever it is called in the model"),
            (HEAD, "The output head that gives the logits"),
        ),
        subject="Adapter",
    )
    bias: str = option(
        "none",
        "Biases of the base",
        "Which biases the model has are trained too: all of them, those of the targeted layers (lora_only), "
        "or none. An adapter with biases of its own cannot be combined with others or cut to a rank.",
        choices=("none", ALL_BIASES, TARGETED_BIASES),
        subject="Adapter",
    )

    on_top_of: str = option(
        "",
        "On top of",
        "Another adapter of this base, by name, that takes part in every pass and stays as it is: a task on "
        "top of a style. What is kept is the sum of both, as one LoRA whose ranks add up.",
        subject="Adapter",
    )

    @property
    def whole_names(self) -> tuple[str, ...]:
        """What modules_to_save names; the names that models have for the two are understood."""
        given = filter(None, (one.strip() for one in self.modules_to_save.split(",")))
        return tuple(dict.fromkeys(_CALLED.get(one, one) for one in given))

    @property
    def trains_wholes(self) -> bool:
        """Whether numbers of the base are trained beside the factors."""
        return bool(self.whole_names) or self.bias != "none"

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """The names in target_parameters."""
        return tuple(name.strip() for name in self.target_parameters.split(",") if name.strip())

    @property
    def scaling(self) -> float:
        """The factor in front of BA where no pattern says otherwise."""
        return scaling(self.alpha, self.rank, self.use_rslora)

    def rank_of(self, path: str) -> int:
        """r of the layer at this module path; of a fused one that of all its parts together."""
        return self._part_rank(path) * max(1, len(by_pattern(self.parts, path, ())))

    def _part_rank(self, path: str) -> int:
        return int(by_pattern(_pattern(self.rank_pattern, "rank_pattern"), path, self.rank))

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """The parts of fused layers that get LoRA, by the layers' names."""
        return parts_by_name(self.enable_lora)

    def scaling_of(self, path: str) -> float:
        """The factor in front of BA of the layer at this module path."""
        alpha = by_pattern(_pattern(self.alpha_pattern, "alpha_pattern"), path, self.alpha)
        return scaling(alpha, self._part_rank(path), self.use_rslora)

    @property
    def pattern_names(self) -> tuple[str, ...]:
        """The module names that a pattern, or a choice of parts, speaks of."""
        ranks, alphas = (
            _pattern(self.rank_pattern, "rank_pattern"),
            _pattern(self.alpha_pattern, "alpha_pattern"),
        )
        return (*ranks, *alphas, *self.parts)

    @property
    def layer_numbers(self) -> frozenset[int] | None:
        """The decoder layers to adapt, counted from 0; None for all."""
        return _layer_numbers(self.layers_to_transform)

    @property
    def target_names(self) -> tuple[str, ...]:
        """The target modules as a tuple of names."""
        return tuple(name.strip() for name in self.target_modules.split(",") if name.strip())

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.target_names:
            raise InvalidConfig("target_modules is empty; give all-linear or names such as q_proj,v_proj.")
        limits = {option.name: option for option in self.options()}
        for rank in _pattern(self.rank_pattern, "rank_pattern").values():
            if rank != int(rank):
                raise InvalidConfig(f"rank_pattern must give whole numbers, not {rank:g}.")
            limits["rank"].check(int(rank))
        for alpha in _pattern(self.alpha_pattern, "alpha_pattern").values():
            limits["alpha"].check(alpha)
        for name in self.parts:
            limits["rank"].check(self.rank_of(name))
        _layer_numbers(self.layers_to_transform)
        if unknown := [name for name in self.whole_names if name not in (EMBEDDING, HEAD)]:
            raise InvalidConfig(
                f"modules_to_save takes {EMBEDDING} and {HEAD}, separated by a comma, not {unknown[0]!r}: "
                "what they are called in the model is found by itself."
            )
        kind = ADAPTER_KINDS.get(self.kind)
        if self.parameter_names:
            self._check_experts()
        if self.bias != "none" and self.bias not in kind.peft_biases:
            raise InvalidConfig(f"{kind.label} trains no biases of the base; leave bias at none.")
        if self.parts and not kind.takes_parts:
            raise InvalidConfig(
                f"enable_lora is for the kind lora alone: {kind.label} depends on the whole of W; leave it "
                "empty."
            )
        if self.on_top_of and not kind.plain_lora:
            raise InvalidConfig(f"on_top_of is for plain LoRA alone, not {kind.label}; leave it empty.")
        if self.on_top_of and self.dropout:
            raise InvalidConfig(
                "on_top_of: dropout would thin out the adapter below as well; set dropout to 0."
            )
        kind.check(self)

    def _check_experts(self) -> None:
        """What an adapter on experts cannot have."""
        kind = ADAPTER_KINDS.get(self.kind)
        if not kind.takes_experts:
            raise InvalidConfig(
                f"target_parameters is for plain LoRA alone: {kind.label} cannot be on experts; leave it "
                "empty."
            )
        if self.dropout:
            raise InvalidConfig(
                "target_parameters: there is no dropout on experts, as in PEFT, whose ΔW is added to the "
                "weights; set dropout to 0."
            )
        if self.parts:
            raise InvalidConfig(
                "enable_lora chooses parts of layers by their names, which experts share; leave it or "
                "target_parameters empty."
            )
        if self.on_top_of:
            raise InvalidConfig(
                "on_top_of: there is no learning on top of another adapter on experts; leave "
                "target_parameters empty."
            )


def _pattern(text: str, name: str) -> dict[str, float]:
    """module=number pairs, separated by commas."""
    pairs: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        module, equals, number = part.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not equals or not module.strip() or not math.isfinite(value):
            raise InvalidConfig(
                f"{name}: {part!r} is not module=number; write for example q_proj=8,down_proj=32."
            )
        pairs[module.strip()] = value
    return pairs


def _layer_numbers(text: str) -> frozenset[int] | None:
    """Numbers and ranges such as 0-7,12. None for an empty text."""
    numbers: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
            raise InvalidConfig(
                f"layers_to_transform: {part!r} is no layer number or range; write for example 0-7,12."
            )
        numbers.update(range(int(first), int(last or first) + 1))
    return frozenset(numbers) or None
