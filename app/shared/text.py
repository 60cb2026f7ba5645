"""Text that comes from outside."""

from __future__ import annotations

from core.errors import InvalidInput


def lines_of(text: str) -> list[str]:
    """Its lines as an editor shows them. str.splitlines() also ends one at a form feed or at U+2028, which
    stand within what people write, and unescaped within JSON.
    """
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def require_text(*texts: str) -> None:
    """Raise InvalidInput for text that is no Unicode, as a terminal or a file name can give."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidInput(
                f"{text[:80]!r} holds bytes that are not UTF-8 text; rename or retype it."
            ) from None
