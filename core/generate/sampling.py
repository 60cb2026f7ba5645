"""Choosing the next token of one row, with transformers' own logits processors."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from core.generate.config import GenerationConfig


class Sampler:
    """Samples for one row, with its own settings and its own random generator: same seed, same answer on one
    device.
    """

    def __init__(self, config: GenerationConfig, device: torch.device, prompt: int) -> None:
        """prompt: tokens that stand before the answer."""
        self.config = config
        self.processors = _processors(config, prompt)
        self.generator = torch.Generator(device).manual_seed(config.seed)

    @property
    def takes_the_likeliest(self) -> bool:
        """Whether the choice is the plain argmax, which a whole batch makes at once."""
        return self.config.greedy and not self.processors

    def choose(self, ids: Tensor, logits: Tensor) -> Tensor:
        """The next id [1], given all ids so far [length] and the last position's logits [vocabulary]; stays
        on the device.
        """
        scores = self.processors(ids[None], logits[None].float())  # type: ignore[arg-type]
        if self.config.greedy:
            return scores.argmax(-1)
        # Logits that are not finite are told apart elsewhere; here they must not break a batch.
        chances = scores.softmax(-1).nan_to_num(nan=1.0)
        return torch.multinomial(chances, 1, generator=self.generator)[0]


class _UsedTokens(LogitsProcessor):
    """Takes `presence` from the logit of each token that the answer has, and `frequency` as often as it has
    it (https://platform.openai.com/docs/api-reference/chat). The prompt does not count, as in vLLM.
    """

    def __init__(self, presence: float, frequency: float, prompt: int) -> None:
        self._presence, self._frequency, self._prompt = presence, frequency, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        used = input_ids[:, self._prompt :]
        counts = torch.zeros_like(scores).scatter_add_(1, used, torch.ones_like(used, dtype=scores.dtype))
        return scores - self._frequency * counts - self._presence * (counts > 0)


def _processors(config: GenerationConfig, prompt: int) -> LogitsProcessorList:
    chosen = LogitsProcessorList()
    if config.repetition_penalty != 1.0:
        chosen.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.presence_penalty or config.frequency_penalty:
        chosen.append(_UsedTokens(config.presence_penalty, config.frequency_penalty, prompt))
    if config.greedy:
        return chosen
    chosen.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        chosen.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1.0:
        chosen.append(TopPLogitsWarper(config.top_p))
    if config.min_p:
        chosen.append(MinPLogitsWarper(config.min_p))
    return chosen
