"""Full fine-tuning: what is trained is the model's own weights, and nothing is added to them.

All parameters are trained, embedding, norms, biases and output head among them; or those of the modules and
decoder layers that are chosen. The base stays as it is in memory: a run has numbers of its own in the place
of the base's (core/lora/whole.py), in float32, and its files hold these, so base + adapter is exactly what
was trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from core.errors import InvalidConfig
from core.lora.kinds import AdapterKind, LayerTensor

if TYPE_CHECKING:
    from core.lora.adapter import AdapterWeights
    from core.lora.config import LoraConfig

_OF_FACTORS = ("rank_pattern", "alpha_pattern", "use_rslora", "dropout")


class Full(AdapterKind):
    """The weights themselves."""

    name, label, order = "full", "Full fine-tuning", 90
    help = (
        "All weights of the model, or of the chosen modules and layers, instead of an adapter: the baseline "
        "beside LoRA. Rank and alpha have no part in it, its learning rate is about a tenth of LoRA's; it "
        "takes 16 to 18 bytes of memory for each weight and 4 on the disk."
    )
    whole = True

    def check(self, config: LoraConfig) -> None:
        """Nothing that speaks of factors."""
        given = [name for name in _OF_FACTORS if getattr(config, name)]
        given += ["modules_to_save or bias"] if config.trains_wholes else []
        if given:
            raise InvalidConfig(
                f"{given[0]} is of no use to full fine-tuning, which has no factors and trains all there is; "
                "leave it out, or train LoRA."
            )

    def tensors(self, n_in: int, n_out: int, rank: int) -> tuple[LayerTensor, ...]:
        """None: see `whole`."""
        return ()

    def parameter_count(self, layers: Iterable[tuple[int, int, int]], own: Any) -> int:
        """Of the weights of linear layers alone."""
        return sum(n_in * n_out for n_in, n_out, _ in layers)

    def training_bytes(self, layers: Iterable[tuple[int, int, int]], own: Any, work_bytes: float) -> float:
        """Of the weights of linear layers alone."""
        from core.lora.targets import whole_bytes

        return whole_bytes(self.parameter_count(layers, own), work_bytes)

    not_low_rank = "it is the trained weights themselves"

    peft_type = "FULL"
    peft_names: Mapping[str, str] = {}

    def peft_settings(self, adapter: AdapterWeights) -> dict[str, Any]:
        """PEFT has no such type; the file holds the weights under their own names."""
        return {"target_modules": adapter.target_names}

    def stated(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """No rank and no alpha."""
        return {"rank": 0, "alpha": 0.0, "dropout": 0.0}


KIND = Full()
