"""LoRA (Hu et al. 2021, arXiv 2106.09685), with rsLoRA's scale (arXiv 2312.03732) as an option.

            x ──────────────► W (frozen) ────────────► + ──► y
            │                                          ▲
            └──► A[k] (r×in) ──► B[k] (out×r) ──► · s[k]         y = W·x + s·B·A·x,  s = α/r

Equation 3 of the paper. A starts Kaiming-uniform with a = √5 and B at zero, as in the authors' loralib, so
ΔW = s·B·A is exactly zero before the first step. An adapter of lower rank is padded with zero rows, which add
nothing and get no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from core.errors import InvalidAdapter
from core.lora.kinds import AdapterKind, LayerTensor
from core.lora.peft.config_checks import CONFIG_NAME, check_number, check_pattern, check_switch
from core.lora.peft.expert_files import check_parameters
from core.lora.peft.targeting import exceptions, stated_for
from core.lora.scaling import alpha_of, scaling
from core.options import Config, option

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from core.lora.adapter import AdapterWeights, LayerFactors, LayerWeights
    from core.lora.config import LoraConfig
    from core.lora.expert_shapes import ExpertShape
    from core.lora.stack import AdapterStack

_RANKS, _ALPHAS = (1, 1024), (1e-3, 65536)
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # as init_lora_weights spells them


@dataclass(frozen=True)
class LoraOptions(Config):
    """Of this kind alone."""

    freeze_a: bool = option(
        False,
        "LoRA-FA",
        "Train B alone and leave A as it was drawn (arXiv 2308.03303): less memory, and less is learnt. In "
        "PEFT's comparison LoRA-FA reached 40.4 % where LoRA reached 47.8 % (GSM8K, one seed).",
    )
    lora_bias: bool = option(
        False,
        "Bias on B",
        "Train a bias beside B on each targeted layer (PEFT's lora_bias). Only layers that have a bias in "
        "the base can be merged with it.",
    )


class Lora(AdapterKind):
    """h = W₀x + (α/r)·B·A·x."""

    name, label, order = "lora", "LoRA", 0
    options: type[Config] = LoraOptions
    help = "Two low-rank factors beside each frozen layer; what every tool can load."

    takes_parts = True
    takes_experts = True
    starts_from_weight = reads_weight = False

    def takes_embedding(self, own: Config) -> bool:
        """Where A is trained, which is what starts at zero there, and B has no bias."""
        return isinstance(own, LoraOptions) and not (own.freeze_a or own.lora_bias)

    def tensors(self, n_in: int, n_out: int, rank: int) -> tuple[LayerTensor, ...]:
        """A [r, in] and B [out, r]."""
        return LayerTensor("A", (rank, n_in)), LayerTensor("B", (n_out, rank))

    def start(
        self, n_in: int, n_out: int, rank: int, weight: Tensor, generator: Generator, own: Any
    ) -> Mapping[str, Tensor]:
        """A Kaiming-uniform, B zero."""
        import torch

        A = torch.nn.init.kaiming_uniform_(torch.empty(rank, n_in), a=math.sqrt(5), generator=generator)
        return {"A": A, "B": torch.zeros(n_out, rank)}

    def start_embedding(
        self, n_in: int, n_out: int, rank: int, weight: Tensor, generator: Generator, own: Any
    ) -> Mapping[str, Tensor]:
        """A zero and B normal, as in loralib."""
        import torch

        return {"A": torch.zeros(rank, n_in), "B": torch.randn(n_out, rank, generator=generator)}

    def start_experts(
        self, shape: ExpertShape, rank: int, generator: Generator, own: Any
    ) -> Mapping[str, Tensor]:
        """Of each expert as of a layer."""
        import torch

        n_in, n_out = shape
        fresh = self.start(n_in, n_out, rank * shape.experts, torch.empty(0), generator, own)
        A, B = fresh["A"], fresh["B"]
        return {"A": A.view(shape.experts, rank, n_in), "B": B.view(shape.experts, n_out, rank)}

    def frozen(self, own: Config) -> frozenset[str]:
        """A, in LoRA-FA."""
        return frozenset({"A"} if isinstance(own, LoraOptions) and own.freeze_a else ())

    def biases_on_b(self, own: Config) -> bool:
        """Where the option says so."""
        return isinstance(own, LoraOptions) and own.lora_bias

    def scale(self, config: LoraConfig, path: str) -> float:
        """α/r or α/√r."""
        return config.scaling_of(path)

    def rate_ratio(self, name: str, plus: float) -> float:
        """LoRA+ (arXiv 2402.12354): B learns faster than A."""
        return plus if name == "B" else 1.0

    def stack(self) -> type[AdapterStack]:
        """One operator for the base's product and the adapters', and kernels for decoding."""
        from core.lora.factors import LoraFactors

        return LoraFactors

    def added(
        self, x: Tensor, y: Tensor, weight: Tensor, tensors: Mapping[str, Tensor], scale: Tensor
    ) -> Tensor:
        """scale·B·A·x."""
        low = x.bmm(tensors["A"].transpose(1, 2)) * scale[:, None, None]
        return low.bmm(tensors["B"].transpose(1, 2))

    def layer(self, tensors: Mapping[str, Tensor], scale: float) -> LayerWeights:
        """A and B with their scale."""
        from core.lora.adapter import LayerFactors

        return LayerFactors(tensors["A"], tensors["B"], scale)

    def rank(self, layer: LayerWeights) -> int:
        """r."""
        return int(layer.tensors["A"].shape[-2])

    def is_trained(self, layer: LayerWeights) -> bool:
        """Whether neither factor is zero: B starts so, and of an embedding A."""
        return bool(layer.tensors["A"].any() and layer.tensors["B"].any())

    def low_rank(self, layer: LayerWeights) -> LayerFactors:
        """The layer itself."""
        return cast("LayerFactors", layer)

    plain_lora = True

    takes_bias_on_b = True
    peft_type = "LORA"
    peft_names: Mapping[str, str] = {"A": "lora_A.weight", "B": "lora_B.weight"}
    embedding_names: Mapping[str, str] = {"A": "lora_embedding_A", "B": "lora_embedding_B"}
    peft_keys = frozenset(
        {
            "r",
            "lora_alpha",
            "lora_dropout",
            "fan_in_fan_out",
            "use_rslora",
            "rank_pattern",
            "alpha_pattern",
            "init_lora_weights",
            "target_parameters",
        }
    )
    peft_refused: Mapping[str, str] = {
        "trainable_token_indices": "adapters with trained tokens cannot be used",
        "use_qalora": "QALoRA adapters, which pool their inputs, cannot be used",
        "use_bdlora": "block-diagonal adapters (BD-LoRA) cannot be used",
        "alora_invocation_tokens": "activated LoRA, which works only behind certain tokens, cannot be used",
        "arrow_config": "a router over several adapters (Arrow) cannot be used",
        "layer_replication": "adapters for a model whose layers are repeated cannot be used",
        "kasa_config": "KaSA adapters, which change the base, cannot be used",
        "monteclora_config": "MonteCLoRA adapters, which are random in each pass, cannot be used",
        "megatron_config": "adapters of Megatron cannot be used",
    }

    def check_peft(self, config: Mapping[str, Any]) -> None:
        """Ranges of r, alpha and dropout; no start that changes the base."""
        check_number(config, "r", *_RANKS, whole=True)
        check_number(config, "lora_alpha", *_ALPHAS)
        check_number(config, "lora_dropout", 0, 0.95, default=0)
        check_pattern(config, "rank_pattern", *_RANKS)
        check_pattern(config, "alpha_pattern", *_ALPHAS)
        start = config.get("init_lora_weights", True)
        if isinstance(start, str) and start.lower().startswith(_CHANGES_THE_BASE):
            raise InvalidAdapter(
                f"{CONFIG_NAME}: it was trained with {start}, which changes the base; convert it to plain "
                "LoRA first."
            )
        check_switch(config, "fan_in_fan_out")
        check_parameters(config, self.takes_experts)
        check_switch(config, "use_rslora")

    def peft_settings(self, adapter: AdapterWeights) -> dict[str, Any]:
        """Layers whose rank or alpha is another than the adapter's stand in the patterns."""
        ranks = {path: self.rank(layer) for path, layer in adapter.layers.items()}
        alphas = {
            path: _stated_alpha(alpha_of(layer.scale, ranks[path], adapter.use_rslora), adapter.alpha)
            for path, layer in adapter.layers.items()
        }
        return {
            "r": adapter.rank,
            "lora_alpha": adapter.alpha,
            "lora_dropout": adapter.dropout,
            "bias": "none",
            "use_rslora": adapter.use_rslora,
            "use_dora": False,
            "fan_in_fan_out": adapter.fan_in_fan_out,
            "rank_pattern": exceptions(ranks, adapter.rank),
            "alpha_pattern": exceptions(alphas, adapter.alpha),
            "modules_to_save": None,
            "init_lora_weights": True,
        }

    def stated(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """As AdapterWeights calls them."""
        return {
            "rank": config["r"],
            "alpha": float(config["lora_alpha"]),
            "dropout": float(config.get("lora_dropout", 0.0)),
            "fan_in_fan_out": config.get("fan_in_fan_out", False),
            "use_rslora": config.get("use_rslora", False),
        }

    def stated_rank(self, config: Mapping[str, Any], path: str) -> int:
        """r, or what rank_pattern says."""
        return int(stated_for(config.get("rank_pattern") or {}, path, config["r"]))

    def stated_scale(self, config: Mapping[str, Any], path: str) -> float:
        """α/r or α/√r, with what alpha_pattern and rank_pattern say."""
        alpha = float(stated_for(config.get("alpha_pattern") or {}, path, config["lora_alpha"]))
        return scaling(alpha, self.stated_rank(config, path), bool(config.get("use_rslora")))


def _stated_alpha(alpha: float, usual: float) -> float:
    """With nine digits, since the scale was rounded to float32; the usual one if it is that."""
    return usual if math.isclose(alpha, usual, rel_tol=1e-6) else float(f"{alpha:.9g}")


KIND = Lora()
