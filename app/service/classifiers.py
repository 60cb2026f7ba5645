"""Texts classified by adapters side by side. Knows nothing of Gradio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.shared.adapter_labels import labels_of_row
from app.shared.bases import base_for, told_to_answer
from app.shared.engine_client import EngineClient
from app.shared.identity import require_same_weights
from app.shared.text import require_text
from app.shared.user_settings import PreferenceStore
from core.data.labels import REGRESSION, LabelSet
from core.errors import InvalidInput
from storage.registry import Registry
from storage.tables import Adapter, Base

MAX_SIDE_BY_SIDE = 8
MAX_TEXTS = 1000
CUT = "The text is longer than what the base model was built for; its end was not read."


@dataclass(frozen=True)
class Told:
    """What one adapter tells of one text."""

    text: str
    adapter: str | None
    """None for the head that the base's own files hold."""
    problem_type: str
    probabilities: dict[str, float]
    """By label, the likeliest first; of a regression the value."""
    cut: bool
    """Whether the text is longer than what the base was built for, so that its end was not read."""

    @property
    def answer(self) -> str:
        """In short: the label, all labels that are likelier than not, or the number."""
        if self.problem_type == REGRESSION:
            return f"{next(iter(self.probabilities.values())):.4g}"
        likely = [label for label, one in self.probabilities.items() if one > 0.5]
        return next(iter(self.probabilities)) if self.is_single else ", ".join(likely) or "none"

    @property
    def is_single(self) -> bool:
        """Whether a text has exactly one label."""
        return self.problem_type.startswith("single")


class Classifiers:
    """The adapters of one home folder that classify."""

    def __init__(self, registry: Registry, engine: EngineClient, preferences: PreferenceStore) -> None:
        self._registry, self._engine, self._preferences = registry, engine, preferences

    def labels(self, adapter: Adapter) -> LabelSet | None:
        """What an adapter's scores stand for; None for one that writes answers."""
        return labels_of_row(self._registry, adapter)

    def try_words(self, adapter: Adapter) -> str:
        """What one does with an adapter in the playground."""
        return "Classify with it" if self.labels(adapter) is not None else "Chat with it"

    def all(self) -> list[Adapter]:
        """Those that classify, the newest first."""
        rows = [row for row in self._registry.all(Adapter) if self.labels(row) is not None]
        return sorted(rows, key=lambda row: row.created, reverse=True)

    def classify(
        self, texts: Sequence[str], adapters: Sequence[str] = (), base: str = ""
    ) -> list[list[Told]]:
        """What each adapter tells of each text, [texts][adapters]; without adapters what the head tells that
        the files of `base` hold. By default the base is that of the first adapter.

        Raises InvalidInput, NotFound, WrongBase, InvalidAdapter, EngineUnavailable.
        """
        if not any(text.strip() for text in texts) or len(texts) > MAX_TEXTS:
            raise InvalidInput(f"Give one to {MAX_TEXTS:,} texts to classify.")
        if empty := next((at for at, text in enumerate(texts, 1) if not text.strip()), 0):
            raise InvalidInput(f"Text {empty} of {len(texts):,} is empty; leave it out.")
        require_text(*texts)
        if len(adapters) > MAX_SIDE_BY_SIDE:
            raise InvalidInput(f"At most {MAX_SIDE_BY_SIDE} adapters can classify side by side.")
        if not adapters and not base:
            raise InvalidInput("Name an adapter that was trained to classify, or a base that has a head.")
        rows = [self._registry.find(Adapter, name) for name in adapters]
        model = self._registry.find(Base, base) if base else base_for(self._registry, rows[0])
        for row in rows:
            require_same_weights(self._registry, row, model)
        told = [
            {name: getattr(row, name) for name in ("name", "digest", "base_fingerprint", "base_name")}
            for row in rows
        ]
        found = self._engine.classify(
            told_to_answer(model, self._preferences), [*told] or [None], list(texts)
        )
        names: list[str | None] = [row.name for row in rows] or [None]
        return [
            [
                Told(
                    text,
                    name,
                    one["problem_type"],
                    _sorted(one["labels"], one["probabilities"][at]),
                    one["cut"][at],
                )
                for name, one in zip(names, found, strict=True)
            ]
            for at, text in enumerate(texts)
        ]


def _sorted(labels: Sequence[str], probabilities: Sequence[float]) -> dict[str, float]:
    pairs = zip(labels, probabilities, strict=True)
    return dict(sorted(pairs, key=lambda pair: pair[1], reverse=True))
