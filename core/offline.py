"""Whether anything may be fetched from the network."""

from __future__ import annotations

import os

from core.errors import SourceUnreachable

OFFLINE_VARIABLE = "HF_HUB_OFFLINE"
"""The hub's own variable, which its library and transformers heed, too."""


def is_offline() -> bool:
    """Whether fetching is switched off."""
    return os.environ.get(OFFLINE_VARIABLE, "").strip().lower() in ("1", "true", "yes", "on")


def require_online(what: str) -> None:
    """Raise SourceUnreachable where fetching is switched off, before anything is asked."""
    if is_offline():
        raise SourceUnreachable(
            f"{what} is not fetched: the workbench is set to be offline. Switch that off (settings set "
            f"offline false, or {OFFLINE_VARIABLE}=0), or use what is on this machine."
        )
