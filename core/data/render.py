"""From conversations to token ids, with the tokens that carry loss marked.

The base's own chat template renders the conversation, exactly as the playground does. Loss falls on each assistant's
answer and on the end token after it, on nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jinja2
from transformers import PreTrainedTokenizerBase

from core.data.formats import Example, Message
from core.errors import InvalidData

IGNORE = -100
"""The label of a token that carries no loss, as in torch's cross_entropy."""


@dataclass(frozen=True)
class Rendered:
    """One row as the model sees it: ids and labels of the same length."""

    ids: list[int]
    labels: list[int]

    @property
    def supervised(self) -> int:
        """Tokens that carry loss; the first position never does, since nothing predicts it."""
        return sum(label != IGNORE for label in self.labels[1:])


def render(example: Example, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """Render one example whole. Raises InvalidData if the template cannot render it."""
    return _render_text(example, tokenizer) if not example.messages else _render_messages(example, tokenizer)


def _render_text(example: Example, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """Plain text: every token carries loss, and an end token closes the document."""
    ids = list(tokenizer(example.text)["input_ids"])
    if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
        ids.append(tokenizer.eos_token_id)
    return Rendered(ids, list(ids))


def _render_messages(example: Example, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    full = apply_template(tokenizer, example.messages, add_generation_prompt=False)
    spans, needs_end = _answer_spans(example, full, tokenizer)
    encoded = tokenizer(full, add_special_tokens=False, return_offsets_mapping=True)
    ids = list(encoded["input_ids"])
    labels = [
        token if any(start < to and end > at for at, to in spans) and end > start else IGNORE
        for token, (start, end) in zip(ids, encoded["offset_mapping"], strict=True)
    ]
    if needs_end and tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
        labels.append(tokenizer.eos_token_id)
    return Rendered(ids, labels)


def _answer_spans(example: Example, full: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[tuple[int, int]], bool]:
    """Character ranges of the answers with their end tokens, and whether the last answer has no end token in the template.

    An answer starts where the template's generation prompt for the turns before it ends.
    """
    specials = sorted((str(token) for token in tokenizer.all_special_tokens), key=len, reverse=True)
    specials += [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special and str(t) not in specials]
    spans, ended = [], True
    for index, message in enumerate(example.messages):
        if message["role"] != "assistant":
            continue
        before = apply_template(tokenizer, example.messages[:index], add_generation_prompt=True)
        answer = message["content"].strip()
        place = full.find(answer, len(before)) if full.startswith(before) else -1
        if place < 0:
            raise InvalidData(
                f"Row {example.row}: this base's chat template changes earlier turns when later ones follow, "
                "so the trained tokens would differ from the ones chatted with. Use single-turn rows with this base."
            )
        stop = place + len(answer)
        end_token = next((token for token in specials if full[stop:].lstrip().startswith(token)), None)
        ended = end_token is not None
        spans.append((len(before), full.index(end_token, stop) + len(end_token) if end_token else stop))
    return spans, not ended and example.messages[-1]["role"] == "assistant"


def apply_template(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    """The conversation as text. Raises InvalidData with the template's own words if it refuses the turns."""
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_generation_prompt)
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise InvalidData(f"The base's chat template cannot render these turns: {str(error)[:200]}") from None
    return str(text)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """The ids an answer is generated from: the conversation and the generation prompt, as in training."""
    text = apply_template(tokenizer, messages, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
