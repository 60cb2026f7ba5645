"""A base whose layers lie in parts on several processes, none of which holds it all (FSDP2: torch's
fully_shard).

Each decoder layer is gathered when it computes, forward and backward, and let go of behind it. Embedding,
last norm and head lie whole on every process: what asks for them does so outside of the layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from core.base_model.load import ResidentBase
from core.base_model.quantisation import LABELS, NONE
from core.errors import InvalidModel


def mesh_of(device: torch.device) -> DeviceMesh:
    """All processes of the default group, each with a device of this type."""
    return init_device_mesh(device.type, (dist.get_world_size(),))


def shard_layers(layers: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Lay each layer out over the mesh: every process keeps its part of each weight, on its device. A weight
    may come from the CPU, so that the device never holds them all.
    """
    for layer in layers:
        if not isinstance(layer, FSDPModule):
            fully_shard(layer, mesh=mesh)


def shard(base: ResidentBase, device: torch.device) -> ResidentBase:
    """Lay `base` out over all processes of the default group, in place; `device`: this one's.

    Raises InvalidModel where that cannot be done.
    """
    if base.quantisation != NONE:
        raise InvalidModel(
            f"{base.name} is held in {LABELS[base.quantisation]}, and only a base as its files have it is "
            "laid out over several processes. Choose quantisation=none."
        )
    if not (base.way.quick and base.writes_text):
        raise InvalidModel(
            f"{base.name} is not computed on the quick way, and only such a base is laid out over several "
            "processes."
        )
    mesh = mesh_of(device)
    shard_layers(base.decoder_layers, mesh)
    shard_around(base.model, base.inner, base.decoder_layers, mesh, device)
    base.joints = ()  # which hold the weights whole
    return base


def shard_around(
    model: nn.Module, inner: nn.Module, layers: Sequence[nn.Module], mesh: DeviceMesh, device: torch.device
) -> None:
    """Have the layers of `inner`, which are laid out, gathered one ahead of the other; before any pass
    through one of them. What of `model` is in none of them goes to `device` whole.
    """
    parts = {one for layer in layers for one in layer.parameters()}
    whole = [one for one in model.parameters() if one not in parts]
    for one in [*whole, *model.buffers()]:
        one.data = one.data.to(device)
    fully_shard(inner, mesh=mesh, ignored_params=set(whole))
