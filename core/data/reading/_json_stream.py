"""The items of a JSON array of any size, one by one, with the standard library's decoder. Needs no torch.

What a line of JSONL may hold an item may hold: the same decoder, the same limits, the same faults.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

_CHUNK = 1 << 20
_BLANK = re.compile(r"[ \t\r\n]*")
# with a value that is neither a list nor an object
_PAIR = r'\s*"[^"\\]*"\s*:\s*(?:"(?:[^"\\]|\\.)*"|[^\[\]{},"]*)\s*,'
_OPENING = re.compile(r"\s*(?:(\{)(?:" + _PAIR + r')*\s*"data"\s*:\s*)?\[')


class TwinKey(ValueError):
    """An object names one key twice."""


class CutShort(Exception):
    """The array cannot be read beyond an item: the reason, and how much of the file was read."""


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
    """The items of the array that the file holds, by itself or as {"data": [...]}; of at most `most`
    characters each.

    An item that is valid JSON but cannot be taken (nested too deeply, a key twice) comes out as the
    exception. Raises CutShort where the text stops being JSON.
    """
    text = _Text(file)
    opening = _OPENING.match(text.more())
    if opening is None:
        return
    text.take(opening.end())
    while True:
        text.skip_blank()
        if text.next_is("]"):
            text.take(1)
            text.skip_blank()
            if not opening.group(1) and not text.at_end():
                raise CutShort("something stands behind the list")
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
                text.at = end
                return value
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
        if text.ended or len(text.buffer) - text.at > most:
            raise CutShort(reason)
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
