"""Panics of the libraries written in Rust, such as tokenizers.

Their PanicException is no Exception, so it would end the whole process where an error ends one request.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import WorkbenchError


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust has given up. The class cannot be imported: it has no module."""
    return type(error).__name__ == "PanicException"


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise WorkbenchError in place of a panic."""
    try:
        yield
    except BaseException as error:
        if not is_panic(error):
            raise
        raise WorkbenchError(
            f"The tokenizer, or another library of this base's, broke down ({str(error)[:200]}). Its "
            "tokenizer.json may be damaged: get the base anew, or use another."
        ) from error


@contextmanager
def tokenizer_faults(raised: type[WorkbenchError], what: str) -> Iterator[None]:
    """Raise `raised`, with what the tokenizer fails, in place of its panic or of its own bare Exception."""
    try:
        yield
    except BaseException as error:
        if not is_panic(error) and type(error) is not Exception:
            raise
        raise raised(
            f"This base's tokenizer fails with {what} ({str(error)[:200]}). Its tokenizer.json may be "
            "damaged: get the base anew, or use another."
        ) from None
