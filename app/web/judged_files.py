"""What was judged, as files that are written while they are downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from app.service.prompt_sets import FORMS
from app.service.workbench import Workbench
from app.shared.errors import USER_ERRORS
from storage.tables import Base


def serve_judged(application: Any, workbench: Workbench, number_in: Callable[[str], int]) -> None:
    """Add their addresses to a FastAPI application."""
    from fastapi import HTTPException
    from fastapi.responses import StreamingResponse

    def votes(base_id: str, form: str) -> StreamingResponse:
        try:
            row = workbench.registry.get(Base, number_in(base_id))
            lines = list(workbench.votes.lines(form, row.name))
        except USER_ERRORS as error:
            raise HTTPException(404, str(error)) from None
        headers = {"Content-Disposition": f'attachment; filename="{form}-{row.id}.jsonl"'}
        return StreamingResponse(iter(lines), media_type="application/jsonl; charset=utf-8", headers=headers)

    def answers(run_id: str, form: str) -> StreamingResponse:
        try:
            number = number_in(run_id)
            lines = list(workbench.prompts.lines(number, form))
        except USER_ERRORS as error:
            raise HTTPException(404, str(error)) from None
        headers = {"Content-Disposition": f'attachment; filename="answers-{number}.{form}"'}
        return StreamingResponse(iter(lines), media_type=f"{FORMS[form]}; charset=utf-8", headers=headers)

    register: Callable[..., object] = application.add_api_route
    about: dict[str, Any] = {"methods": ["GET"], "include_in_schema": False, "response_model": None}
    register("/workbench/votes/{base_id}/{form}.jsonl", votes, **about)
    register("/workbench/prompts/{run_id}/answers.{form}", answers, **about)
