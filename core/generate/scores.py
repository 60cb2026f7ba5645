"""How likely a given answer is to a speaker, token by token. Plain values, and no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TokenScore:
    """One token of an answer, as one speaker sees it."""

    text: str
    logprob: float
    """ln p(token | all before it)."""
    likeliest: Sequence[tuple[str, float]]
    """The five likeliest tokens there, each with its log-probability."""
    kl: float
    """KL(speaker ‖ base) of the distribution that the token was drawn from, in nats."""


@dataclass(frozen=True)
class Scored:
    """An answer, as one speaker sees it."""

    tokens: Sequence[TokenScore]
    weights: Mapping[str, Any] = field(default_factory=dict)
    """Which weights it was computed with, as TokenDone tells it."""

    @property
    def total(self) -> float:
        """ln p(answer | prompt): the sum over its tokens."""
        return math.fsum(one.logprob for one in self.tokens)

    @property
    def perplexity(self) -> float:
        """exp(−total / tokens)."""
        return math.exp(min(-self.total / len(self.tokens), 700.0))

    @classmethod
    def told(cls, told: Mapping[str, Any]) -> Scored:
        """As dataclasses.asdict() has told it over a wire."""
        tokens = [
            TokenScore(**one | {"likeliest": [(text, value) for text, value in one["likeliest"]]})
            for one in told["tokens"]
        ]
        return cls(tokens, told["weights"])
