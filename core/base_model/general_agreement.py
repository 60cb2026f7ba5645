"""Whether transformers' own passes, as the general way asks them, give what each row alone does.

Asked are a batch of rows that are filled up on the right, as training has it, and prompts that were read
apart and go on together, token by token, beside transformers' own caches. Where rows of different lengths
would change each other's numbers, those of one length share a pass, and each answer is written by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PretrainedConfig, PreTrainedModel

from core.base_model.attention import set_attention
from core.base_model.model_config import refusing
from core.base_model.own_rows import OwnRows
from core.base_model.sink_attention import NAME as SINKS
from core.base_model.way import Way
from core.errors import InvalidModel

TOLERANCE = 1e-3
"""Root mean square of the differences, as a share of the logits' own spread. Rounding gives 1e-6."""
_OWN_CACHES = 1e-2
"""The same for transformers' caches beside its plain pass: Nemotron-H bounds its time steps in one alone."""
_STEPS = 6  # tokens that are written, in which the shorter row passes the shortest window
_SHORT = 20  # tokens of that row


def difference(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The most that logits differ over rows, see TOLERANCE."""
    pairs = zip(wanted, found, strict=False)
    return max(float((b - a).square().mean().sqrt() / a.std().clamp_min(1e-12)) for a, b in pairs)


def general_way(
    model: PreTrainedModel, rows: Sequence[Tensor], wanted: Sequence[Tensor], not_quick: str
) -> Way:
    """The general way of a model that gives `wanted`, logits [length, vocabulary] of each row alone by
    transformers' eager attention.

    Raises InvalidModel if there is none; not_quick says why it is not computed on the quick one.
    """
    border, said = longrope_border(model.config), ""
    answers = [rows[0], rows[2][: max(2, min(_SHORT, len(rows[0]) // 2))]]
    steps = min(_STEPS, len(answers[1]) - 1)
    set_attention(model, "eager")
    written = [_ends(model, row, steps) for row in answers]
    for way in _candidates(model, border):
        try:
            with refusing(f"transformers' own passes stop for a {type(model).__name__}"):
                set_attention(model, way.attention)
                if way.together:
                    _require_equal("a row beside longer ones", wanted, _filled_up(model, rows))
                alone = _written(model, replace(way, together=False), answers, steps)
                _require_equal("an answer beside a cache", written, alone, _OWN_CACHES)
                if way.together:
                    _require_equal("an answer beside others", alone, _written(model, way, answers, steps))
        except InvalidModel as error:
            said = str(error)
        else:
            return way
    raise InvalidModel(
        f"A {type(model).__name__} with this configuration would not be computed as transformers computes "
        f"it. {not_quick} On the general way: {said} Its layers ({_layers(model)}) cannot be used yet."
    )


def _candidates(model: PreTrainedModel, border: int) -> list[Way]:
    return [Way(False, name, together, border) for together in (True, False) for name in _attentions(model)]


def _attentions(model: PreTrainedModel) -> list[str]:
    """What may attend, the quickest first; ours stands for what transformers has no fused kernel for."""
    if not model._can_set_attn_implementation():
        return ["eager"]
    return ["sdpa" if model._supports_sdpa else SINKS, "eager"]


def _require_equal(
    what: str, wanted: Sequence[Tensor], found: Sequence[Tensor], within: float = TOLERANCE
) -> None:
    if not (far := difference(wanted, found)) <= within:
        raise InvalidModel(
            f"{what} is computed otherwise than by itself, by {far:.1%} of the logits' spread."
        )


@torch.no_grad()
def _alone(model: PreTrainedModel, row: Tensor) -> Tensor:
    """Logits [length, vocabulary] of one row."""
    logits: Tensor = model(input_ids=row[None], use_cache=False).logits[0]
    return logits


@torch.no_grad()
def _ends(model: PreTrainedModel, row: Tensor, steps: int) -> Tensor:
    """Logits [1 + steps, vocabulary] behind the row without its last tokens, and behind each of these."""
    if not longrope_border(model.config):
        return _alone(model, row)[-1 - steps :]
    return torch.stack([_alone(model, row[:end])[-1] for end in range(len(row) - steps, len(row) + 1)])


@torch.no_grad()
def _filled_up(model: PreTrainedModel, rows: Sequence[Tensor]) -> list[Tensor]:
    """Logits of each row, all in one batch as it is trained."""
    ids = pad_sequence(list(rows), batch_first=True)
    logits = model(input_ids=ids, use_cache=False).logits
    return [found[: len(row)] for found, row in zip(logits, rows, strict=True)]


@torch.no_grad()
def _written(model: PreTrainedModel, way: Way, answers: Sequence[Tensor], steps: int) -> list[Tensor]:
    """As _ends() of each row, as answers are written; half way the rows change places."""
    kept, order = OwnRows(model, way, len(answers)), list(range(len(answers)))
    found = [[kept.read_at(at, row[: len(row) - steps])[-1]] for at, row in enumerate(answers)]
    for step in range(steps):
        if step == steps // 2:
            order.reverse()
            kept.take(kept, order, 0)
        ends = [len(answers[at]) - steps + step + 1 for at in order]
        ids = [answers[at][:end] for at, end in zip(order, ends, strict=True)]
        logits = kept.step(torch.stack([one[-1] for one in ids]), ids.__getitem__)
        for at, one in zip(order, logits, strict=True):
            found[at].append(one)
    return [torch.stack(one) for one in found]


def longrope_border(config: PretrainedConfig) -> int:
    """The length beyond which a row has another rotary embedding; 0 where none has, or for no row that the
    base can read.
    """
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    for one in (rope, *(one for one in rope.values() if isinstance(one, dict))):
        border = one.get("original_max_position_embeddings") or 0
        if one.get("rope_type") == "longrope" and border < (text.max_position_embeddings or 0):
            return int(border)
    return 0


def _layers(model: PreTrainedModel) -> str:
    """The classes of the layers that repeat, in words."""
    names = {type(one).__name__ for one in model.modules() if isinstance(one, nn.ModuleList) for one in one}
    return ", ".join(sorted(names)) or type(model.base_model).__name__
