"""Mixtures of adapters as they are heard in the playground, and what it takes to keep one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from app.service.adapters import Adapters
from app.service.chats import Chats
from app.service.jobs import Jobs
from core.errors import InvalidConfig
from core.events import TokenDone
from core.generate.config import GenerationConfig

_TOKENS = 64
STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Agreement:
    """How alike a mixture and what was kept of it answer, both greedily."""

    prompts: int
    same: int
    """Prompts to which both say the same, to the last token."""
    tokens: int
    """Of the mixture's answers."""


def mixture(weights: Mapping[str, float]) -> str:
    """What a mixture is called, as a speaker."""
    return "+".join(f"{name}={weight:g}" for name, weight in weights.items())


def steps_of(weights: Mapping[str, float]) -> list[str]:
    """The mixtures with the first adapter's weight from 0 to 1, the others as they are.

    Raises InvalidConfig if there is none.
    """
    if not weights:
        raise InvalidConfig("Choose the adapters of the mixture first.")
    first, *_ = weights
    return [mixture({**weights, first: step}) for step in STEPS]


class Blends:
    """Keeps mixtures."""

    def __init__(self, adapters: Adapters, jobs: Jobs, chats: Chats) -> None:
        self._adapters, self._jobs, self._chats = adapters, jobs, chats

    def keep(
        self,
        base: str,
        weights: Mapping[str, float],
        name: str,
        options: Mapping[str, object],
        prompts: Sequence[str],
    ) -> Agreement:
        """Make an adapter of a mixture and compare both by their greedy answers to the prompts.

        Waits until both is done. Raises JobFailed, NameTaken, InvalidConfig, EngineUnavailable.
        """
        self._jobs.wait(self._adapters.combine(weights, options, name))
        return self.agreement(base, mixture(weights), name, prompts)

    def agreement(self, base: str, first: str, second: str, prompts: Sequence[str]) -> Agreement:
        """How often two speakers answer alike. Raises what Chats.answer() raises."""
        pairs = [self._answers(base, [first, second], prompt) for prompt in prompts]
        texts, tokens = [texts for texts, _ in pairs], sum(tokens for _, tokens in pairs)
        return Agreement(len(prompts), sum(one == other for one, other in texts), tokens)

    def _answers(self, base: str, speakers: Sequence[str], prompt: str) -> tuple[list[str], int]:
        """The greedy answers of all, and the tokens of the first."""
        texts, tokens = [""] * len(speakers), 0
        for token in self._stream(base, speakers, prompt):
            texts[token.row] += token.text
            tokens = token.tokens if token.row == 0 else tokens
        return texts, tokens

    def _stream(self, base: str, speakers: Sequence[str], prompt: str) -> Iterator[TokenDone]:
        config = GenerationConfig(max_tokens=_TOKENS, temperature=0.0)
        asked = [{"role": "user", "content": prompt}]
        return self._chats.answer(base, list(speakers), [asked] * len(speakers), config)
