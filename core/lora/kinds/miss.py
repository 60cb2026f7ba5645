"""MiSS (Kang and Yin 2024, arXiv 2409.15371; peft_type MISS): the shards of W share one block of changes.

    y = W·x + Dᵀ·fold(x)         fold(x)ⱼ = Σ xᵢ over all i with i mod r = j

D [r, out] is all that is trained, and starts at zero. ΔW repeats D along the inputs, so it is Dᵀ·A with a
fixed A [r, in] of zeros and ones: a LoRA of rank r and scale 1, exactly. Only the plain form is computed
here; PEFT's forms "bat", whose ΔW depends on W, and "mini" are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from core.errors import InvalidAdapter, InvalidConfig
from core.lora.kinds import AdapterKind, LayerTensor
from core.lora.peft.config_checks import CONFIG_NAME, check_number

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from core.lora.adapter import AdapterWeights, LayerFactors, LayerWeights
    from core.lora.config import LoraConfig
    from core.lora.stack import AdapterStack


class Miss(AdapterKind):
    """One block of changes for all shards of a layer's inputs."""

    name, label, order = "miss", "MiSS", 20
    help = (
        "One trained block that all parts of a layer's input share; rank is its size, and alpha has no part "
        "in it. In PEFT's comparison (GSM8K, one seed) 48.7 % where LoRA had 47.4 to 51.3 %; few tools load "
        "it, but it becomes a LoRA exactly. A step takes 0.94 of LoRA's time here (1B, H100)."
    )

    def check(self, config: LoraConfig) -> None:
        """One rank for all layers, as in PEFT, and no alpha."""
        given = [name for name in ("rank_pattern", "alpha_pattern", "use_rslora") if getattr(config, name)]
        if given:
            raise InvalidConfig(
                f"{given[0]} is of no use to MiSS, which has one rank for all layers and no alpha; leave it "
                "out, or train LoRA."
            )

    def tensors(self, n_in: int, n_out: int, rank: int) -> tuple[LayerTensor, ...]:
        """D [r, out], and where each input goes, [in]. Raises InvalidConfig for fewer inputs than r."""
        if rank > n_in:
            raise InvalidConfig(
                f"MiSS of rank {rank} needs layers with as many inputs, and one has {n_in}; choose a rank up "
                "to that."
            )
        return LayerTensor("D", (rank, n_out)), LayerTensor("fold", (n_in,), trained=False)

    def derived(self, n_in: int, n_out: int, rank: int) -> Mapping[str, Tensor]:
        """i mod r."""
        import torch

        return {"fold": torch.arange(n_in).remainder(rank).float()}

    starts_from_weight = False

    def start(
        self, n_in: int, n_out: int, rank: int, weight: Tensor, generator: Generator, own: Any
    ) -> Mapping[str, Tensor]:
        """D zero."""
        import torch

        return {"D": torch.zeros(rank, n_out), **self.derived(n_in, n_out, rank)}

    def stack(self) -> type[AdapterStack]:
        """LoRA's operator with a fixed A."""
        from core.lora.shards import ShardFactors

        return ShardFactors

    def rank(self, layer: LayerWeights) -> int:
        """r."""
        return int(layer.tensors["D"].shape[0])

    def is_trained(self, layer: LayerWeights) -> bool:
        """Whether D is not zero any more."""
        return bool(layer.tensors["D"].any())

    def low_rank(self, layer: LayerWeights) -> LayerFactors:
        """D and the fixed A."""
        from core.lora.adapter import LayerFactors
        from core.lora.shards import folding

        D, fold = layer.tensors["D"], layer.tensors["fold"]
        return LayerFactors(folding(fold[None], len(D), D.dtype)[0], D.T.contiguous(), layer.scale)

    answers_as_lora = True

    def finished(self, adapter: AdapterWeights) -> AdapterWeights:
        """It has no alpha, so the scale is 1."""
        return replace(adapter, alpha=float(adapter.rank))

    peft_type = "MISS"
    peft_names: Mapping[str, str] = {"D": "miss_block"}
    peft_keys = frozenset({"r", "miss_dropout", "mini_r", "init_weights"})
    peft_biases = ()

    def check_peft(self, config: Mapping[str, Any]) -> None:
        """Ranges of r and dropout; the plain form alone."""
        check_number(config, "r", 1, 1024, whole=True)
        check_number(config, "miss_dropout", 0, 0.95, default=0)
        check_number(config, "mini_r", 1, 65536, whole=True, default=1)
        if not isinstance(config.get("init_weights", True), bool):
            raise InvalidAdapter(
                f"{CONFIG_NAME}: it is MiSS in the form {str(config['init_weights'])[:40]!r}, and only the "
                "plain form is computed here; PEFT's convert_to_lora makes a LoRA of it."
            )

    def peft_settings(self, adapter: AdapterWeights) -> dict[str, Any]:
        """As PEFT's MissConfig calls them."""
        return {
            "r": adapter.rank,
            "miss_dropout": adapter.dropout,
            "mini_r": 1,
            "init_weights": True,
            "bias": "none",
            "modules_to_save": None,
        }

    def stated(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """As AdapterWeights calls them."""
        dropout = float(config.get("miss_dropout", 0.0))
        return {"rank": config["r"], "alpha": float(config["r"]), "dropout": dropout}

    def stated_rank(self, config: Mapping[str, Any], path: str) -> int:
        """r."""
        return int(config["r"])


KIND = Miss()
