"""How answers are written for OpenAI's clients: to conversations and to plain text, whole and streamed."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

from app.web.api.generation import Entry, Piece
from app.web.api.parameters import Body
from app.web.api.tools import openai_calls
from core.echoes import Echo


class Form:
    """What both have in common."""

    kind, chunk_kind, start = "", "", ""

    def __init__(self, model: str, weights: str, *, likeliest: int | None = None) -> None:
        """likeliest: how many tokens are told with each; None where log-probabilities were not asked for."""
        self._logprobs, self._likeliest = likeliest is not None, likeliest
        self.echoes: Sequence[Echo] = ()
        """The prompts, by answer, where they are given back."""
        self._about = {
            "id": f"{self.start}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": weights,
        }

    def whole(self, choices: list[Body]) -> Body:
        """An answer in one piece."""
        return {**self._about, "object": self.kind, "choices": choices}

    def chunk(self, choices: list[Body]) -> Body:
        """A piece of one that is streamed."""
        return {**self._about, "object": self.chunk_kind, "choices": choices}

    def choice(self, answer: Piece) -> Body:
        """One of the answers."""
        raise NotImplementedError

    def opening(self, index: int) -> list[Body]:
        """What stands before the first piece of one of them."""
        return []

    def grown(self, piece: Piece) -> list[Body]:
        """What one of them grows by."""
        raise NotImplementedError


class ChatForm(Form):
    """Of an answer to a conversation."""

    kind, chunk_kind, start = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def choice(self, answer: Piece) -> Body:
        """See Form."""
        message: Body = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.calls:
            message |= {"content": answer.text or None, "tool_calls": openai_calls(answer.calls)}
        logprobs = self._told(answer.logprobs) if self._logprobs else None
        about = {"index": answer.row, "message": message, "logprobs": logprobs}
        return about | {"finish_reason": answer.finish}

    def opening(self, index: int) -> list[Body]:
        """See Form."""
        return [_delta(index, {"role": "assistant", "content": ""}, None)]

    def grown(self, piece: Piece) -> list[Body]:
        """See Form."""
        logprobs = self._told(piece.logprobs) if piece.logprobs else None
        said = [_delta(piece.row, {"content": piece.text}, None, logprobs)] if piece.text or logprobs else []
        for at, call in enumerate(openai_calls(piece.calls)):
            said.append(_delta(piece.row, {"tool_calls": [{"index": at} | call]}, None))
        return said + ([_delta(piece.row, {}, piece.finish)] if piece.finish else [])

    def _told(self, entries: Sequence[Entry]) -> Body:
        content = [
            _token(*one.token) | {"top_logprobs": [_token(*other) for other in one.likeliest]}
            for one in entries
        ]
        return {"content": content, "refusal": None}


class TextForm(Form):
    """Of plain text that is gone on with."""

    kind, chunk_kind, start = "text_completion", "text_completion", "cmpl"

    def choice(self, answer: Piece) -> Body:
        """See Form."""
        grown = self._choice(answer)
        for echoed in self.opening(answer.row):
            grown["text"] = echoed["text"] + grown["text"]
            if self._logprobs:
                grown["logprobs"] = {
                    name: told + grown["logprobs"][name] for name, told in echoed["logprobs"].items()
                }
        return grown

    def opening(self, index: int) -> list[Body]:
        """The prompt, where it is given back."""
        if not self.echoes:
            return []
        echo = self.echoes[index]
        logprobs = self._echoed(echo) if self._logprobs else None
        return [{"index": index, "text": echo.text, "logprobs": logprobs, "finish_reason": None}]

    def grown(self, piece: Piece) -> list[Body]:
        """See Form."""
        return [self._choice(piece)]

    def _choice(self, piece: Piece) -> Body:
        logprobs = None
        if self._logprobs:
            logprobs = self._told(piece.logprobs, len(self.echoes[piece.row].text) if self.echoes else 0)
        about = {"index": piece.row, "text": piece.text, "logprobs": logprobs}
        return about | {"finish_reason": piece.finish or None}

    def _echoed(self, echo: Echo) -> Body:
        """Of the prompt's tokens; the first has no probability, since nothing stands before it."""
        likeliest = [
            dict([*one.likeliest[: self._likeliest], (one.text, one.logprob)]) for one in echo.tokens
        ]
        return {
            "tokens": [echo.first, *(one.text for one in echo.tokens)],
            "token_logprobs": [None, *(one.logprob for one in echo.tokens)],
            "top_logprobs": [None, *likeliest],
            "text_offset": list(echo.offsets),
        }

    def _told(self, entries: Sequence[Entry], behind: int = 0) -> Body:
        """behind: characters of the prompt that stand before the answer."""
        return {
            "tokens": [one.token[0] for one in entries],
            "token_logprobs": [one.token[1] for one in entries],
            "top_logprobs": [
                {text: logprob for text, logprob, _ in (*one.likeliest, one.token)} for one in entries
            ],
            "text_offset": [behind + one.offset for one in entries],
        }


def _delta(index: int, delta: Body, finish: str | None, logprobs: Body | None = None) -> Body:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _token(text: str, logprob: float, own: list[int] | None) -> Body:
    return {"token": text, "logprob": logprob, "bytes": own}
