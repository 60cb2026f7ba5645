"""Where requests of both APIs are taken: the model is found, the turn waited for, the answer begun, and ended
when its client goes away.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.service.serving import Prompt, ServedModel, Serving
from app.web.api.counters import Counters
from app.web.api.generation import Generation, Piece
from app.web.api.openai_errors import as_api_error, bad
from app.web.api.waiting_line import WaitingLine
from core.errors import InvalidInput, WrongBase

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]
_GONE = 499  # as nginx notes it; nobody reads it


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class Desk:
    """What all endpoints share."""

    def __init__(self, serving: Serving, line: WaitingLine) -> None:
        self._serving, self.line, self.counters = serving, line, Counters()

    async def models(self) -> list[ServedModel]:
        """All that can answer."""
        return await run_in_threadpool(self._serving.models)

    async def resident(self) -> list[ServedModel]:
        """The base in memory, if there is one."""
        return await run_in_threadpool(self._serving.resident)

    async def model(self, name: str) -> ServedModel:
        """The one of this name. Raises NotFound, with the list, ApiError for a blend that cannot answer."""
        try:
            return await run_in_threadpool(self._serving.find, name)
        except (InvalidInput, WrongBase) as error:
            raise bad("model", str(error)) from None

    async def template(self, model: ServedModel) -> str:
        """Its chat template."""
        return await run_in_threadpool(self._serving.template, model)

    async def begin(
        self, request: Request, model: ServedModel, prompts: Sequence[Prompt], stops: Sequence[str]
    ) -> tuple[Generation, AsyncIterator[Piece]]:
        """The answers, of which the first piece is there already: what is refused is refused before anything
        is sent. Whoever gets them closes the generation.

        Raises ClientGone, or what Generation.pieces() raises.
        """
        client = request.client.host if request.client else ""
        generation = Generation(self._serving, self.line, self.counters, client, model, prompts, stops)
        pieces = generation.pieces()

        async def first() -> Piece:
            return await anext(pieces)

        try:
            return generation, _behind(await unless_gone(request, first()), pieces)
        except BaseException:
            generation.close()
            raise

    async def whole(
        self, request: Request, model: ServedModel, prompts: Sequence[Prompt], stops: Sequence[str]
    ) -> tuple[Generation, list[Piece]]:
        """The answers when all have ended, each in one piece. Raises as begin()."""
        generation, pieces = await self.begin(request, model, prompts, stops)
        answers = [Piece(row, "") for row in range(len(prompts))]

        async def collect() -> None:
            async for piece in pieces:
                answers[piece.row] += piece

        try:
            await unless_gone(request, collect())
        finally:
            generation.close()
        return generation, answers

    def counted(self, handler: Handler, prompt: str = "messages") -> Handler:
        """The handler, its refusals in the API's own form, each request counted. prompt: which parameter
        holds it.
        """

        async def answered(request: Request) -> Response:
            try:
                response = await handler(request)
            except ClientGone:
                response = Response(status_code=_GONE)
            except Exception as error:  # noqa: BLE001  (the boundary: whoever asked is told)
                response = as_api_error(error, prompt).response(request.url.path)
            path = request.scope["route"].path
            self.counters.add("requests", path=path, status=str(response.status_code))
            return response

        return answered


async def _behind(first: Piece, others: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    yield first
    async for piece in others:
        yield piece


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives. Raises ClientGone, and ends it, when whoever asked has gone away."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Streamed(StreamingResponse):
    """Answers as they come. What is left of them is ended when it is sent, or its client goes away."""

    def __init__(self, generation: Generation, lines: AsyncIterator[str], media_type: str) -> None:
        super().__init__(lines, media_type=media_type, headers={"Cache-Control": "no-store"})
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.close()
