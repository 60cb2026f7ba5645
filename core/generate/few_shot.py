"""What the plain base makes of rows behind examples in its prompt, or behind none: what training has to beat.

Of rows that are answers the loss is that of a run's validation: the mean over the answers' tokens, in nats.
Of rows to classify the base is asked for the label in words, and what it writes is held against the labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch.nn.functional import cross_entropy

from core.base_model.load import ResidentBase
from core.data.chat_options import AS_THEY_ARE, ChatOptions
from core.data.formats import Example, Message
from core.data.labels import text_and_label
from core.data.rendering import IGNORE, Rendered, Renderer
from core.errors import InvalidData
from core.events import Progress
from core.generate.config import GenerationConfig
from core.generate.decode import Decoder, RowRequest
from core.reporting import Report

_BATCH = 8  # answers that are written at once
_MORE_TOKENS = 4  # than the longest label has


@dataclass(frozen=True)
class Prompted:
    """What came of some rows."""

    rows: int
    loss: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    """In per cent, as a classifier's."""
    prompt_tokens: float = 0.0
    """That the examples add to a row, on average."""
    shortened: int = 0
    """Rows whose context did not hold all examples."""
    unmatched: int = 0
    """Answers that are none of the labels, which count as wrong."""


def prompted_loss(
    base: ResidentBase,
    shots: Sequence[Example],
    rows: Sequence[Example],
    longest: int,
    report: Report,
    chat: ChatOptions = AS_THEY_ARE,
) -> Prompted:
    """The loss of the answers in `rows`, each cut to `longest` tokens, behind the answered examples `shots`;
    chat: as the data set's conversations are fitted to the template.

    Raises InvalidData if the template renders no such conversation, or no answer is left.
    """
    total, tokens, added, shortened, judged = 0.0, 0, 0, 0, 0
    renderer = base.renderer.with_options(chat)
    for number, row in enumerate(rows):
        report(Progress(f"Reading rows behind {len(shots)} examples", number / len(rows)))
        own = renderer.sequences(row)
        kept = [any(one != IGNORE for one in alone.labels[1:longest]) for alone in own]
        if not any(kept):
            continue
        behind, left = _behind(base, renderer, shots, row, len(own))
        for alone, whole in (
            pair for pair, there in zip(zip(own, behind, strict=True), kept, strict=True) if there
        ):
            ids, wanted = _last_answers(whole, alone, max(0, len(alone.ids) - longest))
            loss, count = _summed_loss(base, ids, wanted)
            total, tokens = total + loss, tokens + count
        judged, shortened = judged + 1, shortened + (left < len(shots))
        added += len(behind[-1].ids) - len(own[-1].ids)
    if not tokens:
        raise InvalidData("No validation row has an answer within the length, so there is no loss.")
    return Prompted(judged, total / tokens, prompt_tokens=added / judged, shortened=shortened)


def _behind(
    base: ResidentBase, renderer: Renderer, shots: Sequence[Example], row: Example, sequences: int
) -> tuple[Sequence[Rendered], int]:
    """The row's own sequences, which are the last, behind as many of the examples as its context holds; and
    how many these are.
    """
    for first in range(len(shots) + 1):
        found = renderer.sequences(_joined(shots[first:], row))[-sequences:]
        if max(len(one.ids) for one in found) <= base.context_length:
            break
    return found, len(shots) - first


def _joined(shots: Sequence[Example], row: Example) -> Example:
    """One conversation, or one text: the examples' turns between the row's system message and its own."""
    if row.text:
        return replace(row, text="\n\n".join([*(one.text for one in shots), row.text]))
    opening = [one for one in row.messages[:1] if one["role"] == "system"]
    turns = [turn for one in shots for turn in one.messages if turn["role"] != "system"]
    return replace(
        row,
        messages=(*opening, *turns, *row.messages[len(opening) :]),
        untrained=frozenset(at + len(turns) for at in row.untrained),
    )


def _last_answers(behind: Rendered, alone: Rendered, cut: int) -> tuple[list[int], list[int]]:
    """The ids, and the labels of the row's own answers alone: as many trained tokens from the end as it has
    by itself. The last `cut` are left out.
    """
    own = sum(one != IGNORE for one in alone.labels)
    trained = [at for at, one in enumerate(behind.labels) if one != IGNORE]
    first = trained[-own] if own <= len(trained) else 0
    labels = [IGNORE if at < first else one for at, one in enumerate(behind.labels)]
    end = len(labels) - cut
    return list(behind.ids)[:end], labels[:end]


