"""Choosing the next token of each row of a batch: what transformers' logits processors do to one row after
the other, for all rows at once. Row by row a batch of 64 would take longer to choose than to compute.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from core.generate.config import GenerationConfig
from core.generate.grammar import Form, held
from core.sending import sent

_FEW = 1024
"""So many of the likeliest tokens are found sooner than all are put in order."""
_NUMBERS_AT_ONCE = 1 << 23
"""Of logits, so that what choosing takes beside them is bounded: some 200 MB."""
_ROUNDED = 1e-4
"""What float32 may have lost of a sum of probabilities."""
_UNORDERED, _LIKELIEST, _ORDERED = range(3)
"""What a choice needs: all tokens as they are, a few of the likeliest, or all in order."""


class Sampler:
    """Samples for one row, with its own settings and its own random numbers: same seed, same answer."""

    def __init__(self, config: GenerationConfig, prompt: int, form: Form | None = None) -> None:
        """prompt: tokens that stand before the answer. form: what it is held to."""
        self.config, self.form = config, form
        self.penalties = _penalties(config, prompt)
        self._random = random.Random(config.seed)

    @property
    def takes_the_likeliest(self) -> bool:
        """Whether the choice is the plain argmax."""
        return self.config.greedy and not self.penalties

    @property
    def needs(self) -> int:
        """Which of the three ways to choose it takes."""
        if self.config.greedy or 0 < self.config.top_k <= _FEW:
            return _LIKELIEST
        return _ORDERED if self.config.top_k or self.config.top_p < 1 else _UNORDERED

    def told(self) -> tuple[float, float, float, float, float]:
        """Temperature, top-k (0 for all), top-p, min-p, and the next random number."""
        one = self.config
        if one.greedy:
            return 1.0, 1.0, 1.0, 0.0, 0.0
        return one.temperature, float(one.top_k), one.top_p, one.min_p, self._random.random()


def choose(samplers: Sequence[Sampler], logits: Tensor, so_far: Callable[[int], Tensor]) -> Tensor:
    """The next id of each row [rows], on the device, given the last position's logits [rows, vocabulary].
    so_far: all ids of a row, by its place.

    Rows whose logits are not finite get any id.
    """
    logits = held([one.form for one in samplers], logits)
    chosen = logits.argmax(-1)
    groups: dict[tuple[int, bool], list[int]] = defaultdict(list)
    for place, one in enumerate(samplers):
        if not one.takes_the_likeliest:
            groups[one.needs, bool(one.penalties)].append(place)
    at_once = max(1, _NUMBERS_AT_ONCE // logits.shape[1])
    for (needs, penalised), all_places in groups.items():
        for first in range(0, len(all_places), at_once):
            places = all_places[first : first + at_once]
            numbers = sent(places, logits.device)
            if penalised:
                scores = torch.stack([_penalised(samplers[at], logits[at], so_far(at)) for at in places])
            else:
                scores = logits if len(places) == len(logits) else logits[numbers]
            told = [samplers[at].told() for at in places]
            most = int(max(top_k for _, top_k, *_ in told))
            chosen[numbers] = _drawn(scores, sent(told, logits.device, torch.float32), needs, most)
    return chosen


def _penalised(sampler: Sampler, logits: Tensor, ids: Tensor) -> Tensor:
    scores: Tensor = sampler.penalties(ids[None], logits[None].float())[0]  # type: ignore[arg-type]
    return scores


def _drawn(scores: Tensor, told: Tensor, needs: int, most: int) -> Tensor:
    """An id of each row of scores [rows, vocabulary] by its share of the probability that is left. told: of
    each row, Sampler.told(); most: the largest top-k, where the likeliest are needed.

    Temperature, top-k, top-p and min-p leave what transformers' warpers leave, in their order; of tokens that
    are as likely as the last of top-k some may be left out.
    """
    temperature, _, _, min_p, part = _columns(told)
    if needs == _UNORDERED:
        chances = (scores.float() / temperature).softmax(-1)
        kept = chances >= min_p * chances.amax(-1, keepdim=True)
        sums = torch.where(kept, chances, 0.0).cumsum(-1)
        return _passed(sums, sums[:, -1:], part)[:, 0]
    if needs == _LIKELIEST:
        return _in_order(*scores.topk(min(most, scores.shape[1]), -1), told)
    if scores.is_cuda or scores.shape[1] <= _FEW:  # on CUDA the host would wait for whether a few are enough
        return _in_order(*scores.sort(-1, descending=True), told)
    found, enough = _by_a_few(scores, told)
    if not bool(enough.all()):
        found[~enough] = _in_order(*scores[~enough].sort(-1, descending=True), told[~enough])
    return found


def _columns(told: Tensor) -> tuple[Tensor, ...]:
    """Each setting of the rows, [rows, 1]."""
    return told[:, :, None].unbind(1)


def _in_order(scores: Tensor, ids: Tensor, told: Tensor) -> Tensor:
    """An id of each row of the likeliest tokens' scores in order, beside which there are no others."""
    temperature, top_k, *_ = _columns(told)
    places = torch.arange(scores.shape[1], device=scores.device)
    left_out = (top_k > 0) & (places >= top_k)
    chances = (scores.float() / temperature).masked_fill(left_out, float("-inf")).softmax(-1)
    return _of_the_beginning(chances, ids, told)


def _by_a_few(scores: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
    """An id of each row, and whether it counts [rows]: where a few tokens hold all that top-p leaves."""
    temperature, top_k, top_p, *_ = _columns(told)
    likeliest, ids = scores.topk(_FEW, -1)
    whole = (scores.float() / temperature).logsumexp(-1, keepdim=True)
    chances = (likeliest.float() / temperature - whole).exp()
    enough = (top_k == 0) & (chances.sum(-1, keepdim=True) > top_p + _ROUNDED)
    return _of_the_beginning(chances, ids, told), enough[:, 0]


def _of_the_beginning(chances: Tensor, ids: Tensor, told: Tensor) -> Tensor:
    """An id of each row from probabilities in order, of which top-p and min-p leave a beginning."""
    _, _, top_p, min_p, part = _columns(told)
    sums = chances.cumsum(-1)
    kept = (sums - chances < top_p) | (top_p >= 1)
    kept &= chances >= min_p * chances[:, :1]
    whole = sums.gather(-1, kept.sum(-1, keepdim=True).clamp(min=1) - 1)
    return ids.gather(-1, _passed(sums, whole, part))[:, 0]


def _passed(sums: Tensor, whole: Tensor, part: Tensor) -> Tensor:
    """The first place of each row at which its growing sums are above this part of the whole."""
    bound = torch.minimum(part * whole, torch.nextafter(whole, torch.zeros_like(whole)))
    return torch.searchsorted(sums, bound, right=True).clamp(max=sums.shape[1] - 1)


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


def _penalties(config: GenerationConfig, prompt: int) -> LogitsProcessorList:
    chosen = LogitsProcessorList()
    if config.repetition_penalty != 1.0:
        chosen.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.presence_penalty or config.frequency_penalty:
        chosen.append(_UsedTokens(config.presence_penalty, config.frequency_penalty, prompt))
    return chosen
