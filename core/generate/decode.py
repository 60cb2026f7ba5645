"""Decoding several answers in one batch, each with its own adapter, settings and seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from core.base_model.load import ResidentBase
from core.config import GenerationConfig
from core.errors import InvalidInput
from core.events import TokenDone
from core.generate.sampling import Sampler
from core.lora.inject import AdapterBank


@dataclass
class _Row:
    """One answer under way."""

    index: int
    prompt: list[int]
    slot: int
    sampler: Sampler
    limit: int
    ids: list[int] = field(default_factory=list)
    shown: str = ""


@dataclass(frozen=True)
class RowRequest:
    """What one row starts from: the prompt's ids, the adapter's slot in the bank, and how to sample."""

    prompt: list[int]
    slot: int
    config: GenerationConfig


class Decoder:
    """Generates all rows together, one token each per step. steps() may be paused between two steps."""

    def __init__(self, base: ResidentBase, bank: AdapterBank, requests: Sequence[RowRequest]) -> None:
        """Raises InvalidInput if a prompt leaves no room in the model's context."""
        self._base, self._bank = base, bank
        self._ends = base.end_token_ids()
        self._rows = [self._row(index, request) for index, request in enumerate(requests)]
        self._cache = DynamicCache(config=base.model.config)
        self._mask = torch.empty(0)

    def _row(self, index: int, request: RowRequest) -> _Row:
        context = self._base.context_length
        room = context - len(request.prompt)
        if room < 1:
            raise InvalidInput(
                f"The conversation is {len(request.prompt):,} tokens long; this model reads at most {context:,}. "
                "Shorten it or start a new one."
            )
        limit = min(request.config.max_tokens, room)
        return _Row(index, request.prompt, request.slot, Sampler(request.config), limit)

    @property
    def finished(self) -> bool:
        """Whether every row has ended."""
        return not self._rows

    def cancel(self) -> None:
        """End all rows now."""
        self._rows = []

    def steps(self) -> Iterator[list[TokenDone]]:
        """Yield, for each step, what was added to each row; ends when every row has ended."""
        inputs = self._padded_prompts()
        while self._rows:
            logits = self._forward(inputs)
            events, keep = [], []
            for position, row in enumerate(self._rows):
                event = self._advance(row, logits[position])
                events.append(event)
                if not event.finished:
                    keep.append(position)
            yield events
            if not self._rows:  # cancelled while paused
                return
            self._keep(keep)
            inputs = torch.tensor([[row.ids[-1]] for row in self._rows], device=self._base.device)

    def _padded_prompts(self) -> Tensor:
        """Prompts padded on the left to one length, so that all rows grow at the same position. [rows, length]"""
        length = max((len(row.prompt) for row in self._rows), default=0)
        ids = torch.zeros((len(self._rows), length), dtype=torch.long)
        self._mask = torch.zeros_like(ids)
        for position, row in enumerate(self._rows):
            ids[position, length - len(row.prompt) :] = torch.tensor(row.prompt)
            self._mask[position, length - len(row.prompt) :] = 1
        self._mask = self._mask.to(self._base.device)
        return ids.to(self._base.device)

    @torch.no_grad()
    def _forward(self, inputs: Tensor) -> Tensor:
        """Logits of the last position, [rows, vocabulary]."""
        width = inputs.shape[1]
        positions = (self._mask.cumsum(1) - 1).clamp(min=0)[:, -width:]
        slots = torch.tensor([row.slot for row in self._rows], device=self._base.device)
        with self._bank.use(slots):
            out = self._base.model(
                input_ids=inputs, attention_mask=self._mask, position_ids=positions,
                past_key_values=self._cache, use_cache=True, logits_to_keep=1,
            )  # fmt: skip
        return out.logits[:, -1]

    def _advance(self, row: _Row, logits: Tensor) -> TokenDone:
        """Sample one token for `row` and say what text it adds."""
        so_far = torch.tensor(row.prompt + row.ids, device=logits.device)
        token = row.sampler.choose(so_far, logits)
        row.ids.append(token)
        ended = token in self._ends
        finished = ended or len(row.ids) >= row.limit
        text = _decoded(self._base.tokenizer, row.ids[:-1] if ended else row.ids, whole=finished)
        added, row.shown = text[len(row.shown) :], text
        reason = "" if not finished else ("end" if ended else "length")
        return TokenDone(row.index, added, finished, reason, len(row.ids))

    def _keep(self, positions: Sequence[int]) -> None:
        """Go on with these rows only, and make room in the mask for the next token."""
        if len(positions) < len(self._rows):
            self._rows = [self._rows[position] for position in positions]
            chosen = torch.tensor(positions, dtype=torch.long, device=self._base.device)
            self._mask = self._mask[chosen]
            if self._rows:
                self._cache.batch_select_indices(chosen)
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, whole: bool) -> str:
    """The text so far; a character whose bytes are not all there yet is held back until the row ends."""
    text = str(tokenizer.decode(list(ids), skip_special_tokens=True))
    return text if whole else text.rstrip("\ufffd")
