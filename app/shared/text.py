"""Text that comes from outside."""

from __future__ import annotations

from core.errors import InvalidInput


def require_text(*texts: str) -> None:
    """Raise InvalidInput for text that is no Unicode, as a terminal or a file name can give."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidInput(
                f"{text[:80]!r} holds bytes that are not UTF-8 text; rename or retype it."
            ) from None
