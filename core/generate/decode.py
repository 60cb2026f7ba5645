"""Decoding several answers in one batch, each with its own adapter, settings and seed.

A request's rows share a running batch with each other, and where one is given with those of other requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.base_model.load import ResidentBase
from core.errors import PromptTooLong
from core.events import TokenDone
from core.generate.config import GenerationConfig
from core.generate.grammar import form_of
from core.generate.one_row import Row
from core.generate.running import RunningBatch
from core.generate.sampling import Sampler
from core.generate.state_pool import StatePool
from core.lora.mixed_bank import Bank


@dataclass(frozen=True)
class RowRequest:
    """What one row starts from: the prompt's ids, the adapter's slot in the bank, and how to sample."""

    prompt: list[int]
    slot: int | Callable[[], int | None]
    """Or what gives it when the row is begun, and None while there is no slot for it."""
    config: GenerationConfig
    weights: Mapping[str, Any] = field(default_factory=dict)
    """Which weights answer, as TokenDone tells it."""
    asked_at: float = field(default_factory=time.monotonic)
    likeliest: int | None = None
    """How many tokens are told with each that is chosen, with their log-probabilities; None tells none."""


class Decoder:
    """One request. Its rows are decoded together, one token each per step; steps() may be paused between two
    steps.
    """

    def __init__(
        self,
        base: ResidentBase,
        bank: Bank | None,
        requests: Sequence[RowRequest],
        pool: StatePool | None = None,
        ends: Collection[int] | None = None,
        *,
        batch: RunningBatch | None = None,
    ) -> None:
        """ends: the ids that end an answer; by default the base's. batch: the one to join, in which case its
        bank and its pool count.

        Raises PromptTooLong if a prompt leaves no room in the model's context, InvalidInput if an answer
        cannot be held to what is asked for.
        """
        self._base, self._ends = base, base.end_token_ids() if ends is None else ends
        self._rows = [self._row(index, request) for index, request in enumerate(requests)]
        self._arrived: list[TokenDone] = []
        self._error: BaseException | None = None
        self._batch = batch or RunningBatch(base, lambda: bank, pool, most_rows=len(requests))
        self._batch.join(self._rows)
        self._seen = self._batch.passes

    def _row(self, index: int, request: RowRequest) -> Row:
        limit = min(request.config.max_tokens, room_to_answer(self._base, request.prompt))
        form = form_of(request.config, self._base.tokenizer, request.prompt, self._ends)
        sampler = Sampler(request.config, len(request.prompt), form)
        slot = request.slot
        place = slot if callable(slot) else lambda: slot
        return Row(
            self,
            self._base,
            index,
            request.prompt,
            place,
            sampler,
            limit,
            self._ends,
            request.weights,
            request.asked_at,
            request.likeliest,
        )

    @property
    def finished(self) -> bool:
        """Whether every row has ended."""
        return not self._rows

    def cancel(self, row: int | None = None) -> None:
        """End one row, by its number in the requests, or all of them, before the next token."""
        for one in self._rows:
            one.over = one.over or row in (None, one.index)
        self._rows = [one for one in self._rows if not one.over]
        self._batch.tidy()

    def steps(self) -> Iterator[list[TokenDone]]:
        """Yield what was added to each row, step by step (nothing while prompts are read); ends when every
        row has ended. Where another request has moved their batch on meanwhile, what came of that is given
        without another step.

        Raises InvalidInput if the model's output is not finite.
        """
        while self._rows or self._arrived:
            if self._seen == self._batch.passes:
                self._batch.advance()
            self._seen = self._batch.passes
            arrived, self._arrived = self._arrived, []
            if arrived or self._error is None:
                yield arrived
        if self._error is not None:
            raise self._error

    # What the batch tells of the rows.

    def tell(self, event: TokenDone) -> None:
        """See Asker."""
        self._arrived.append(event)
        if event.finished:
            self._rows = [row for row in self._rows if row.index != event.row]

    def fail(self, error: BaseException) -> None:
        """See Asker."""
        self._error = self._error or error
        for row in self._rows:
            row.over = True
        self._rows = []


def room_to_answer(base: ResidentBase, prompt: Sequence[int]) -> int:
    """Tokens that the base's context has left behind a prompt. Raises PromptTooLong if there are none."""
    context = base.context_length
    if len(prompt) >= context:
        full = ", so none is left for an answer" if len(prompt) == context else ""
        raise PromptTooLong(
            f"The conversation is {len(prompt):,} tokens long; this model reads at most {context:,}{full}. "
            "Shorten it or start a new one."
        )
    return context - len(prompt)
