"""vLLM's endpoints that load an adapter into a server that runs, and unload it."""

from __future__ import annotations

from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from app.service.loading import Loading
from app.web.api.desk import Desk
from app.web.api.openai_errors import ApiError, bad
from app.web.api.parameters import Body, body_of, flag, require_known, text
from core.errors import InvalidInput
from storage.errors import InvalidName, NameTaken, NotFound

_LOAD = {"lora_name", "lora_path", "load_inplace", "base_model_name"}
_UNLOAD = {"lora_name", "lora_int_id"}  # vLLM's number of an adapter, which only it has


class AdapterRoutes:
    """They. locked: whether the API asks for a key, without which nothing on this machine is read."""

    def __init__(self, desk: Desk, loading: Loading, *, locked: bool) -> None:
        self._desk, self._loading, self._locked = desk, loading, locked

    def routes(self) -> list[Route]:
        """Under vLLM's paths."""
        return [
            Route("/v1/load_lora_adapter", self._desk.counted(self._load), methods=["POST"]),
            Route("/v1/unload_lora_adapter", self._desk.counted(self._unload), methods=["POST"]),
        ]

    async def _load(self, request: Request) -> Response:
        body = await self._asked(request, _LOAD)
        name, path = _needed(body, "lora_name"), Path(_needed(body, "lora_path")).expanduser()
        if not path.exists():
            said = f"There is nothing at {path} on the machine that serves; give a path there."
            raise ApiError(404, said, param="lora_path", code="not_found")
        base, in_place = text(body, "base_model_name", "") or None, flag(body, "load_inplace", False)
        try:
            await run_in_threadpool(self._loading.load, name, path, base, in_place=in_place)
        except NameTaken as error:
            advice = "" if in_place else " Where it was loaded through the API, load_inplace replaces it."
            raise bad("lora_name", f"{error}{advice}") from None
        except InvalidName as error:
            raise bad("lora_name", str(error)) from None
        except NotFound as error:
            raise bad("base_model_name", str(error)) from None
        except InvalidInput as error:
            raise bad("lora_path", str(error)) from None
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: Request) -> Response:
        name = _needed(await self._asked(request, _UNLOAD), "lora_name")
        try:
            await run_in_threadpool(self._loading.unload, name)
        except NotFound as error:
            raise ApiError(404, str(error), param="lora_name", code="not_found") from None
        except InvalidInput as error:
            raise bad("lora_name", str(error)) from None
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def _asked(self, request: Request, known: set[str]) -> Body:
        if not self._locked:
            raise ApiError(
                403, "Adapters are loaded and unloaded only where the API has a key.", code="no_key"
            )
        body = await body_of(request)
        require_known(body, known, {"is_3d_lora_weight": (False,)})
        return body


def _needed(body: Body, name: str) -> str:
    found = text(body, name).strip()
    if not found:
        raise bad(name, f"{name} is empty: a text is expected.")
    return found
