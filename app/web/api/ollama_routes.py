"""Ollama's endpoints, for clients that know only those: lines of JSON instead of events."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from app.service.serving import ServedModel
from app.web.api.desk import Desk, Streamed
from app.web.api.generation import Generation, Piece
from app.web.api.ollama_forms import knows_thinking, listed, resident, shown
from app.web.api.ollama_requests import OllamaAsked, chat_request, generate_request, show_request
from app.web.api.openai_errors import as_api_error, unsupported
from app.web.api.parameters import Body, body_of
from app.web.api.tools import ollama_calls
from storage.errors import NotFound

_LATEST = ":latest"  # what Ollama's clients put behind a name without a tag
Said = Callable[[Piece], Body]
"""How a piece of an answer is written."""
_NOTHING = Piece(0, "")


class OllamaRoutes:
    """They, over one desk."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def routes(self) -> list[Route]:
        """Under the paths that Ollama's clients call."""
        return [
            Route("/", self._desk.counted(_running)),
            Route("/api/version", self._desk.counted(_version)),
            Route("/api/tags", self._desk.counted(self._tags)),
            Route("/api/ps", self._desk.counted(self._resident)),
            Route("/api/show", self._desk.counted(self._show), methods=["POST"]),
            Route("/api/chat", self._desk.counted(self._chat), methods=["POST"]),
            Route("/api/generate", self._desk.counted(self._generate), methods=["POST"]),
        ]

    async def _tags(self, request: Request) -> Response:
        return JSONResponse({"models": [listed(one) for one in await self._desk.models()]})

    async def _resident(self, request: Request) -> Response:
        return JSONResponse({"models": [resident(one) for one in await self._desk.resident()]})

    async def _show(self, request: Request) -> Response:
        model = await self._model(show_request(await body_of(request)))
        return JSONResponse(shown(model, await self._desk.template(model)))

    async def _chat(self, request: Request) -> Response:
        asked = chat_request(await body_of(request))
        return await self._answer(request, asked, _message)

    async def _generate(self, request: Request) -> Response:
        asked = generate_request(await body_of(request))
        return await self._answer(request, asked, lambda piece: {"response": piece.text})

    async def _answer(self, request: Request, asked: OllamaAsked, said: Said) -> Response:
        model = await self._model(asked.model)
        if asked.thinks:
            await self._require_thinking(model)
        if asked.prompt is None:
            end = {"done": True, "done_reason": "unload" if asked.unload else "load"}
            return JSONResponse(_line(asked.model, said(_NOTHING)) | end)
        if asked.stream:
            generation, pieces = await self._desk.begin(request, model, [asked.prompt], asked.stops)
            lines = _lines(asked.model, generation, pieces, said)
            return Streamed(generation, lines, "application/x-ndjson")
        generation, answers = await self._desk.whole(request, model, [asked.prompt], asked.stops)
        return JSONResponse(_line(asked.model, said(answers[0])) | _end(generation, answers[0].finish))

    async def _require_thinking(self, model: ServedModel) -> None:
        """Raise ApiError for a model whose chat template knows no thinking."""
        if not knows_thinking(await self._desk.template(model)):
            said = f"think is not supported by the chat template of {model.base.name}; "
            raise unsupported("think", f"{said}leave it out, or send false.")

    async def _model(self, name: str) -> ServedModel:
        try:
            return await self._desk.model(name)
        except NotFound:
            if not name.endswith(_LATEST):
                raise
            return await self._desk.model(name.removesuffix(_LATEST))


def _message(piece: Piece) -> Body:
    calls = {"tool_calls": ollama_calls(piece.calls)} if piece.calls else {}
    return {"message": {"role": "assistant", "content": piece.text} | calls}


async def _running(request: Request) -> Response:
    """What Ollama's clients look for; without the page this is where it would be."""
    return PlainTextResponse("Ollama is running")


async def _version(request: Request) -> Response:
    return JSONResponse({"version": version("lora-workbench")})


async def _lines(
    name: str, generation: Generation, pieces: AsyncIterator[Piece], said: Said
) -> AsyncIterator[str]:
    """One line of JSON a piece; the last tells the figures, or what went wrong."""
    try:
        async for piece in pieces:
            if piece.text or piece.calls:
                yield _written(_line(name, said(piece)) | {"done": False})
            if piece.finish:
                yield _written(_line(name, said(_NOTHING)) | _end(generation, piece.finish))
    except Exception as error:  # noqa: BLE001  (the boundary: whoever listens is told)
        yield _written({"error": str(as_api_error(error))})


def _written(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"


def _line(name: str, said: Body) -> Body:
    return {"model": name, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z"), **said}


def _end(generation: Generation, finish: str) -> Body:
    """The figures, times in nanoseconds. Waiting counts as loading."""
    now, first = time.monotonic(), generation.first_token
    times = {
        "total_duration": now - generation.started,
        "load_duration": generation.begun - generation.started,
        "prompt_eval_duration": first - generation.begun,
        "eval_duration": now - first,
    }
    return {
        "done": True,
        "done_reason": "stop" if finish == "tool_calls" else finish,
        **{name: int(seconds * 1e9) for name, seconds in times.items()},
        "prompt_eval_count": generation.prompt_tokens[0],
        "eval_count": generation.generated_tokens[0],
    }
