"""Plain text: rows are its lines, or whole documents cut at line ends where they are long."""

from __future__ import annotations

from typing import BinaryIO

from core.data.reading import BadRow, FileKind, NumberedRows, Row, RowReader, shown

_DOCUMENT = 1 << 20  # bytes; a text longer than this becomes several rows, cut at line ends


class TextRows(FileKind):
    """Text and Markdown."""

    name, label, order = "text", "Plain text", 40
    help = "Text to continue, or lines with a separator in each."
    suffixes, plain = (".txt", ".md"), True

    def read(self, reader: RowReader) -> NumberedRows:
        with reader.opened() as file:
            yield from _lines(reader, file) if reader.by_line else _documents(reader, file)


KIND = TextRows()


def _lines(reader: RowReader, file: BinaryIO) -> NumberedRows:
    for number, line in enumerate(reader.lines(file), start=1):
        if isinstance(line, BadRow):
            yield number, line
        elif line.strip():
            yield number, _row(line.rstrip(b"\r\n"))


def _documents(reader: RowReader, file: BinaryIO) -> NumberedRows:
    number, length = 0, 0
    parts: list[bytes] = []
    for line in reader.lines(file):
        if isinstance(line, BadRow):
            number += 1
            yield number, line
            continue
        if length + len(line) > _DOCUMENT and parts:
            number += 1
            yield number, _row(b"".join(parts))
            parts, length = [], 0
        parts.append(line)
        length += len(line)
    if parts:
        yield number + 1, _row(b"".join(parts))


def _row(content: bytes) -> Row | BadRow:
    try:
        return {"text": content.decode("utf-8")}
    except UnicodeDecodeError as error:
        return BadRow("encoding", f"The text is not UTF-8: byte {content[error.start]:#04x}.", shown(content))
