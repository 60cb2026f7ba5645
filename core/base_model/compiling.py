"""torch.compile for the repeated layers of a base: once for all of them,
and only where a pass asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from core.base_model.load import ResidentBase

_RECOMPILES = 64  # graphs of one layer: training, and decoding for each batch size, with and without adapters


def compile_layers(base: ResidentBase) -> None:
    """Have the base's decoder layers compiled when they next run; they share one graph.

    Takes effect for good.
    """
    torch._dynamo.config.recompile_limit = max(_RECOMPILES, torch._dynamo.config.recompile_limit)
    for layer in base.decoder_layers:
        if layer._compiled_call_impl is None:
            layer.compile(dynamic=False)


@contextmanager
def eager_layers() -> Iterator[None]:
    """Within the block, compiled layers run as written: for shapes that come once, compiling is a waste."""
    with torch.compiler.set_stance("force_eager"):
        yield
