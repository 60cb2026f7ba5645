"""An adapter that learns on top of another one: that one's ΔW takes part in every pass and stays as it is.

On a layer that both are on, the factors are A = [A_new; A_below] and B = [B_new, (s_below/s)·B_below], with
the scale s of the new one; on others those of whoever is there. So base + below + new is one ordinary LoRA,
whose ranks add up and which every tool loads. Only the new one's rows of A and columns of B learn.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from core.errors import InvalidConfig
from core.lora.adapter import AdapterWeights, LayerFactors, LayerWeights


def factors_below(
    adapter: AdapterWeights, targetable: Mapping[str, tuple[int, int]]
) -> dict[str, LayerFactors]:
    """What another adapter can learn on, by module path. `targetable`: the shapes of the layers that can have
    factors.

    Raises InvalidAdapter where its ΔW is no product of factors, InvalidConfig where a layer cannot have both.
    """
    adapter.require_factors_alone("learning on top of it")
    found = dict(adapter.low_rank())
    if unknown := sorted(set(found) - set(targetable)) or [adapter.embedding] * bool(adapter.embedding):
        raise InvalidConfig(
            f"on_top_of: that adapter has factors on {unknown[0]}, on which a new one cannot learn beside it."
        )
    return found


def stacked(layers: Mapping[str, LayerWeights], below: Mapping[str, LayerFactors]) -> dict[str, LayerWeights]:
    """The new one's layers with what is below them."""
    return {
        **layers,
        **{path: _on(layers[path], one) if path in layers else one for path, one in below.items()},
    }


def _on(new: LayerWeights, below: LayerFactors) -> LayerFactors:
    A, B = new.tensors["A"], new.tensors["B"]
    B_below = (below.B * (below.scale / new.scale)).to(B)
    return LayerFactors(torch.cat([A, below.A.to(A)]), torch.cat([B, B_below], dim=1), new.scale)


def learning(shape: tuple[int, int], rank: int, below: int, of_B: Tensor | None = None) -> dict[str, Tensor]:
    """Where A [rank + below, in] and B [out, rank + below] of a layer of this (in, out) learn, bool.

    of_B: where the new one's B [out, rank] does, if not everywhere.
    """
    inputs, outputs = shape
    A = torch.zeros(rank + below, inputs, dtype=torch.bool)
    B = torch.zeros(outputs, rank + below, dtype=torch.bool)
    A[:rank] = True
    B[:, :rank] = True if of_B is None else of_B
    return {"A": A, "B": B}
