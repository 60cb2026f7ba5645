"""Decoding several answers in one batch, each with its own adapter, settings and seed.

Prompts are read first, in pieces, so that something else can have the device in between; then every step adds
one token to each row. On CUDA the next step is launched before the tokens of the last are read, so the device
never waits.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor

from core.base_model.load import ResidentBase
from core.errors import InvalidInput, PromptTooLong
from core.events import TokenDone
from core.generate.config import GenerationConfig
from core.generate.one_token import DecodingState, StatePool, fitting_rows
from core.generate.sampling import Sampler
from core.lora.bank import Bank
from core.panics import tokenizer_faults

_PREFILL = 512  # prompt tokens of each row that are read at a time


@dataclass(frozen=True)
class RowRequest:
    """What one row starts from: the prompt's ids, the adapter's slot in the bank, and how to sample."""

    prompt: list[int]
    slot: int
    config: GenerationConfig


@dataclass
class _Row:
    """One answer under way."""

    index: int
    prompt: list[int]
    slot: int
    sampler: Sampler
    limit: int
    stream: DecodeStream
    ids: list[int] = field(default_factory=list)
    shown: str = ""
    cancelled: bool = False


class Decoder:
    """Generates all rows together, one token each per step. steps() may be paused between two steps."""

    def __init__(
        self,
        base: ResidentBase,
        bank: Bank | None,
        requests: Sequence[RowRequest],
        pool: StatePool | None = None,
        ends: Collection[int] | None = None,
    ) -> None:
        """ends: the ids that end an answer; by default the base's.

        Raises PromptTooLong if a prompt leaves no room in the model's context.
        """
        self._base, self._bank, self._pool = base, bank, pool or StatePool(base)
        self._ends = base.end_token_ids() if ends is None else ends
        self._rows = [self._row(index, request) for index, request in enumerate(requests)]
        self._ahead = base.device.type == "cuda"

    def _row(self, index: int, request: RowRequest) -> _Row:
        context = self._base.context_length
        room = context - len(request.prompt)
        if room < 1:
            raise PromptTooLong(
                f"The conversation is {len(request.prompt):,} tokens long; this model reads at most "
                f"{context:,}. "
                "Shorten it or start a new one."
            )
        limit = min(request.config.max_tokens, room)
        sampler = Sampler(request.config, self._base.device)
        return _Row(
            index, request.prompt, request.slot, sampler, limit, DecodeStream(skip_special_tokens=True)
        )

    @property
    def finished(self) -> bool:
        """Whether every row has ended."""
        return not self._rows

    def cancel(self, row: int | None = None) -> None:
        """End one row, by its number in the requests, or all of them, before the next token."""
        for one in self._rows:
            one.cancelled = one.cancelled or row in (None, one.index)
        if all(one.cancelled for one in self._rows):
            self._rows = []

    def steps(self) -> Iterator[list[TokenDone]]:
        """Yield what was added to each row, step by step (nothing while prompts are read); ends when every
        row has ended.

        Raises InvalidInput if the model's output is not finite.
        """
        if not self._rows:
            return
        longest = (
            max(len(row.prompt) + row.limit for row in self._rows) + 1
        )  # one more, for the step launched ahead
        state = self._pool.borrow(self._bank, len(self._rows), longest)
        logits = yield from self._prefill(state)
        while self._rows:
            chosen, sound = self._choose(state, logits)
            state.tokens[: len(self._rows)] = chosen
            if self._ahead:
                arriving = torch.stack([chosen, sound.long()]).to("cpu", non_blocking=True)
                arrived = torch.cuda.Event()
                arrived.record()
                logits = state.step()
                arrived.synchronize()
                tokens, fine = arriving.tolist()
            else:
                tokens, fine = chosen.tolist(), sound.tolist()
            if not all(fine):
                raise InvalidInput(
                    "The model's output holds NaN or infinite numbers; the adapter or the base is damaged."
                )
            events = [self._advance(row, token) for row, token in zip(self._rows, tokens, strict=True)]
            yield [event for event in events if event is not None]
            if not self._rows:  # cancelled while paused
                break
            keep = [
                at
                for at, (row, event) in enumerate(zip(self._rows, events, strict=True))
                if not row.cancelled and not (event and event.finished)
            ]
            state, logits = self._go_on(state, logits, keep)
        self._pool.give_back(state)

    def _prefill(self, state: DecodingState) -> Generator[list[TokenDone], None, Tensor]:
        """Read all prompts, padded on the right, a piece at a time. Its value is the first logits."""
        device, length = self._base.device, max(len(row.prompt) for row in self._rows)
        lengths = [len(row.prompt) for row in self._rows] + [1] * (state.rows - len(self._rows))
        ids = torch.zeros((state.rows, length), dtype=torch.long)
        for position, row in enumerate(self._rows):
            ids[position, : len(row.prompt)] = torch.tensor(row.prompt)
        ids = ids.to(device)
        state.slots.copy_(
            torch.tensor([row.slot for row in self._rows] + [0] * (state.rows - len(self._rows)))
        )
        state.history[:, :length] = ids
        last: list[Tensor | None] = [None] * state.rows
        for start in range(0, length, _PREFILL):
            hidden = state.prefill(ids[:, start : start + _PREFILL], start)
            for position, one in enumerate(lengths):
                if start < one <= start + _PREFILL:
                    last[position] = hidden[position, one - 1 - start]
            if start + _PREFILL < length:
                yield []
            if not self._rows:  # cancelled while paused
                break
        state.positions.copy_(torch.tensor(lengths))
        found = [one for one in last if one is not None]
        return state.logits_of(torch.stack(found)) if self._rows else hidden.new_zeros(0)

    def _choose(self, state: DecodingState, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The next token of each row, and whether its logits were finite, both [rows] on the device."""
        logits = logits[: len(self._rows)]
        chosen = logits.argmax(-1)
        for position, row in enumerate(self._rows):
            if not row.sampler.takes_the_likeliest:
                so_far = state.history[position, : len(row.prompt) + len(row.ids)]
                chosen[position : position + 1] = row.sampler.choose(so_far, logits[position])
        return chosen, logits.isfinite().all(-1)

    def _advance(self, row: _Row, token: int) -> TokenDone | None:
        """Take one token into `row` and say what text it adds; None for a row that was cancelled."""
        if row.cancelled:
            return None
        row.ids.append(token)
        ended = token in self._ends
        finished = ended or len(row.ids) >= row.limit
        with tokenizer_faults(InvalidInput, "this answer"):
            added = "" if ended else row.stream.step(self._base.tokenizer.backend_tokenizer, token) or ""
            row.shown += added
            if finished:  # a character whose bytes never became whole is shown as what it is
                whole = str(
                    self._base.tokenizer.decode(row.ids[:-1] if ended else row.ids, skip_special_tokens=True)
                )
                added += whole[len(row.shown) :]
        reason = "" if not finished else ("end" if ended else "length")
        return TokenDone(row.index, added, finished, reason, len(row.ids), len(row.prompt))

    def _go_on(
        self, state: DecodingState, logits: Tensor, keep: Sequence[int]
    ) -> tuple[DecodingState, Tensor]:
        """Drop the rows that have ended, and have the logits of the next step."""
        if len(keep) < len(self._rows):
            self._rows = [self._rows[position] for position in keep]
            if not keep:
                return state, logits
            if self._ahead:  # the step is under way with the old rows; its logits are picked by position
                logits = logits[torch.tensor(keep, device=logits.device)]
            state = self._with_rows(state, keep)
        return state, logits if self._ahead else state.step()

    def _with_rows(self, state: DecodingState, keep: Sequence[int]) -> DecodingState:
        """The same rows in a state of their size, or moved to the front of this one."""
        smaller = fitting_rows(len(keep), self._base.device)
        target = state if smaller == state.rows else self._pool.borrow(self._bank, len(keep), state.capacity)
        target.take_rows(state, keep)
        if target is not state:
            self._pool.give_back(state)
        return target
