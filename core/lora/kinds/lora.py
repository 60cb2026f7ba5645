"""LoRA (Hu et al. 2021, arXiv 2106.09685), with rsLoRA's scale (arXiv 2312.03732) as an option."""

from __future__ import annotations

from core.lora.kinds import AdapterKind


class Lora(AdapterKind):
    """h = W₀x + (α/r)·B·A·x."""

    name, label, order = "lora", "LoRA", 0
    help = "Two low-rank factors beside each frozen layer; what every tool can load."


KIND = Lora()
