"""OpenAI's endpoints: the models, answers to conversations, and plain text gone on with."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.service.serving import ServedModel
from app.web.api.desk import Desk, Streamed
from app.web.api.generation import Generation, Piece
from app.web.api.openai_errors import as_api_error
from app.web.api.openai_requests import Asked, chat_asked, text_asked
from app.web.api.parameters import Body, body_of

_DONE = "data: [DONE]\n\n"


class OpenAIRoutes:
    """They, over one desk."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def routes(self) -> list[Route]:
        """Under the paths that OpenAI's clients call."""
        counted = self._desk.counted
        return [
            Route("/v1/models", counted(self._models)),
            Route("/v1/models/{model:path}", counted(self._model)),
            Route("/v1/chat/completions", counted(self._chat), methods=["POST"]),
            Route("/v1/completions", counted(self._text, prompt="prompt"), methods=["POST"]),
        ]

    async def _models(self, request: Request) -> Response:
        return JSONResponse(
            {"object": "list", "data": [_described(one) for one in await self._desk.models()]}
        )

    async def _model(self, request: Request) -> Response:
        return JSONResponse(_described(await self._desk.model(request.path_params["model"])))

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, chat_asked(await body_of(request)), _Chat)

    async def _text(self, request: Request) -> Response:
        return await self._answer(request, text_asked(await body_of(request)), _Text)

    async def _answer(self, request: Request, asked: Asked, form: Callable[[str, str], _Form]) -> Response:
        model = await self._desk.model(asked.model)
        written = form(asked.model, model.weights)
        if asked.stream:
            generation, pieces = await self._desk.begin(request, model, asked.prompts, asked.stops)
            lines = _events(written, generation, pieces, asked)
            return Streamed(generation, lines, "text/event-stream")
        generation, answers = await self._desk.whole(request, model, asked.prompts, asked.stops)
        choices = [written.choice(at, *answer) for at, answer in enumerate(answers)]
        return JSONResponse(written.whole(choices) | {"usage": _usage(generation, asked.n)})


class _Form:
    """How an answer is written: what conversations and plain text have in common."""

    kind, chunk_kind, start = "", "", ""

    def __init__(self, model: str, weights: str) -> None:
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

    def choice(self, index: int, text: str, finish: str) -> Body:
        """One of the answers."""
        raise NotImplementedError

    def opening(self, index: int) -> list[Body]:
        """What stands before the first piece of one of them."""
        return []

    def grown(self, piece: Piece) -> list[Body]:
        """What one of them grows by."""
        raise NotImplementedError


class _Chat(_Form):
    kind, chunk_kind, start = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def choice(self, index: int, text: str, finish: str) -> Body:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": finish}

    def opening(self, index: int) -> list[Body]:
        return [_delta(index, {"role": "assistant", "content": ""}, None)]

    def grown(self, piece: Piece) -> list[Body]:
        said = [_delta(piece.row, {"content": piece.text}, None)] if piece.text else []
        return said + ([_delta(piece.row, {}, piece.finish)] if piece.finish else [])


class _Text(_Form):
    kind, chunk_kind, start = "text_completion", "text_completion", "cmpl"

    def choice(self, index: int, text: str, finish: str) -> Body:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish or None}

    def grown(self, piece: Piece) -> list[Body]:
        return [self.choice(piece.row, piece.text, piece.finish)]


def _delta(index: int, delta: dict[str, str], finish: str | None) -> Body:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


async def _events(
    form: _Form, generation: Generation, pieces: AsyncIterator[Piece], asked: Asked
) -> AsyncIterator[str]:
    """Server-sent events, one a choice and piece; an error in mid-answer is the last one."""
    no_usage: Body = {"usage": None} if asked.include_usage else {}
    try:
        for at in range(len(asked.prompts)):
            for choice in form.opening(at):
                yield _event(form.chunk([choice]) | no_usage)
        async for piece in pieces:
            for choice in form.grown(piece):
                yield _event(form.chunk([choice]) | no_usage)
        if asked.include_usage:
            yield _event(form.chunk([]) | {"usage": _usage(generation, asked.n)})
        yield _DONE
    except Exception as error:  # noqa: BLE001  (the boundary: whoever listens is told)
        yield _event(as_api_error(error).body())


def _event(content: Any) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _usage(generation: Generation, n: int) -> dict[str, int]:
    """Each prompt counts once, however many answers it has."""
    prompt, generated = sum(generation.prompt_tokens[::n]), sum(generation.generated_tokens)
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


def _described(model: ServedModel) -> Body:
    """As OpenAI lists a model; root and parent as vLLM tells of adapters."""
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": model.base.name,
        "root": model.digest,
        "parent": model.base.name if model.parts else None,
        "max_model_len": model.base.context_length,
    }
