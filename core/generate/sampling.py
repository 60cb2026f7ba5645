"""Choosing the next token of one row, with transformers' own logits processors."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from core.config import GenerationConfig
from core.errors import InvalidInput


class Sampler:
    """Samples for one row, with its own settings and its own random generator: same seed, same answer."""

    def __init__(self, config: GenerationConfig) -> None:
        self.config = config
        self.processors = _processors(config)
        self.generator = torch.Generator().manual_seed(config.seed)

    def choose(self, ids: Tensor, logits: Tensor) -> int:
        """The next id, given all ids so far [length] and the last position's logits [vocabulary].

        Raises InvalidInput if the logits are not finite.
        """
        if not logits.isfinite().all():
            raise InvalidInput("The model's output holds NaN or infinite numbers; the adapter or the base is damaged.")
        scores = self.processors(ids[None], logits[None].float())[0]  # type: ignore[arg-type]
        if self.config.greedy:
            return int(scores.argmax())
        return int(torch.multinomial(scores.softmax(-1).cpu(), 1, generator=self.generator))


def _processors(config: GenerationConfig) -> LogitsProcessorList:
    chosen = LogitsProcessorList()
    if config.repetition_penalty != 1.0:
        chosen.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.greedy:
        return chosen
    chosen.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        chosen.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1.0:
        chosen.append(TopPLogitsWarper(config.top_p))
    return chosen
