"""Which cards there are for the processes that train one group, and whether they are free."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from core.errors import BaseTooLarge
from core.train.cards_here import CardsHere, require_count

_SPARE = 1.05  # of what the base takes: there is more to hold than the weights


@dataclass(frozen=True)
class Card:
    """One card as it is now."""

    number: int
    name: str
    free: int
    """Bytes that nobody holds."""
    total: int


def cards() -> list[Card]:
    """Those of this machine; none where it has no accelerator that is trained on apart."""
    return [
        Card(one, torch.cuda.get_device_name(one), *torch.cuda.mem_get_info(one))
        for one in range(torch.cuda.device_count())
    ]


def all_named(first: str, there: Sequence[str]) -> str:
    """All cards in words, for people: `first`, the engine's own, and how many like it or which others."""
    if len(there) < 2:
        return first
    return f"{len(there)} × {first}" if len(set(there)) == 1 else ", ".join(there)


def card_names() -> list[str]:
    """Of the cards of this machine."""
    return [torch.cuda.get_device_name(one) for one in range(torch.cuda.device_count())]


def cards_here() -> CardsHere:
    """What this machine has, without taking any memory of its cards."""
    totals = [torch.cuda.get_device_properties(one).total_memory for one in range(torch.cuda.device_count())]
    return CardsHere(card_names(), totals, psutil.virtual_memory().total)


def usable_cards(wanted: int) -> int:
    """On how many of the wanted cards runs can be trained; without any the CPU's cores count."""
    return max(1, min(wanted, torch.cuda.device_count() or os.cpu_count() or 1))


def worker_device(number: int) -> torch.device:
    """The device of process `number`, which is the current one from now on; without cards all compute on the
    CPU.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def require_cards(there: Sequence[Card], wanted: int, base_bytes: float) -> None:
    """Raise where `wanted` processes cannot train together: InvalidConfig if there are fewer cards,
    BaseTooLarge if one that is not the engine's has no room for a base of so many bytes.

    Without cards the processes share the CPU, of which each needs a core.
    """
    require_count([one.name for one in there], wanted)
    for card in there[1:wanted]:
        if card.free < _SPARE * base_bytes:
            free, total, needed = (count / 2**30 for count in (card.free, card.total, base_bytes))
            raise BaseTooLarge(
                f"Card {card.number} ({card.name}) has {free:.1f} of {total:.1f} GiB free, and the base "
                f"takes {needed:.1f}: another program holds the rest. End that, or choose "
                f"devices = {card.number} or fewer."
            )
