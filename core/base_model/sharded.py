"""A base whose layers lie in parts on several processes, none of which holds it all (FSDP2: torch's
fully_shard).

Each decoder layer is gathered when it computes, forward and backward, and let go of behind it. Embedding,
last norm and head lie whole on every process: what asks for them does so outside of the layers. Of a base in
4 or 8 bits the packed numbers and their scales are laid out and gathered, and W is made of them behind that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from core.base_model.agreement import find_way
from core.base_model.load import ResidentBase, decoder_layers, load_writing, make_resident
from core.base_model.model_config import is_writing, load_config
from core.base_model.quantisation import FP8, LABELS, NONE
from core.base_model.quantised_load import quantise, quantised_layers, require_bitsandbytes
from core.base_model.tokenizer import load_tokenizer
from core.errors import InvalidModel


def mesh_of(device: torch.device) -> DeviceMesh:
    """All processes of the default group, each with a device of this type."""
    return init_device_mesh(device.type, (dist.get_world_size(),))


def shard_layers(layers: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Lay each layer out over the mesh: every process keeps its part of each weight, on its device. A weight
    may come from the CPU, so that the device never holds them all.
    """
    for layer in layers:
        if isinstance(layer, FSDPModule):
            continue
        for one in quantised_layers(layer):
            one.become_divisible()
        fully_shard(layer, mesh=mesh)


def load_sharded(
    folder: Path,
    *,
    fingerprint: str,
    name: str,
    template: str,
    device: torch.device,
    dtype: torch.dtype,
    quantisation: str,
) -> ResidentBase:
    """The base in `folder` over all processes of the default group, which call this at the same time;
    device: this one's. It never holds more of the base than its part, one layer and what is in none.

    The host has the files mapped into its memory where they are in `dtype`, and else a copy for each process
    until the layers are laid out. Each process quantises every layer and keeps its part. Raises InvalidModel
    and InvalidConfig as load_base(), and InvalidModel where it cannot be laid out.
    """
    config = load_config(folder)
    quick = is_writing(config) and find_way(config).quick
    require_shardable(name or folder.name, quantisation, quick=quick)
    if quantisation != NONE:
        require_bitsandbytes(quantisation, device)
    model = load_writing(folder, config, torch.device("cpu"), dtype, NONE).eval()
    mesh = mesh_of(device)
    layers, head = decoder_layers(model), model.get_output_embeddings()
    for layer in layers:
        if quantisation != NONE:
            quantise(layer, head, quantisation, device)
        shard_layers([layer], mesh)
    if quantisation != NONE:
        quantise(model, head, quantisation, device)  # what is in none of them
    shard_around(model, model.base_model, layers, mesh, device)
    tokenizer = load_tokenizer(folder, template)
    told = {"folder": folder, "fingerprint": fingerprint, "name": name}
    resident = make_resident(model, tokenizer, **told, parts=mesh.size())  # type: ignore[arg-type]
    resident.quantisation = quantisation
    return resident


def shard(base: ResidentBase, device: torch.device) -> ResidentBase:
    """Lay `base` out over all processes of the default group, in place; `device`: this one's.

    Raises InvalidModel where that cannot be done.
    """
    require_shardable(base.name, base.quantisation, quick=base.way.quick and base.writes_text)
    mesh = mesh_of(device)
    shard_layers(base.decoder_layers, mesh)
    shard_around(base.model, base.inner, base.decoder_layers, mesh, device)
    base.joints = ()  # which hold the weights whole
    base.parts = mesh.size()
    return base


def require_shardable(name: str, quantisation: str, *, quick: bool) -> None:
    """Raise InvalidModel for a base that cannot be laid out. quick: whether the quick way computes it."""
    if quantisation == FP8:
        raise InvalidModel(
            f"{name} is held in {LABELS[quantisation]}, in which a base is not laid out over several "
            "processes. Choose quantisation=none, int8 or nf4."
        )
    if not quick:
        raise InvalidModel(
            f"{name} is not computed on the quick way, and only such a base is laid out over several "
            "processes."
        )


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
    # By itself torch would follow the passes that came before, of which the processes may have made others.
    for layer, earlier in zip(layers, [layers[0], *layers[:-1]], strict=True):
        layer.set_modules_to_backward_prefetch([earlier])  # type: ignore[operator]


class GatheredLayers:
    """The layers of a base that is laid out, and how many times one was gathered here: the sequence in which
    all processes come together.
    """

    can_give_up = hasattr(FSDPModule, "reset_iter_state")
    """Whether this torch can go on after a pass that was broken off, as 2.13 can."""

    def __init__(self, root: nn.Module, layers: Sequence[nn.Module]) -> None:
        self._root: Any = root
        self._layers: list[Any] = list(layers)
        self.count = 0
        for layer in self._layers if self.can_give_up else ():
            layer.set_custom_all_gather(self)

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Where a layer is gathered, as torch asks for it."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> Any:
        """Gather one, as torch does, and count it."""
        gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its new name
        work = gather(output_tensor, input_tensor, group=group, async_op=async_op)
        self.count += 1
        return work

    def gather_all(self) -> None:
        """With the others, which compute a forward pass alone."""
        self._gather(self._layers)

    def give_up(self, begun_at: int, *, backward: bool) -> None:
        """Go on with what is left to gather of a pass that was broken off here, for the others, which are in
        it. begun_at: the count when it began. backward: whether it has one, as the others'.
        """
        self._root.reset_iter_state()
        whole = [*self._layers, *reversed(self._layers)] if backward else self._layers
        self._gather(whole[self.count - begun_at :])

    def _gather(self, layers: Iterable[Any]) -> None:
        for layer in layers:
            layer.unshard()
            layer.reshard()
