"""In the engine process: what an exception is called towards the user."""

from __future__ import annotations

from app.shared.disk import is_full, plain_sentence
from app.shared.errors import USER_ERRORS
from core.train.memory import ran_out_of_memory
from core.train.share import NotHeld


def reason(error: Exception) -> str:
    """The sentence for the user: our own errors as they are, others with what they are and where the details
    lie.
    """
    if isinstance(error, (*USER_ERRORS, OSError)) or is_full(error):
        return plain_sentence(error)
    if ran_out_of_memory(error):
        where = f" ({error})" if isinstance(error, NotHeld) else ""
        return (
            f"The memory ran out, also in the smallest pieces{where}. Lower max_length or rank, or free "
            "memory elsewhere"
        )
    return (
        f"Unexpected {type(error).__name__}: {str(error)[:300]} (details in logs/engine.log of the "
        "home folder)"
    )
