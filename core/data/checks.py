"""What can be said of a row without a tokenizer. Needs no torch."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator

from core.data.formats import Example, Message

# Control characters but tab and line ends; zero-width and direction marks; the replacement character; private
# use.
_SUSPICIOUS = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u0080-\u009f\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff\ufffd\ue000-\uf8ff]"
)
# Marks of direction belong to text that is written from right to left, and zero-width spaces to scripts
# without blanks between words; what overrides a direction belongs to none.
_DIRECTIONS = frozenset("\u200e\u200f\u202a\u202b\u202c\u2066\u2067\u2068\u2069")
_RIGHT_TO_LEFT = re.compile(
    "[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001eeff]"
)
_WITHOUT_BLANKS = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f\u3040-\u30ff\u3400-\u9fff"
    "\ua980-\ua9ff\uaa60-\uaa7f\uaa80-\uaadf]"
)
# What stands for something that is not there: pictures and sound, and names that a program fills in.
_MEDIA = re.compile(r"<(image|video|audio|img)(?:[_ -]?\d{1,3})?>(?!.*</\1>)", re.DOTALL)
_FIELD = re.compile(r"(?<![\w\\^_{}$%])\{\{\s*[^\W\d][\w .-]{1,40}\}\}(?!\})")
_MOJIBAKE = re.compile("Ã[\u0080-\u00bf]|â€[™œ\u009d“”˜¦¢–—]|Â[\u00a0-\u00bf]")
# The special tokens of the families in use: here no base is chosen yet. Rendering knows the base's own and
# takes them as text.
_SPECIAL = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>|<｜[^｜<>]{1,40}｜>"
)
_NAMES = {
    "\ufffd": "the replacement character, left by a wrong decoding",
    "\ufeff": "a byte order mark",
    "\u200b": "a zero-width space",
}


def text_of(example: Example) -> str:
    """All that the row says."""
    return example.text or "\n".join(map(words_of, example.messages))


def words_of(message: Message) -> str:
    """What a turn says, thinks and calls, as text."""
    if len(message) == 2:
        return str(message["content"])
    calls = [json.dumps(one, ensure_ascii=False) for one in message.get("tool_calls", ())]
    return "\n".join(filter(None, (message.get("reasoning"), message["content"], *calls)))


def warnings(example: Example) -> Iterator[tuple[str, str]]:
    """(code, sentence) for everything about the row that a person should look at."""
    if example.messages:
        yield from _turn_warnings(example)
    yield from text_warnings(text_of(example))


def _turn_warnings(example: Example) -> Iterator[tuple[str, str]]:
    messages = example.messages
    roles = [message["role"] for message in messages]
    for at, (before, after) in enumerate(itertools.pairwise(roles), start=2):
        if before == after and after in ("user", "assistant"):
            yield "two_in_a_row", f"Turns {at - 1} and {at} are both the {after}'s."
            break
    if roles[-1] == "user":
        yield "ends_on_user", "The last turn is the user's."
    if any(message["role"] == "user" and not message["content"].strip() for message in messages):
        yield "empty_prompt", "A user's turn is empty."


def text_warnings(text: str) -> Iterator[tuple[str, str]]:
    """What the characters of a text give away."""
    if ("<" in text or "[" in text) and (found := _SPECIAL.search(text)):
        yield "special_tokens", f"The text holds {found.group()!r}."
    if found := _suspicious(text):
        char = found.group()
        yield (
            "suspicious",
            (
                f"Character {found.start() + 1} is "
                f"U+{ord(char):04X}{f', {_NAMES[char]}' if char in _NAMES else ''}."
            ),
        )
    if not text.isascii() and (found := _MOJIBAKE.search(text)):
        yield (
            "mojibake",
            f"The text holds {found.group()!r}, as UTF-8 looks that was read as another encoding.",
        )
    yield from _placeholders(text)


def _placeholders(text: str) -> Iterator[tuple[str, str]]:
    media = _MEDIA.search(text) if "<" in text else None
    if media:
        yield "placeholder", f"The text holds {media.group()!r}, and no picture or sound is trained on."
    field = _FIELD.search(text) if "{{" in text else None
    if field:
        yield "placeholder", f"The text holds {field.group()!r}, as a template that was not filled in."


def _suspicious(text: str) -> re.Match[str] | None:
    """The first character that is suspicious and does not belong to the script of the text."""
    found = _SUSPICIOUS.search(text)
    if found is None:
        return None
    native: set[str] = set()
    if _RIGHT_TO_LEFT.search(text):
        native |= _DIRECTIONS
    if _WITHOUT_BLANKS.search(text):
        native.add("\u200b")
    return next((one for one in _SUSPICIOUS.finditer(text) if one.group() not in native), None)
