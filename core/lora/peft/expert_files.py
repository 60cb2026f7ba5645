"""Adapters on experts in PEFT's files: target_parameters, and the factors of all experts in one tensor.

PEFT 0.21 (ParamWrapper in peft/tuners/lora/layer.py) keeps A as [E·r, in], expert by expert, and B as [out,
r·E], the experts of each rank beside each other. It wraps the module once for each of its parameters, the
later one around the earlier, so the keys name no parameter: that of the last stands under the module's path,
that of the one before behind base_layer. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.errors import InvalidAdapter
from core.lora.expert_shapes import ExpertShape, in_order
from core.lora.module_names import is_among
from core.lora.peft.config_checks import CONFIG_NAME, MODULE_NAME

if TYPE_CHECKING:
    from torch import Tensor

KEY = "target_parameters"
_INNER = ".base_layer"
_MOST_NAMES = 10_000


def check_parameters(config: Mapping[str, Any], takes_experts: bool) -> None:
    """Raise InvalidAdapter unless target_parameters is a list of names, of an adapter that can be on such."""
    names = config.get(KEY)
    if not names:
        return
    if not (isinstance(names, list) and len(names) <= _MOST_NAMES):
        raise InvalidAdapter(f"{CONFIG_NAME}: {KEY} must be a list of names of parameters.")
    if strange := [name for name in names if not (isinstance(name, str) and MODULE_NAME.match(name))]:
        raise InvalidAdapter(f"{CONFIG_NAME}: {KEY} names {str(strange[0])[:80]!r}, which is no parameter.")
    wrong = [one for one in ("use_dora", "lora_bias", "fan_in_fan_out") if config.get(one)]
    wrong += ["lora_dropout"] if config.get("lora_dropout") else []
    if wrong or not takes_experts:
        said = wrong[0] if wrong else "this kind of adapter"
        raise InvalidAdapter(f"{CONFIG_NAME}: {KEY} does not go with {said}, in PEFT as here.")


def targeted_experts(config: Mapping[str, Any], experts: Collection[str]) -> list[str]:
    """The fused parameters, of these, that a checked configuration targets. Raises InvalidAdapter for a name
    that is none of them.
    """
    names = config.get(KEY) or []
    if unknown := [name for name in names if not any(is_among(path, [name]) for path in experts)]:
        raise InvalidAdapter(
            f"{CONFIG_NAME}: {KEY} names {unknown[0][:80]}; in this base "
            + (f"there are {_few(experts)}." if experts else "there are no experts that adapters can be on.")
        )
    return [path for path in experts if is_among(path, names)]


def _few(paths: Collection[str]) -> str:
    return ", ".join(sorted({".".join(path.split(".")[-2:]) for path in paths}))


def keys_of_experts(paths: Collection[str]) -> dict[str, str]:
    """The path under which files keep the factors of each of these fused parameters of one adapter."""
    by_module: dict[str, list[str]] = {}
    for path in paths:
        by_module.setdefault(path.rpartition(".")[0], []).append(path)
    return {
        path: module + _INNER * depth
        for module, own in by_module.items()
        for depth, path in enumerate(reversed(in_order(own)))
    }


def file_shapes(shape: ExpertShape, rank: int) -> dict[str, tuple[int, int]]:
    """Of A and B of all experts, as files keep them."""
    n_in, n_out = shape
    return {"A": (shape.experts * rank, n_in), "B": (n_out, rank * shape.experts)}


def as_in_files(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A [E, r, in] and B [E, out, r] as files keep them."""
    return {"A": tensors["A"].flatten(0, 1), "B": tensors["B"].permute(1, 2, 0).flatten(1)}


def as_computed(tensors: Mapping[str, Tensor], experts: int) -> dict[str, Tensor]:
    """The reverse of as_in_files()."""
    A, B = tensors["A"], tensors["B"]
    return {
        "A": A.unflatten(0, (experts, -1)).contiguous(),
        "B": B.unflatten(1, (-1, experts)).permute(2, 0, 1).contiguous(),
    }


def naming_parameters(held: Collection[str], there: Collection[str] = ()) -> list[str]:
    """target_parameters of an adapter on these: the last two parts where in a base with those that are
    `there` they mean no others, else full paths.
    """
    short = sorted({".".join(path.split(".")[-2:]) for path in held})
    means = {path for path in there if is_among(path, short)}
    return short if means == {*held} else sorted(held)


def require_all(found: Collection[str], targeted: Sequence[str]) -> None:
    """Raise InvalidAdapter unless the factors in a file are those of the targeted fused parameters."""
    if missing := sorted({*targeted} - {*found}):
        raise InvalidAdapter(
            f"{KEY} names {missing[0]} in this base, and the file holds no factors for it "
            f"({len(missing)} such parameters)."
        )
