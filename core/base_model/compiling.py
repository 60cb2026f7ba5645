"""torch.compile for the repeated layers of a base: once for all of them,
and only where a pass asks for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from core.base_model.load import ResidentBase

_RECOMPILES = 64  # graphs of one layer: training, and decoding for each batch size, with and without adapters
# The output of a compiled layer is one, and nothing is done to it in place.
_VIEW = "FSDP2-wrapped module .* returned a view tensor"


def what_is_compiled(base: ResidentBase) -> str:
    """The attribute of a layer that holds it compiled. Of one that is laid out over several processes it is
    what stands between the hooks that gather it and let go of it, which are in no graph.
    """
    return "forward" if base.parts > 1 else "_compiled_call_impl"


def compile_layers(base: ResidentBase) -> None:
    """Have the base's decoder layers compiled when they next run; they share one graph.

    Takes effect for good.
    """
    torch._dynamo.config.recompile_limit = max(_RECOMPILES, torch._dynamo.config.recompile_limit)
    if base.parts > 1:
        warnings.filterwarnings("ignore", _VIEW, UserWarning)
    for layer in base.decoder_layers:
        if what_is_compiled(base) in vars(layer):
            continue
        if base.parts > 1:
            layer.forward = torch.compile(layer.forward, dynamic=False)
        else:
            layer.compile(dynamic=False)


def compiles(device: torch.device) -> bool:
    """Whether torch.compile works here, found by compiling an addition."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(8, device=device))
    except Exception:  # noqa: BLE001  (whatever is missing, nothing is compiled)
        return False
    return True


@contextmanager
def eager_layers() -> Iterator[None]:
    """Within the block, compiled layers run as written: for shapes that come once, compiling is a waste."""
    with torch.compiler.set_stance("force_eager"):
        yield
