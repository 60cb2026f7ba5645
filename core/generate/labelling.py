"""Texts classified by several adapters side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.base_model.files import read_json
from core.base_model.load import ResidentBase
from core.data.labels import MULTI, REGRESSION, LabelSet, numbered, stored_labels
from core.data.plain_texts import closing_count, cut, text_ids
from core.errors import InvalidAdapter
from core.lora.adapter import AdapterWeights
from core.lora.whole import batches_of, computing_bank

_TOKENS = 16_384  # in one pass, padding counted


@dataclass(frozen=True)
class Classified:
    """What one adapter tells of some texts."""

    labels: LabelSet
    scores: list[list[float]]
    """What its head gives, [texts][labels]."""
    probabilities: list[list[float]]
    """Of each label, [texts][labels]; they add up to 1 where a text has one label. Of a regression the
    value."""
    cut: list[bool]
    """Whether a text has more tokens than the base was built for, so that its end was not read, [texts]."""


def classify(
    base: ResidentBase,
    adapters: Sequence[AdapterWeights | None],
    texts: Sequence[str],
    names: Sequence[str] = (),
) -> list[Classified]:
    """What each adapter tells of each text; None stands for the head that the base's own files hold. names
    are the adapters', for people.

    Raises InvalidAdapter for one that does not classify or whose head does not fit the base, InvalidModel if
    the base cannot classify, InvalidData for a text without tokens.
    """
    called = list(names) or [f"adapter {number}" for number in range(1, len(adapters) + 1)]
    found = [_head_of(base, adapter, name) for adapter, name in zip(adapters, called, strict=True)]
    groups = batches_of(adapters) if base.classifier.takes_several else [[at] for at in range(len(found))]
    ids, logits = text_ids(base.tokenizer, texts), dict[int, Tensor]()
    for group in groups:
        heads = [found[at][1] for at in group]
        logits |= zip(group, _logits(base, [adapters[at] for at in group], heads, ids), strict=True)
    is_cut = [len(one) > base.context_length for one in ids]
    return [_told(labels, logits[at][:, : len(labels)], is_cut) for at, (labels, _) in enumerate(found)]


def _head_of(
    base: ResidentBase, adapter: AdapterWeights | None, name: str
) -> tuple[LabelSet, dict[str, Tensor]]:
    """The labels, and the head's numbers on the base's device."""
    if adapter is None:
        labels, head = _own_labels(base), base.classifier.stored
    elif adapter.labels is None:
        raise InvalidAdapter(f"{name} writes answers and has no head that classifies; chat with it instead.")
    else:
        labels, head = adapter.labels, adapter.head
        base.classifier.require_head(head, len(labels), name)
    return labels, {path: one.to(base.device, torch.float32) for path, one in head.items()}


def _own_labels(base: ResidentBase) -> LabelSet:
    head = base.classifier.stored
    if not head:
        raise InvalidAdapter(
            f"The files of {base.name} hold no head that classifies, so it tells nothing by itself; choose "
            "an adapter that was trained to classify."
        )
    said = stored_labels(read_json(base.folder / "config.json"))
    return said or numbered(base.classifier.model.config.num_labels or 2)


@torch.no_grad()
def _logits(
    base: ResidentBase,
    adapters: Sequence[AdapterWeights | None],
    heads: Sequence[dict[str, Tensor]],
    texts: Sequence[list[int]],
) -> list[Tensor]:
    """Of each adapter [texts, labels], filled up where another has more labels; texts as their ids."""
    bank = computing_bank(base.classifier.model, base.layers, adapters)
    bank.eval()
    parts = []
    with bank.use():
        for ids, mask in _batches(base, texts, len(adapters)):
            again = (len(adapters), 1)
            found = base.classifier.logits(ids.repeat(again), mask.repeat(again), heads)
            parts.append(found.view(len(adapters), -1, found.shape[-1]))
    return list(torch.cat(parts, 1).cpu())


def _batches(
    base: ResidentBase, texts: Sequence[list[int]], adapters: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """ids and mask [rows, length] of as many texts as make one pass, cut to what the base was built for."""
    closing, length = closing_count(base.tokenizer), base.context_length
    rows = [torch.tensor(cut(ids, length, closing)) for ids in texts]
    first = 0
    while first < len(rows):
        longest, last = 0, first
        while last < len(rows) and (
            last == first or adapters * (last + 1 - first) * max(longest, len(rows[last])) <= _TOKENS
        ):
            longest, last = max(longest, len(rows[last])), last + 1
        yield _padded(rows[first:last], base.classifier.pad_id, base.device)
        first = last


def _padded(rows: Sequence[Tensor], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad(list(rows), batch_first=True, padding_value=pad_id)
    mask = pad([torch.ones_like(row) for row in rows], batch_first=True)
    return ids.to(device), mask.to(device)


def _told(labels: LabelSet, scores: Tensor, is_cut: list[bool]) -> Classified:
    if labels.problem_type == REGRESSION:
        probabilities = scores
    else:
        probabilities = scores.sigmoid() if labels.problem_type == MULTI else scores.softmax(1)
    return Classified(labels, scores.tolist(), probabilities.tolist(), is_cut)
