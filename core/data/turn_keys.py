"""What stands beside a turn's text: whether it is trained on, as common tools write it, and what has no use.

Needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from core.data.findings import RowFault
from core.data.reading import kind_of

ROLE_KEYS, TEXT_KEYS = ("role", "from", "speaker"), ("content", "value", "text")
# Axolotl: train, training. OpenAI, Mistral: weight. ms-swift: loss. LLaMA-Factory: loss_weight.
_TRAINED = (
    "train",
    "training",
    "trained",
    "trainable",
    "train_on",
    "train_on_turn",
    "weight",
    "loss",
    "loss_weight",
    "loss_mask",
    "loss_scale",
)
_MASKED = ("masked", "is_masked", "mask_loss", "ignore_loss")  # torchtune: masked
_IN_PARTS = ("train_detail", "training_detail")  # Axolotl: offsets of characters
_FLAGS = frozenset((*_TRAINED, *_MASKED, *_IN_PARTS))
CALLS = ("tool_calls", "function_call")  # OpenAI's today, and before
REASONING = ("reasoning_content", "reasoning", "thinking", "thought")  # DeepSeek, OpenRouter, gpt-oss, others
_USED = frozenset((*CALLS, "name", "tool_call_id"))
# What belongs to what was said, so that an answer without it is another one.
BESIDE = (
    "images",
    "image",
    "videos",
    "video",
    "audios",
    "audio",
    "attachments",
    "files",
)
_WORDS = {
    "true": True,
    "yes": True,
    "1": True,
    "1.0": True,
    "false": False,
    "no": False,
    "0": False,
    "0.0": False,
}


def first_key(turn: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    """The first of the keys that has a value."""
    return next((key for key in keys if turn.get(key) is not None), None)


def trained(turn: Mapping[str, Any], number: int) -> bool | None:
    """Whether an answer carries loss, as its flags say; None if none does.

    Raises RowFault for parts of a turn, shares of a loss and flags that contradict each other.
    """
    said: dict[str, bool] = {}
    for key in _FLAGS & turn.keys():
        value = turn[key]
        if value is None or value == "" or (key in _IN_PARTS and not value):
            continue
        if key in _IN_PARTS:
            raise RowFault(
                "weight",
                f"Turn {number} is trained in parts ({key}); only a whole turn can be trained on or not.",
            )
        said[key] = _flag(key, value, number) != (key in _MASKED)
    if len(set(said.values())) > 1:
        keys = " and ".join(f"{key} is {turn[key]}" for key in sorted(said))
        raise RowFault("weight", f"The flags of turn {number} contradict each other: {keys}.")
    return next(iter(said.values()), None)


def _flag(key: str, value: Any, number: int) -> bool:
    if isinstance(value, str) and value.strip().lower() in _WORDS:
        return _WORDS[value.strip().lower()]
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    shown = f"{value:g}" if isinstance(value, (int, float)) else kind_of(value)
    raise RowFault(
        "weight",
        f"The {key} of turn {number} is {shown}; expected the number 0 or 1, or true or false: a turn is "
        "trained on or not, there is nothing between.",
    )


def unused_keys(turns: Sequence[Mapping[str, Any]], answers: Sequence[bool]) -> Iterator[tuple[str, str]]:
    """(code, sentence) for each key of these turns that has a value and no use. answers: whether each is the
    assistant's, whose reasoning alone is used.
    """
    found: dict[str, list[int]] = {}
    for number, (turn, answer) in enumerate(zip(turns, answers, strict=True), 1):
        if len(turn) > 2:
            for key in _unused(turn, answer):
                found.setdefault(key, []).append(number)
    for key, numbers in found.items():
        where = f"turn{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:12]))}"
        if key in BESIDE:
            yield "ignored_part", f"The {key} of {where} are not used."
        else:
            yield "unused_key", f"The key {str(key)[:60]!r} of {where} is not used."


def _unused(turn: Mapping[str, Any], answer: bool) -> Iterator[str]:
    used = {first_key(turn, ROLE_KEYS), first_key(turn, TEXT_KEYS), *_FLAGS, *_USED}
    used |= set(REASONING) if answer else set()
    for key, value in turn.items():
        if key not in used and not is_nothing(value):
            yield key


def is_nothing(value: Any) -> bool:
    """Whether a cell or a key has no value: missing, blank, empty, or the NaN that pandas writes for it."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (
        isinstance(value, (str, list, dict)) and (not value or value == " " * len(value))
    )
