"""How likely a given answer is to several speakers, token by token, and how far each moves from the base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.base_model.load import ResidentBase
from core.data.chat_options import AS_THEY_ARE, ChatOptions
from core.data.formats import Example, Message
from core.data.token_view import token_text
from core.errors import InvalidInput, PromptTooLong
from core.generate.scores import Scored, TokenScore
from core.generate.state_pool import new_state
from core.lora.mixed_bank import Bank

LIKELIEST = 5
_TOKENS_TOGETHER = 16_384  # over all rows that are read in one pass
_READ = 512  # tokens of each row that are read at a time
_NUMBERS = 2**26  # logits that are held at a time


@dataclass(frozen=True)
class Speakers:
    """Rows that compute with one bank: the slot of each, and their numbers among all that are asked. The
    plain base is number 0.
    """

    bank: Bank
    slots: Sequence[int]
    numbers: Sequence[int]


def answer_ids(
    base: ResidentBase,
    messages: Sequence[Message],
    answer: str,
    *,
    ended: bool,
    chat: ChatOptions = AS_THEY_ARE,
) -> tuple[list[int], int]:
    """The ids of a conversation with this answer, as in training, and where the answer begins. ended: with
    the token that ends it. chat: as the conversation is fitted to the template.

    Raises InvalidInput for an empty answer or one that the template leaves out, PromptTooLong.
    """
    if not answer:
        raise InvalidInput("There is no answer to score; write one.")
    before = frozenset(at for at, turn in enumerate(messages) if turn["role"] == "assistant")
    whole = Example(0, (*messages, {"role": "assistant", "content": answer}), untrained=before)
    rendered = base.renderer.with_options(chat).render(whole)
    start, stop = rendered.spans[-1] if rendered.spans else (0, 0)
    if not ended and rendered.ids[stop - 1] in base.renderer.end_ids:
        stop -= 1
    if not 0 < start < stop:
        raise InvalidInput("The chat template leaves nothing of this answer that could be scored.")
    if stop > base.context_length:
        raise PromptTooLong(
            f"The conversation with this answer is {stop:,} tokens long; this model reads at most "
            f"{base.context_length:,}. Shorten it."
        )
    return rendered.ids[:stop], start


@torch.no_grad()
def score(base: ResidentBase, groups: Sequence[Speakers], ids: Sequence[int], start: int) -> list[Scored]:
    """How likely ids[start:] is behind ids[:start] to each row of all groups, in the order of their numbers,
    the plain base first.

    Raises InvalidInput where a model's output is not finite.
    """
    hidden = [_read(base, group, ids, start) for group in groups]
    order = torch.tensor([number for group in groups for number in group.numbers]).argsort()
    tokens: list[list[TokenScore]] = [[] for _ in order]
    vocabulary = int(base.model.config.get_text_config().vocab_size)
    for part in _parts(len(ids) - start, vocabulary, len(order)):
        logits = torch.cat([
            _logits(base, group, one[:, part]) for group, one in zip(groups, hidden, strict=True)
        ])  # fmt: skip
        if not logits.isfinite().all():
            raise InvalidInput(
                "The model's output holds NaN or infinite numbers; an adapter or the base is damaged."
            )
        found = logits.float().log_softmax(-1)[order.to(logits.device)]
        targets = torch.tensor(ids[start:][part], device=found.device)
        for row, scores in zip(tokens, _token_scores(base, found, targets), strict=True):
            row += scores
    return [Scored(one) for one in tokens]


def _read(base: ResidentBase, group: Speakers, ids: Sequence[int], start: int) -> Tensor:
    """The last layer's output [rows, answer, hidden] where each token of the answer is foretold."""
    together = max(1, _TOKENS_TOGETHER // len(ids))
    found = []
    for first in range(0, len(group.slots), together):
        slots = group.slots[first : first + together]
        state = new_state(base, group.bank, len(slots), len(ids))
        state.slots.copy_(torch.tensor(list(slots)))
        rows = torch.tensor(list(ids[:-1]), device=base.device).repeat(len(slots), 1)
        pieces = []
        size = _READ if base.way.quick else rows.shape[1]
        for at in range(0, rows.shape[1], size):
            piece = state.prefill(rows[:, at : at + size], at)
            pieces.append(piece[:, max(0, start - 1 - at) :].clone())
        found.append(torch.cat(pieces, 1))
    return torch.cat(found)


def _logits(base: ResidentBase, group: Speakers, hidden: Tensor) -> Tensor:
    """[rows, tokens, vocabulary]."""
    if not base.plain_head:
        return hidden
    slots = torch.tensor(list(group.slots), device=base.device)
    with group.bank.use(slots):
        found: Tensor = base.model.get_output_embeddings()(hidden)
    return found


def _parts(count: int, vocabulary: int, rows: int) -> Iterator[slice]:
    """An answer's tokens in parts whose logits can be held."""
    size = max(1, _NUMBERS // (vocabulary * rows))
    return (slice(at, min(at + size, count)) for at in range(0, count, size))


def _token_scores(base: ResidentBase, found: Tensor, targets: Tensor) -> Iterator[list[TokenScore]]:
    """Of each row of log-probabilities [rows, tokens, vocabulary], the first of which is the base's."""
    own = found.gather(2, targets.expand(len(found), -1)[..., None])[..., 0].tolist()
    far = (found.exp() * (found - found[:1])).sum(-1).clamp(min=0.0).tolist()
    values, places = found.topk(min(LIKELIEST, found.shape[-1]))
    texts = [token_text(base.tokenizer, token) for token in targets.tolist()]
    for row, (top, at) in enumerate(zip(values.tolist(), places.tolist(), strict=True)):
        yield [
            TokenScore(text, own[row][n], _named(base, at[n], top[n]), far[row][n])
            for n, text in enumerate(texts)
        ]


def _named(base: ResidentBase, places: Sequence[int], values: Sequence[float]) -> list[tuple[str, float]]:
    return [(token_text(base.tokenizer, at), value) for at, value in zip(places, values, strict=True)]
