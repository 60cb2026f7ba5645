"""One answer under way: what it starts from, what it has come to, and who is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tokenizers.decoders import DecodeStream

from core.base_model.load import ResidentBase
from core.data.token_bytes import token_bytes
from core.data.token_view import token_text
from core.errors import InvalidInput
from core.events import TokenDone
from core.generate.sampling import Sampler
from core.panics import tokenizer_faults


class Asker(Protocol):
    """Whose rows these are: one request."""

    def tell(self, event: TokenDone) -> None:
        """A row of it has another token."""

    def fail(self, error: BaseException) -> None:
        """One of its rows cannot go on, which ends the request."""


@dataclass(eq=False)
class Row:
    """One answer. Its place in a batch may change, and it may be read anew; what it has written stays."""

    asker: Asker
    base: ResidentBase
    """Whose tokenizer and name it has; the batch's may be another with the same model."""
    index: int
    prompt: list[int]
    place: Callable[[], int | None]
    """Has its adapter in a slot of the bank and gives the slot; None while none is free."""
    sampler: Sampler
    limit: int
    ends: Collection[int]
    weights: Mapping[str, Any] = field(default_factory=dict)
    """Which weights answer, as TokenDone tells it."""
    asked_at: float = field(default_factory=time.monotonic)
    likeliest: int | None = None
    """How many tokens are told with each of its own, with their log-probabilities; None tells none at all."""
    first_at: float = 0.0
    """When its first token was there."""
    stream: DecodeStream = field(default_factory=lambda: DecodeStream(skip_special_tokens=True))
    ids: list[int] = field(default_factory=list)
    shown: str = ""
    slot: int = 0
    number: int = 0
    """In the order of coming."""
    passed_by: int = 0
    """Rows that came later and began before it."""
    over: bool = False

    @property
    def length(self) -> int:
        """Tokens so far, those of the prompt among them."""
        return len(self.prompt) + len(self.ids)

    def reads_as(self, other: Row) -> bool:
        """Whether all that it has so far is the other's, with the same weights."""
        mine, theirs = (self.weights, self.prompt, self.ids), (other.weights, other.prompt, other.ids)
        return mine == theirs

    def take(self, token: int, logprobs: Sequence[tuple[int, float]] | None = None) -> TokenDone:
        """Add a token, and say what text it adds; logprobs: of ids, as TokenDone tells them.

        Raises InvalidInput if the tokenizer fails with it, or what the answer is held to.
        """
        is_whole = self.sampler.form is not None and self.sampler.form.take(token)
        self.ids.append(token)
        now = time.monotonic()
        self.first_at = self.first_at or now
        ended = token in self.ends
        finished = self.over = ended or is_whole or len(self.ids) >= self.limit
        return TokenDone(
            self.index,
            self._added_text(token, ended, finished),
            finished,
            "" if not finished else ("end" if ended or is_whole else "length"),
            len(self.ids),
            len(self.prompt),
            seconds_to_first=self.first_at - self.asked_at,
            tokens_per_second=(len(self.ids) - 1) / max(now - self.first_at, 1e-9),
            logprobs=None if logprobs is None else [self._named(*one) for one in logprobs],
            weights=self.weights if finished or len(self.ids) == 1 else None,
        )

    def _named(self, token: int, logprob: float) -> tuple[str, float, list[int] | None]:
        tokenizer = self.base.tokenizer
        own = token_bytes(tokenizer, token)
        return token_text(tokenizer, token), logprob, None if own is None else list(own)

    def _added_text(self, token: int, ended: bool, finished: bool) -> str:
        tokenizer = self.base.tokenizer
        with tokenizer_faults(InvalidInput, "this answer"):
            added = "" if ended else self.stream.step(tokenizer.backend_tokenizer, token) or ""
            self.shown += added
            if finished:  # a character whose bytes never became whole is shown as what it is
                ids = self.ids[:-1] if ended else self.ids
                added += str(tokenizer.decode(ids, skip_special_tokens=True))[len(self.shown) :]
        return added