@torch.no_grad()
def _summed_loss(base: ResidentBase, ids: Sequence[int], labels: Sequence[int]) -> tuple[float, int]:
    """The loss of the labelled tokens, summed, and how many they are."""
    targets = torch.tensor(list(labels[1:]), device=base.device)
    places = torch.nonzero(targets != IGNORE)[:, 0]
    inputs = {"input_ids": torch.tensor([list(ids)], device=base.device), "use_cache": False}
    if base.plain_head:
        hidden = base.model.base_model(**inputs).last_hidden_state[0, places]
        logits = base.model.get_output_embeddings()(hidden[None])[0]
    else:
        logits = base.model(**inputs).logits[0, places]
    return float(cross_entropy(logits.float(), targets[places], reduction="sum")), len(places)


def prompted_labels(
    base: ResidentBase,
    shots: Sequence[Example],
    rows: Sequence[Example],
    labels: Sequence[str],
    report: Report,
) -> Prompted:
    """How often the base writes the label of each of `rows` behind the labelled examples `shots`, and nothing
    else. Raises InvalidData for a row that is no text and label.
    """
    asked = [_label_prompt(base, shots, row, labels) for row in rows]
    told: list[str | None] = []
    for answer in _answers(base, [ids for ids, _ in asked], labels):
        told.append(_label_in(answer, labels))
        report(Progress(f"Asking for labels behind {len(shots)} examples", len(told) / len(rows)))
    own = [text_and_label(row)[1].strip() for row in rows]
    plain = [len(_label_prompt(base, (), row, labels)[0]) for row in rows]
    added = sum(len(ids) - alone for (ids, _), alone in zip(asked, plain, strict=True))
    return Prompted(
        len(rows),
        metrics=_scores(own, told, labels),
        prompt_tokens=added / len(rows),
        shortened=sum(left < len(shots) for _, left in asked),
        unmatched=told.count(None),
    )


def _label_prompt(
    base: ResidentBase, shots: Sequence[Example], row: Example, labels: Sequence[str]
) -> tuple[list[int], int]:
    """The ids of the question for a row's label, and how many of the examples its context holds."""
    text, room = text_and_label(row)[0], base.context_length - _answer_tokens(base, labels)
    for first in range(len(shots) + 1):
        ids = base.renderer.encode_prompt(_label_turns(shots[first:], text, labels))
        if len(ids) <= room:
            return ids, len(shots) - first
    while len(ids) > room and text:
        text = text[: len(text) // 2]
        ids = base.renderer.encode_prompt(_label_turns((), text, labels))
    return ids, 0


def _label_turns(shots: Sequence[Example], text: str, labels: Sequence[str]) -> list[Message]:
    """A conversation in which the examples are answered with their labels."""
    turns: list[Message] = []
    for example in shots:
        said, label = text_and_label(example)
        turns += [{"role": "user", "content": said}, {"role": "assistant", "content": label.strip()}]
    turns.append({"role": "user", "content": text})
    task = f"Answer each text with its label and nothing else. The labels are: {', '.join(labels)}."
    turns[0] = {"role": "user", "content": f"{task}\n\n{turns[0]['content']}"}
    return turns


def _answer_tokens(base: ResidentBase, labels: Sequence[str]) -> int:
    encoded = (base.tokenizer(label, add_special_tokens=False)["input_ids"] for label in labels)
    return max(map(len, encoded)) + _MORE_TOKENS


def _answers(base: ResidentBase, prompts: Sequence[list[int]], labels: Sequence[str]) -> Iterator[str]:
    """The likeliest answer to each prompt, a few at a time."""
    config = GenerationConfig(max_tokens=_answer_tokens(base, labels), temperature=0.0)
    for first in range(0, len(prompts), _BATCH):
        batch = prompts[first : first + _BATCH]
        texts = [""] * len(batch)
        for events in Decoder(base, None, [RowRequest(ids, 0, config) for ids in batch]).steps():
            for event in events:
                texts[event.row] += event.text
        yield from texts


def _label_in(answer: str, labels: Sequence[str]) -> str | None:
    """The label that an answer is or begins with, whatever its case; None for one that does neither."""
    said = answer.strip().strip(".\"'`*").casefold()
    fitting = [label for label in labels if said.startswith(label.casefold())]
    return max(fitting, key=len, default=None)


def _scores(own: Sequence[str], told: Sequence[str | None], labels: Sequence[str]) -> dict[str, float]:
    """Accuracy, and the mean F1 of the labels that occur, in per cent; as a classifier's."""
    right = {label: sum(a == b == label for a, b in zip(own, told, strict=True)) for label in labels}
    f1 = [2 * right[one] / (own.count(one) + told.count(one)) for one in labels if one in own or one in told]
    return {
        "accuracy": 100.0 * sum(right.values()) / len(own),
        "macro_f1": 100.0 * sum(f1) / len(f1) if f1 else 0.0,
    }
