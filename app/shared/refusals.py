"""Refusals of the engine on their way over the wire: told with their class, raised as that class again."""

from __future__ import annotations

from app.shared.errors import USER_ERRORS, EngineUnavailable
from app.shared.wire import Message


def refused(error: Exception, sentence: str) -> Message:
    """What is sent in place of an answer; `sentence` is what the user is told."""
    return {"error": sentence, "kind": type(error).__name__}


def answered(message: Message) -> Message:
    """The message, if it is none of refused(). Else raises the user error that the engine raised, or
    EngineUnavailable for what is none of ours.
    """
    if "error" not in message:
        return message
    raise _user_errors().get(message["kind"], EngineUnavailable)(message["error"])


def _user_errors() -> dict[str, type[Exception]]:
    """Every class of an error with a message for the user, by its name. No other is ever made of a name."""
    found: dict[str, type[Exception]] = {}
    waiting: list[type[Exception]] = list(USER_ERRORS)
    while waiting:
        one = waiting.pop()
        found[one.__name__] = one
        waiting += one.__subclasses__()
    return found
