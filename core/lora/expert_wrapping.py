"""Put LoraExperts into a model, once and only when an adapter first needs them, and see that they compute
what the model's own experts do.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from core.errors import InvalidModel
from core.lora.expert_layer import LoraExperts, expert_shapes

_TOKENS, _EACH = 6, 2  # of a probe, and experts of each token
_LENGTH = 5  # tokens of each row of another
_ALLOWED = {torch.float32: 1e-4, torch.float64: 1e-4}
_ALLOWED_IN_16_BITS = 3e-2


def wrapped_experts(model: PreTrainedModel, path: str) -> LoraExperts:
    """The experts at this path, where adapters can be. All of the model are wrapped with the first.

    Raises InvalidModel, with the path, for experts that would be computed otherwise than by themselves.
    """
    if not isinstance(model.get_submodule(path), LoraExperts):
        _wrap(model)
    found = model.get_submodule(path)
    assert isinstance(found, LoraExperts)
    return found


def _wrap(model: PreTrainedModel) -> None:
    found = experts_of(model)
    made = {path: LoraExperts(module) for path, module in found.items()}
    for path, experts in made.items():
        _require_same(path, experts)
    _require_rows_in_order(model, found)
    for path, experts in made.items():
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, experts)


def experts_of(model: nn.Module) -> dict[str, nn.Module]:
    """The experts of each layer, wrapped or not, by path, as far as they have the known shape."""
    return {
        path: module
        for path, module in model.named_modules()
        if expert_shapes(module) and not path.endswith(".base")
    }


@torch.no_grad()
def _require_same(path: str, experts: LoraExperts) -> None:
    """Raise InvalidModel unless the experts without adapters give what the module's own loop gives."""
    weight = next(iter(experts.base.parameters()))
    generator = torch.Generator().manual_seed(0)
    shape = next(iter(experts.shapes.values()))
    width, count = shape[0], shape.experts
    x = torch.randn(_TOKENS, width, generator=generator).to(weight.device, weight.dtype)
    chosen = torch.stack(
        [torch.randperm(count, generator=generator)[: min(_EACH, count)] for _ in range(_TOKENS)]
    ).to(weight.device)
    weights = torch.rand(chosen.shape, generator=generator).to(weight.device, weight.dtype)
    plain = getattr(type(experts.base).forward, "__wrapped__", type(experts.base).forward)
    wanted = plain(experts.base, x, chosen, weights)
    far = _distance(wanted, experts.computed((x, chosen, weights), None, None))
    if not far <= _ALLOWED.get(weight.dtype, _ALLOWED_IN_16_BITS):
        raise InvalidModel(
            f"The experts {path} ({type(experts.base).__name__}) are computed in a way that is not known "
            f"here: what is known differs by {far:.1%}. Leave target_parameters empty."
        )


def _distance(wanted: Tensor, found: Tensor) -> float:
    return float((wanted.float() - found.float()).norm() / wanted.float().norm().clamp_min(1e-12))


def _require_rows_in_order(model: PreTrainedModel, experts: Mapping[str, nn.Module]) -> None:
    """Raise InvalidModel, with their paths, for experts that are not given the tokens of all rows in order:
    which adapter a token has follows from its place.
    """
    size = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    ids = (torch.arange(2 * _LENGTH, device=model.device) * 7 % size).view(2, -1)
    both, one = _given(model, experts, ids), _given(model, experts, ids[:1])
    strange = [path for path in experts if not _in_order(one.get(path), both.get(path))]
    if strange:
        raise InvalidModel(
            f"{type(model).__name__} gives {strange[0]} ({len(strange)} such modules) other things than the "
            "tokens of all rows in order, so adapters on these experts cannot be used. Leave "
            "target_parameters empty."
        )


def _in_order(one: Tensor | None, both: Tensor | None) -> bool:
    """Whether each token of a row by itself is most like what stands in its place in both rows: rounding
    sends some to other experts where the row has company, and what they are then is only alike.
    """
    if both is None or one is None or both.dim() != 2 or len(both) != 2 * len(one) or len(one) != _LENGTH:
        return False
    nearest = torch.cdist(one.float(), both.float()).argmin(1)
    return bool((nearest == torch.arange(len(one), device=one.device)).all())


@torch.no_grad()
def _given(model: PreTrainedModel, experts: Mapping[str, nn.Module], ids: Tensor) -> dict[str, Tensor]:
    """What each of the experts is given in a pass."""
    found: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for path, module in experts.items():
            hook = module.register_forward_pre_hook(
                lambda _, given, named, path=path: found.update(
                    {path: next(iter((*given, *named.values())))}
                ),
                with_kwargs=True,
            )
            hooks.callback(hook.remove)
        model(input_ids=ids, use_cache=False)
    return found
