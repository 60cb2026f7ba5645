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
    refusal: str = ""
    """Why they cannot each hold a part, where they cannot."""

    @property
    def may_part(self) -> bool:
        """Whether each holds all of it, and could hold a part."""
        return self.way == DDP and not self.refusal


def cards_hold(
    asked: str,
    count: int,
    base_bytes: float,
    card_bytes: Sequence[float],
    *,
    machines: int = 1,
    refusal: str = "",
) -> CardsHold:
    """How `count` cards of each machine hold a base of so many bytes. card_bytes: what each of them has in
    all; none while nobody knows. refusal: why such a run cannot be trained on a base in parts, where it
    cannot.
    """
    because = f"; sharding = {asked}"
    if asked == AUTO:
        is_large = bool(card_bytes) and base_bytes > MOST_OF_A_CARD * min(card_bytes)
        asked = FSDP if is_large and not refusal else DDP
        because = f"; it takes {_gib(base_bytes)}, and {_known(card_bytes, refusal)}"
    where = f"{count} cards" if machines == 1 else f"{count * machines} cards of {machines} machines"
    if asked == DDP:
        return CardsHold(DDP, f"Each of {where} holds the whole base (data parallel, DDP){because}.", refusal)
    said = f"Held in parts on {where} (fully sharded, FSDP): each has 1/{count} of every layer{because}."
    return CardsHold(FSDP, said, refusal)


def _known(card_bytes: Sequence[float], refusal: str) -> str:
    if card_bytes:
        return f"a card has {_gib(min(card_bytes))}"
    if refusal:
        return "it is not laid out in parts"
    return f"sharding = auto lays it out in parts (FSDP) above {MOST_OF_A_CARD:.0%} of a card"


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
