"""A prompt given back, with how likely each of its tokens is. Plain values, and no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.generate.scores import TokenScore


@dataclass(frozen=True)
class Echo:
    """One prompt, as one speaker sees it."""

    text: str
    first: str = ""
    """The first token's text; nothing stands before it, so it has no probability."""
    tokens: Sequence[TokenScore] = ()
    """The others."""
    offsets: Sequence[int] = ()
    """Where each token begins in the text, the first one's too."""

    @classmethod
    def told(cls, told: Mapping[str, Any]) -> Echo:
        """As dataclasses.asdict() has told it over a wire."""
        return cls(**dict(told) | {"tokens": [TokenScore(**one) for one in told["tokens"]]})
