"""How several cards hold the base of a run: each all of it, or each a part. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

AUTO, DDP, FSDP = "auto", "ddp", "fsdp"
SHARDINGS = (AUTO, DDP, FSDP)
LAYERS_AT_ONCE = 3  # whole on each card: the one that computes, the next, and what it is copied from
MOST_OF_A_CARD = 0.85  # that a base may take if each card is to hold it all: a run needs memory beside it


@dataclass(frozen=True)
class CardsHold:
    """What was chosen, and the sentence that says so."""

    way: str
    """DDP or FSDP."""
    sentence: str


def cards_hold(
    asked: str, count: int, base_bytes: float, card_bytes: Sequence[float], *, refusal: str = ""
) -> CardsHold:
    """How `count` cards hold a base of so many bytes. card_bytes: what each of them has in all. refusal: why
    such a run cannot be trained on a base in parts, where it cannot.
    """
    if asked == AUTO:
        asked = FSDP if base_bytes > MOST_OF_A_CARD * min(card_bytes) and not refusal else DDP
        because = f"; it takes {_gib(base_bytes)}, and a card has {_gib(min(card_bytes))}"
    else:
        because = f"; sharding = {asked}"
    if asked == DDP:
        return CardsHold(DDP, f"Each of {count} cards holds the whole base{because}.")
    return CardsHold(FSDP, f"Held in parts on {count} cards: each has 1/{count} of every layer{because}.")


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
