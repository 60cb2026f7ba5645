"""AdaLoRA (Zhang et al. 2023, arXiv 2303.10512): ranks go to the layers where they matter.

    ΔW = s·P·Λ·Q,  s = α/(r + 1e-5)          equation 3; P [out, r], Λ = diag(E) [r], Q [r, in]

E starts at zero, P and Q from N(0, 0.02²), and a penalty keeps P and Q near orthonormal (equation 4). Each
triplet (a column of P, a number of E, a row of Q) has an importance: how much the loss would feel its
absence, as sensitivity times uncertainty, both smoothed (equations 8 to 11). After a while with all of them,
as many as the budget says are left each time, by importance; the others' E is set to zero. The budget falls
by a cubic curve (equation 12), and at last what is left trains on. r in the scale stays the rank at the
start, as in PEFT. What computes is in core/lora/budget.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from core.errors import InvalidAdapter, InvalidConfig
from core.lora.kinds import AdapterKind, LayerTensor
from core.lora.kinds.lora import Lora
from core.lora.peft.config_checks import CONFIG_NAME, check_number, check_switch
from core.options import Config, option

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from core.lora.adapter import AdapterWeights, LayerFactors, LayerWeights
    from core.lora.bank import AdapterBank
    from core.lora.config import LoraConfig
    from core.lora.stack import AdapterStack

_STORED = ("P", "E", "Q")
_MEANS = tuple(f"{name}_{what}" for what in ("sensitivity", "uncertainty") for name in _STORED)
_RECORDS = 40  # of the ranks, in a run


@dataclass(frozen=True)
class AdaloraOptions(Config):
    """Of this kind alone."""

    rank_share: float = option(
        0.5, "Ranks left", "Share of all ranks that is left at the end.", minimum=0.01, maximum=1.0
    )
    rank_hold: float = option(
        0.1, "Ranks held", "Share of the steps before any rank is taken.", minimum=0.0, maximum=0.5
    )
    rank_settle: float = option(
        0.3, "Ranks settled", "Share of the steps at the end in which ranks stay.", minimum=0.0, maximum=0.49
    )
    rank_every: int = option(
        1,
        "Ranks decided every",
        "Steps from one decision to the next.",
        unit="steps",
        minimum=1,
        maximum=1000,
    )
    orthogonality: float = option(
        0.5, "Orthogonality", "Weight of the penalty on P and Q.", minimum=0.0, maximum=10.0
    )
    importance_decay: float = option(
        0.85, "Importance smoothing", "What stays of a mean at each step.", minimum=0.01, maximum=0.99
    )


class Adalora(AdapterKind):
    """LoRA in the form of a singular value decomposition, with a budget of ranks."""

    name, label, order = "adalora", "AdaLoRA", 40
    options = AdaloraOptions
    help = (
        "Starts with rank r on every layer and takes the least important ranks away as it learns. In PEFT's "
        "comparison (GSM8K, one seed) 37.3 %, where LoRA of rank 32 had 47.8 %. A step takes 1.06 of LoRA's "
        "time here (1B, H100)."
    )

    def check(self, config: LoraConfig) -> None:
        """One rank to start with and one alpha, as in PEFT."""
        given = [name for name in ("rank_pattern", "alpha_pattern", "use_rslora") if getattr(config, name)]
        if given:
            raise InvalidConfig(
                f"{given[0]} is of no use to AdaLoRA, which starts with one rank and finds those of the "
                "layers itself; leave it out, or train LoRA."
            )

    def tensors(self, n_in: int, n_out: int, rank: int) -> tuple[LayerTensor, ...]:
        """P, E and Q; and for training what is left (1 or 0), and each one's smoothed sensitivity and
        uncertainty.
        """
        own = {"P": (n_out, rank), "E": (rank, 1), "Q": (rank, n_in)}
        means = [LayerTensor(name, own[name[0]], trained=False, kept=False) for name in _MEANS]
        left = LayerTensor("left", (rank, 1), trained=False, kept=False)
        return (*(LayerTensor(name, own[name]) for name in _STORED), left, *means)

    starts_from_weight = False

    def start(
        self, n_in: int, n_out: int, rank: int, weight: Tensor, generator: Generator, own: Any
    ) -> Mapping[str, Tensor]:
        """E zero; all ranks left."""
        import torch

        zeros = {one.name: torch.zeros(one.shape) for one in self.tensors(n_in, n_out, rank)}
        drawn = {name: zeros[name].normal_(0.0, 0.02, generator=generator) for name in ("P", "Q")}
        return {**zeros, **drawn, "left": torch.ones(rank, 1)}

    def scale(self, config: LoraConfig, path: str) -> float:
        """α/(r + 1e-5)."""
        return _scale(config.alpha, config.rank)

    def before_step(self, bank: AdapterBank, slot: int, own: AdaloraOptions) -> None:
        """The penalty's gradient."""
        from core.lora.budget import penalise

        penalise(bank, slot, own.orthogonality)

    def after_step(self, bank: AdapterBank, slot: int, done: int, planned: int, own: AdaloraOptions) -> None:
        """Importances, and what they leave."""
        from core.lora.budget import allocate

        allocate(bank, slot, done, planned, own)

    def ranks(self, bank: AdapterBank, slot: int, done: int, planned: int) -> Mapping[str, int] | None:
        """What is left on each layer, some forty times a run."""
        from core.lora.budget import ranks_left

        due = done % max(1, planned // _RECORDS) == 0 or done == planned
        return ranks_left(bank, slot) if due else None

    def stack(self) -> type[AdapterStack]:
        """LoRA's operator with A = E ∘ Q."""
        from core.lora.budget import TripletFactors

        return TripletFactors

    def rank(self, layer: LayerWeights) -> int:
        """Triplets."""
        return int(layer.tensors["Q"].shape[0])

    def is_trained(self, layer: LayerWeights) -> bool:
        """Whether E is not zero any more."""
        return bool(layer.tensors["E"].any())

    def low_rank(self, layer: LayerWeights) -> LayerFactors:
        """E ∘ Q and P; of rank 1 and zero where no triplet is left."""
        from core.lora.adapter import LayerFactors

        P, E, Q = (layer.tensors[name] for name in _STORED)
        if not len(Q):
            return LayerFactors(Q.new_zeros(1, Q.shape[1]), P.new_zeros(P.shape[0], 1), layer.scale)
        return LayerFactors(E * Q, P, layer.scale)

    answers_as_lora = True

    state_names = frozenset({*_STORED, *_MEANS, "left"})

    def finished(self, adapter: AdapterWeights) -> AdapterWeights:
        """The triplets that are left."""
        layers = {}
        for path, layer in adapter.layers.items():
            own = layer.tensors
            kept = ((own["left"] != 0) | (own["E"] != 0)).flatten()
            left = {"P": own["P"][:, kept].contiguous(), "E": own["E"][kept], "Q": own["Q"][kept]}
            layers[path] = self.layer(left, layer.scale)
        return replace(adapter, layers=layers)

    peft_type = "ADALORA"
    peft_names: Mapping[str, str] = {"P": "lora_B", "E": "lora_E", "Q": "lora_A"}
    peft_keys = frozenset(
        {
            "r",
            "init_r",
            "target_r",
            "lora_alpha",
            "lora_dropout",
            "fan_in_fan_out",
            "use_rslora",
            "init_lora_weights",
            "rank_pattern",
            "tinit",
            "tfinal",
            "deltaT",
            "beta1",
            "beta2",
            "total_step",
            "orth_reg_weight",
        }
    )
    peft_refused: Mapping[str, str] = {
        **Lora.peft_refused,
        "use_dora": "AdaLoRA is not used together with DoRA",
        "alpha_pattern": "AdaLoRA has one alpha for all layers",
    }

    def check_peft(self, config: Mapping[str, Any]) -> None:
        """Ranges of the ranks, alpha and dropout; the ranks of the layers."""
        check_number(config, "init_r", 1, 1024, whole=True)
        check_number(config, "lora_alpha", 1e-3, 65536)
        check_number(config, "lora_dropout", 0, 0.95, default=0)
        check_switch(config, "fan_in_fan_out")
        pattern = config.get("rank_pattern") or {}
        most = config["init_r"]
        if not isinstance(pattern, dict) or not all(_is_choice(one, most) for one in pattern.values()):
            raise InvalidAdapter(
                f"{CONFIG_NAME}: rank_pattern must say of each layer which of its {most} triplets are left, "
                "as a list of true and false."
            )

    def peft_settings(self, adapter: AdapterWeights) -> dict[str, Any]:
        """As PEFT's AdaLoraConfig calls them. The schedule is over, so it is one step; which triplets a layer
        had is not kept, only how many.
        """
        ranks = {path: self.rank(layer) for path, layer in adapter.layers.items()}
        full = all(rank == adapter.rank for rank in ranks.values())
        chosen = {f"{path}.lora_E": [at < rank for at in range(adapter.rank)] for path, rank in ranks.items()}
        return {
            "init_r": adapter.rank,
            "target_r": max(1, round(sum(ranks.values()) / len(ranks))),
            "lora_alpha": adapter.alpha,
            "lora_dropout": adapter.dropout,
            "fan_in_fan_out": adapter.fan_in_fan_out,
            "bias": "none",
            "rank_pattern": None if full else chosen,
            "tinit": 0,
            "tfinal": 0,
            "total_step": 1,
            "modules_to_save": None,
        }

    def stated(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """As AdapterWeights calls them."""
        return {
            "rank": config["init_r"],
            "alpha": float(config["lora_alpha"]),
            "dropout": float(config.get("lora_dropout", 0.0)),
            "fan_in_fan_out": config.get("fan_in_fan_out", False),
        }

    def stated_rank(self, config: Mapping[str, Any], path: str) -> int:
        """The triplets that are left, or all."""
        chosen = (config.get("rank_pattern") or {}).get(f"{path}.lora_E")
        return int(config["init_r"]) if chosen is None else sum(chosen)

    def stated_scale(self, config: Mapping[str, Any], path: str) -> float:
        """α/(r + 1e-5) by the rank at the start."""
        return _scale(float(config["lora_alpha"]), config["init_r"])


def _scale(alpha: float, rank: int) -> float:
    return alpha / (rank + 1e-5)


def _is_choice(value: object, most: int) -> bool:
    return isinstance(value, list) and len(value) <= most and all(isinstance(one, bool) for one in value)


KIND = Adalora()
