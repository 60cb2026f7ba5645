"""Addresses of the hub's pages, as people copy them from a browser. Needs no torch."""

from __future__ import annotations

import re
from urllib.parse import unquote

from core.errors import InvalidInput

MODEL, DATA_SET = "model", "data set"
_HUB = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)(?:/|$)", re.IGNORECASE)
_NO_OWNERS = ("spaces", "collections", "papers", "docs", "blog", "models", "organizations")
_FILES, _BRANCH = ("tree", "blob", "resolve", "raw"), "main"
_PLACES = {MODEL: "Models, or models add", DATA_SET: "Data, or data add"}


def hub_id_in(text: str, wanted: str) -> str:
    """The owner/name in an address of the hub, which is to be that of a `wanted`; any other text as it is.

    Raises InvalidInput for a page of something else, and for a revision other than main, since what is
    fetched is always main.
    """
    found = _HUB.match(text)
    if found is None:
        return text
    parts = [unquote(part) for part in re.split(r"[?#]", text[found.end() :])[0].split("/") if part]
    kind = DATA_SET if parts[:1] == ["datasets"] else MODEL
    owner_and_name, behind = _divided(parts[1:] if kind == DATA_SET else parts)
    if len(owner_and_name) < 2:
        raise InvalidInput(f"{text} is no page of a {wanted}; expected owner/name behind the hub's address.")
    if kind != wanted:
        raise InvalidInput(f"{text} is a {kind}, not a {wanted}; add it under {_PLACES[kind]}.")
    if behind[:1] and behind[0] in _FILES and behind[1:2] not in ([], [_BRANCH]):
        raise InvalidInput(
            f"{text} names the revision {'/'.join(behind[1:])}, and only {_BRANCH} is fetched by its name. "
            "Download that revision, and give its folder or files."
        )
    return "/".join(owner_and_name)


def _divided(parts: list[str]) -> tuple[list[str], list[str]]:
    """Owner and name, and what stands behind them; nothing for pages that belong to nobody."""
    return ([], parts) if parts[:1] and parts[0] in _NO_OWNERS else (parts[:2], parts[2:])
