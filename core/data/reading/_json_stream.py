"""The items of a JSON list of any size, one by one, with the standard library's decoder. Needs no torch.

What a line of JSONL may hold an item may hold: the same decoder, the same limits, the same faults.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

_CHUNK = 1 << 20
_BLANK = re.compile(r"[ \t\r\n]*")
_TO_QUOTE = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)  # to the end of a text's inside
_TO_SIGN = re.compile(r'[^"\[\]{}]*')


class TwinKey(ValueError):
    """An object names one key twice."""


class TooLong(ValueError):
    """An item is longer than a row may be."""

    def __init__(self, size: int) -> None:
        super().__init__(f"it is {size} bytes long")
        self.size = size


class CutShort(Exception):
    """The list cannot be read beyond an item: the reason, and how much of the file was read."""


@dataclass
class Lists:
    """What an object at the top of a file holds."""

    of_objects: list[str] = field(default_factory=list)
    """The keys of lists whose first item is an object or a list."""
    first: dict[str, Any] = field(default_factory=dict)
    """The first item of each."""
    others: dict[str, Any] = field(default_factory=dict)
    """What the other keys hold."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise TwinKey(
            f"the key {next(name for name in names if names.count(name) > 1)[:40]!r} stands there twice"
        )
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def items(file: BinaryIO, most: int) -> Iterator[Any]:
    """The items of the list that the file is; of at most `most` bytes each.

    An item that is valid JSON but cannot be taken (nested too deeply, a key twice, too long) comes out as the
    exception. Raises CutShort where the text stops being JSON.
    """
    text = _Text(file)
    text.skip_blank()
    if not text.next_is("["):
        return
    yield from _list(text, most)
    text.skip_blank()
    if not text.at_end():
        raise CutShort("something stands behind the list")


def members(file: BinaryIO, most: int, lists: Lists) -> Iterator[tuple[str, Any]]:
    """(key, item) of all lists in the object that the file is; what has been read of it is written into
    `lists`. Raises as items().
    """
    text = _Text(file)
    text.skip_blank()
    text.take(1)
    while True:
        text.skip_blank()
        if text.next_is(","):
            text.take(1)
            text.skip_blank()
        if text.next_is("}"):
            break
        key = _key(text, most)
        if not text.next_is("["):
            lists.others[key] = _item(text, most)
            continue
        for number, item in enumerate(_list(text, most)):
            if not number and isinstance(item, (dict, list)):
                lists.of_objects.append(key)
                lists.first[key] = item
            yield key, item
    text.take(1)
    text.skip_blank()
    if not text.at_end():
        raise CutShort("something stands behind the object")


def _key(text: _Text, most: int) -> str:
    if text.at_end():
        raise CutShort("the file ends inside of the object")
    key = _item(text, most)
    text.skip_blank()
    if not isinstance(key, str) or not text.next_is(":"):
        raise CutShort("a key and a colon were expected")
    text.take(1)
    text.skip_blank()
    return key


def _list(text: _Text, most: int) -> Iterator[Any]:
    """The items of the list that begins here, which is consumed."""
    text.take(1)
    while True:
        text.skip_blank()
        if text.next_is("]"):
            text.take(1)
            return
        if text.next_is(","):
            text.take(1)
            text.skip_blank()
        if text.at_end():
            raise CutShort("the file ends inside of the list")
        yield _item(text, most)


def _item(text: _Text, most: int) -> Any:
    wanted = _CHUNK
    while True:
        try:
            value, end = DECODER.raw_decode(text.buffer, text.at)
            if end < len(text.buffer) or text.ended:
                size = text.size(end) if end - text.at > most // 4 else 0
                text.at = end
                return TooLong(size) if size > most else value
            reason = "it is cut off"  # a number may go on in what was not read yet
        except (RecursionError, TwinKey) as error:
            if text.ended or len(text.buffer) - text.at > most:
                raise CutShort(
                    "an item is nested too deeply" if isinstance(error, RecursionError) else str(error)
                ) from None
            end = _end_of(text)
            if end:
                text.at = end
                return error
            reason = str(error)
        except json.JSONDecodeError as error:
            reason = error.msg
            if error.pos < len(text.buffer) - 64 and not error.msg.startswith(("Unterminated", "Invalid \\")):
                raise CutShort(reason) from None
        except ValueError as error:  # a number with thousands of digits
            raise CutShort(str(error)[:80]) from None
        if text.ended:
            raise CutShort(reason)
        if len(text.buffer) - text.at > most:
            return _passed_over(text, reason)
        text.more(wanted)
        wanted *= 2  # so that a long item is parsed a few times, not once a chunk


def _end_of(text: _Text) -> int:
    """Where a well-formed item ends that cannot be decoded: brackets are counted outside of strings. 0 if it
    is not all there.
    """
    depth = 0
    for found in re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL).finditer(text.buffer, text.at):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found.group()[0], 0)
        if depth == 0:
            return found.end()
    return 0


def _passed_over(text: _Text, reason: str) -> TooLong:
    """Consume an item that is too long, of which no more than a chunk is held. Raises CutShort if its end is
    not found.
    """
    size, depth, inside = 0, 0, False
    while True:
        found = (_TO_QUOTE if inside else _TO_SIGN).match(text.buffer, text.at)
        end = found.end() if found else text.at
        sign = text.buffer[end : end + 1]
        size += text.size(end + len(sign))
        text.at = end + len(sign)
        if sign == '"':
            inside = not inside
        elif sign == "\\":  # what it escapes is not read yet
            size, text.at = size - 1, end
        else:
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(sign, 0)
        if depth == 0 and not inside and sign:
            return TooLong(size)
        if sign in ("", "\\"):
            text.more()
            if text.ended:
                raise CutShort(reason)


class _Text:
    """What was read of the file and not consumed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._decoder = file, codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.buffer, self.at, self.ended = "", 0, False

    def more(self, size: int = _CHUNK) -> str:
        """Read on; what was consumed is let go."""
        chunk = self._file.read(size)
        self.ended = not chunk
        self.buffer = self.buffer[self.at :] + self._decoder.decode(chunk, final=self.ended)
        self.at = 0
        return self.buffer

    def size(self, end: int) -> int:
        """Bytes from here to a place in the buffer."""
        return len(self.buffer[self.at : end].encode("utf-8", "surrogateescape"))

    def take(self, count: int) -> None:
        """Consume characters."""
        self.at += count

    def skip_blank(self) -> None:
        """Consume white space."""
        while True:
            found = _BLANK.match(self.buffer, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.buffer) or self.ended:
                return
            self.more()

    def next_is(self, char: str) -> bool:
        """Whether this is the next character."""
        return self.buffer.startswith(char, self.at)

    def at_end(self) -> bool:
        """Whether nothing is left."""
        return self.ended and self.at >= len(self.buffer)
