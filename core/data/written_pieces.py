"""A rendered text in pieces: what is learnt apart from what stands before it, and somebody's special tokens
as text.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from core.data.pieces import Piece

Range = tuple[int, int]


def pieces_of(text: str, answers: Sequence[tuple[int, int, bool]], plain: Sequence[Range]) -> list[Piece]:
    """answers: (start, stop, whether it is learnt) of each answer that is cut out, in order. plain: ranges in
    which special tokens are text.
    """
    borders = sorted(
        {0, len(text), *(at for start, stop, _ in answers for at in (start, stop)), *_borders(plain)}
    )
    return [
        Piece(text[start:stop], _learnt(start, answers), any(first <= start < last for first, last in plain))
        for start, stop in itertools.pairwise(borders)
        if stop > start
    ]


def _borders(ranges: Sequence[Range]) -> list[int]:
    return [at for one in ranges for at in one]


def _learnt(at: int, answers: Sequence[tuple[int, int, bool]]) -> bool:
    return any(start <= at < stop and learnt for start, stop, learnt in answers)
