"""Adapter kinds: what is trained on a frozen layer. Each is one file here; see core/seam.py.

The head that this file describes needs no torch, so the page and the command line can list the kinds.
"""

from __future__ import annotations

from core.options import Config, NoOptions
from core.seam import Seam


class AdapterKind:
    """The head of an adapter kind."""

    name: str
    label: str
    help: str
    order: int = 100
    options: type[Config] = NoOptions
    """Options of this kind alone, beside LoraConfig's. Their names are unique among all training options."""


ADAPTER_KINDS: Seam[AdapterKind] = Seam("core.lora.kinds", AdapterKind, "adapter kind")
