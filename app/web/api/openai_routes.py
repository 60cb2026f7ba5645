"""OpenAI's endpoints: the models, answers to conversations, and plain text gone on with."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.service.serving import ServedModel
from app.web.api.desk import Desk, Streamed
from app.web.api.generation import Generation, Piece
from app.web.api.openai_errors import as_api_error
from app.web.api.openai_forms import ChatForm, Form, TextForm
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
        return await self._answer(request, chat_asked(await body_of(request)), ChatForm)

    async def _text(self, request: Request) -> Response:
        return await self._answer(request, text_asked(await body_of(request)), TextForm)

    async def _answer(self, request: Request, asked: Asked, form: type[Form]) -> Response:
        model = await self._desk.model(asked.model)
        written = form(asked.model, model.weights, likeliest=asked.likeliest)
        if asked.stream:
            generation, pieces = await self._desk.begin(request, model, asked.prompts, asked.stops)
            written.echoes = generation.echoes
            lines = _events(written, generation, pieces, asked)
            return Streamed(generation, lines, "text/event-stream")
        generation, answers = await self._desk.whole(request, model, asked.prompts, asked.stops)
        written.echoes = generation.echoes
        choices = [written.choice(answer) for answer in answers]
        return JSONResponse(written.whole(choices) | {"usage": _usage(generation, asked.n)})


async def _events(
    form: Form, generation: Generation, pieces: AsyncIterator[Piece], asked: Asked
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
