"""Rows as tokens, for the page: answered beside the engine's work, with tokenizers alone."""

from __future__ import annotations

import threading
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from app.shared import wire
from app.shared.bases import folder_of
from app.shared.errors import USER_ERRORS
from app.shared.refusals import refused
from core.base_model.describe import chat_template
from core.base_model.fingerprint import companions_hash
from core.base_model.templates import chosen_template
from core.base_model.tokenizer import load_tokenizer
from core.data.chat_options import ChatOptions
from core.data.dataset_file import DatasetFile
from core.data.importing import Summary
from core.data.rendering import Renderer
from core.data.token_view import row_view
from core.panics import panics_as_errors
from storage.registry import Registry
from storage.tables import Base

_KEPT = 8  # tokenizers


class TokenViews:
    """Loads each tokenizer once. Called from the threads of several connections."""

    def __init__(self, registry: Registry) -> None:
        self._registry, self._lock = registry, threading.Lock()
        self._renderer = lru_cache(maxsize=_KEPT)(_load)

    def view(self, question: wire.Message) -> wire.Message:
        """The answer to a question for tokens: the view, or the reason there is none."""
        try:
            base = self._registry.find(Base, question["base"])
            rows = self._registry.blobs.path(question["rows"])
            summary = Summary.read(rows)
            special = bool(summary and summary.mapping.get("special_tokens"))
            template = base.template if question["template"] is None else str(question["template"])
            chosen_template(template)
            with self._lock:
                folder = folder_of(base)
                renderer = self._renderer(folder, companions_hash(folder), template, special)
                renderer = renderer.with_options(ChatOptions.parse(question.get("chat") or {}))
                with panics_as_errors():
                    return asdict(row_view(renderer, DatasetFile(rows)[int(question["index"])]))
        except USER_ERRORS as error:
            return refused(error, str(error))


def _load(folder: Path, companions: str, template: str, special_tokens: bool) -> Renderer:
    """A renderer; the hash is in the signature so that what changes in the folder is loaded anew."""
    tokenizer = load_tokenizer(folder, template)
    if template and chat_template(folder) is None:
        tokenizer.chat_template = chosen_template(template)
    return Renderer(tokenizer, special_tokens=special_tokens)
