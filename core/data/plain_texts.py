"""Texts to classify as token ids: each alone, with the tokenizer's own special tokens around it. Light: the
tokenizer is handed in.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from core.data.labels import text_and_label
from core.data.sequences import Sequences
from core.errors import InvalidData
from core.panics import tokenizer_faults

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from core.data.formats import Example
    from core.data.rendering import Rendered, Renderer

Ids = TypeVar("Ids", list[int], NDArray[np.int32])
_BATCH = 256


class Texts(Sequences):
    """One sequence of each row: its text alone, without a chat template."""

    key = ("text to classify", 1)

    def render(
        self, renderer: Renderer, examples: Iterable[Example]
    ) -> Iterator[tuple[Rendered, ...] | InvalidData]:
        examples = iter(examples)
        while batch := list(itertools.islice(examples, _BATCH)):
            found = [_text(example) for example in batch]
            texts = [one for one in found if isinstance(one, str)]
            ids = iter(text_ids(renderer.tokenizer, texts))
            for one in found:
                yield one if isinstance(one, InvalidData) else (_marked(next(ids)),)


def _text(example: Example) -> str | InvalidData:
    try:
        return text_and_label(example)[0]
    except InvalidData as error:
        return error


def _marked(ids: list[int]) -> Rendered:
    """A label is told once, behind the last token."""
    from core.data.rendering import Rendered

    return Rendered(ids, [(len(ids) - 1, len(ids))])


def text_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The whole texts' ids as transformers gives them by default. Raises InvalidData."""
    if not texts:
        return []
    with tokenizer_faults(InvalidData, "a text"):
        found: list[list[int]] = tokenizer(list(texts), truncation=False, padding=False, verbose=False)[
            "input_ids"
        ]
    empty = next((at for at, ids in enumerate(found) if not ids), None)
    if empty is not None:
        raise InvalidData(f"The text {texts[empty][:40]!r} has no tokens, so it cannot be classified.")
    return found


def closing_count(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many special tokens the tokenizer puts behind a text; they stay where a text is cut off."""
    special = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    return sum(1 for _ in itertools.takewhile(bool, reversed(special)))


def cut(ids: Ids, length: int, closing: int) -> Ids:
    """At most `length` ids: the first ones, and behind them the closing ones."""
    if len(ids) <= length:
        return ids
    kept = [*ids[: length - closing], *ids[len(ids) - closing :]]
    return kept if isinstance(ids, list) else np.asarray(kept, ids.dtype)
