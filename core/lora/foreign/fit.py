"""A foreign adapter fitted to a base: each of its layers to one of the base's, in PEFT's way round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from core.errors import InvalidAdapter
from core.lora.adapter import AdapterWeights, LayerFactors
from core.lora.foreign.layouts import Layout, rank_of
from core.lora.foreign.look import ANY_MODULE, Found, positive
from core.lora.foreign.strangers import refuse_path
from core.lora.foreign.torchtune import in_transformers_words, is_of_torchtune, rearranged
from core.lora.kinds.lora import KIND as LORA
from core.lora.peft.config import raw_config
from core.lora.peft.config_checks import CONFIG_NAME
from core.lora.peft.files import load_adapter
from core.lora.peft.targeting import stated_for, targeted_paths
from core.lora.peft.whole_files import require_all
from core.lora.scaling import alpha_of, scaling
from core.lora.targets import LayerShapes
from core.lora.wholes import WEIGHT, Wholes

_PREFIXES = (
    "base_model.model.",
    "model.",
    "transformer.",
    "language_model.",
    "text_model.",
    "lora_te_",
    "lora_unet_",
    "lora_",
)


@dataclass(frozen=True)
class BaseFacts:
    """What a few files need to know of a base beside its layers."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """The content of its config.json."""
    has: Callable[[str, Tensor], bool] = lambda name, tensor: False
    """Whether its tensor with this name is bit-equal to one that stands in the file."""


def fit(
    found: Found,
    shapes: LayerShapes,
    head: str | None,
    alpha: float | None = None,
    base: BaseFacts | None = None,
    wholes: Wholes | None = None,
) -> AdapterWeights:
    """The adapter for a base with these (in, out) `shapes` by module path, and what of it adapters can have
    of their own. alpha serves files that do not say theirs.

    Raises InvalidAdapter with the first thing that does not fit.
    """
    base = base or BaseFacts()
    if (
        found.kind is not LORA
        or found.is_loaded_whole
        or (found.is_pefts_own and set(found.tensors) <= set(shapes))
    ):
        _check_whole(found, load_file(found.weights_file) if found.content.whole else {}, base)
        return load_adapter(found.weights_file.parent, shapes, head, wholes)
    paths = _paths_in(found, shapes)
    _check_targeted(found, paths, shapes, head)
    if found.config is not None and not found.content.several:
        there = {f"{path}{WEIGHT}" for path in found.content.whole}
        require_all(there, found.config, wholes or Wholes(), set(paths.values()))
    loaded = load_file(found.weights_file)
    _check_whole(found, loaded, base)
    scales = _scales(found, paths, alpha, loaded)
    layers = {
        path: LayerFactors(*_factors(found, loaded, own, shapes[path], base), scales[own])
        for own, path in sorted(paths.items(), key=lambda pair: pair[1])
    }
    rank = max(factors.rank for factors in layers.values())
    config = found.config or {}
    return AdapterWeights(
        rank=rank,
        alpha=alpha_of(max(factors.scale for factors in layers.values()), rank, found.evidence.use_rslora),
        dropout=float(config.get("lora_dropout", 0.0)),
        layers=layers,
        base_fingerprint=found.evidence.fingerprint,
        base_name=found.evidence.claims,
        fan_in_fan_out=bool(config.get("fan_in_fan_out")),
        use_rslora=found.evidence.use_rslora,
    )


def _factors(
    found: Found, loaded: Mapping[str, Tensor], own: str, shape: tuple[int, int], base: BaseFacts
) -> tuple[Tensor, Tensor]:
    """A [r, in] and B [out, r] of one layer in float32, by the path that the file gives."""
    A, B = (loaded[found.tensors[own][factor].name].float() for factor in "AB")
    if found.layout.transposed:
        A, B = A.T.contiguous(), B.T.contiguous()
    if (A.shape[1], B.shape[0]) != shape:
        raise InvalidAdapter(
            f"{own} has the shape {A.shape[1]} → {B.shape[0]}; in this base it is {shape[0]} → {shape[1]}."
        )
    if not (torch.isfinite(A).all() and torch.isfinite(B).all()):
        raise InvalidAdapter(f"The factors of {own} hold NaN or infinite numbers.")
    if found.layout.name == "torchtune" and is_of_torchtune(own):
        B = rearranged(own, B, base.config)
    return A, B


def _paths_in(found: Found, shapes: LayerShapes) -> dict[str, str]:
    """From the file's paths to the base's.

    Raises InvalidAdapter for one that the base has not, or has more than once.
    """
    by_end: dict[str, list[str]] = {}
    for path in shapes:
        for name in _ends(path, found.layout):
            by_end.setdefault(name, []).append(path)
    paths = {}
    for own in found.tensors:
        wanted = in_transformers_words(own) if found.layout.name == "torchtune" else own
        names = _stripped(wanted, found.layout)
        candidates = next((by_end[name] for name in names if name in by_end), [])
        if len(candidates) != 1:
            refuse_path(own, shapes, ambiguous=len(candidates))
        paths[own] = candidates[0]
    if len(set(paths.values())) != len(paths):
        raise InvalidAdapter("Two of the file's layers would be the same layer of the base.")
    return paths


def _ends(path: str, layout: Layout) -> list[str]:
    """The names by which a file may call a layer: its path with or without the outermost modules."""
    parts = path.split(".")
    ends = [".".join(parts[at:]) for at in range(min(2, len(parts) - 1) + 1)]
    return [_written(one, layout) for one in ends]


def _written(path: str, layout: Layout) -> str:
    """A path as a layout writes it."""
    return path.replace(".", "_") if layout.name == "kohya" else path


def _stripped(own: str, layout: Layout) -> list[str]:
    """The path, then what is left of it without one prefix after the other."""
    found, prefixes = [own], [_written(one, layout) for one in _PREFIXES]
    while shorter := [own.removeprefix(prefix) for prefix in prefixes if own.startswith(prefix)]:
        own = min(shorter, key=len)
        found.append(own)
    return found


def _check_targeted(found: Found, paths: Mapping[str, str], shapes: LayerShapes, head: str | None) -> None:
    """The file must hold what PEFT's configuration targets, if there is one that says it of these names.

    One configuration beside several adapters need not be right for each, as to what is missing.
    """
    config = found.config
    if config is None or config["target_modules"] == ANY_MODULE or not found.layout.name.startswith("PEFT"):
        return
    for own, path in paths.items():
        if not targeted_paths(config, [own], None) and not targeted_paths(config, [path], head):
            raise InvalidAdapter(f"The file holds factors for {own}, which target_modules does not name.")
    missing = sorted(set(targeted_paths(config, list(shapes), head)) - set(paths.values()))
    if missing and not found.content.several:
        raise InvalidAdapter(
            f"The adapter targets {missing[0]} in this base but holds no factors for it ({len(missing)} "
            "such layers); it is incomplete or for a model with fewer layers."
        )


def _check_whole(found: Found, loaded: Mapping[str, Tensor], base: BaseFacts) -> None:
    """Weights of the base's own modules may stand in the file only as the base has them."""
    for path, entry in found.content.whole.items():
        if not base.has(f"{path}.weight", loaded[entry.name]):
            raise InvalidAdapter(
                f"It carries the whole weight of {path[:120]} ({entry.name[:120]}), which is not the one "
                "of this base: that module was trained or resized too, and no modules_to_save in "
                "adapter_config.json says so. Merge it into its base with PEFT, and add the result as a base."
            )


def _scales(
    found: Found, paths: Mapping[str, str], alpha: float | None, loaded: Mapping[str, Tensor]
) -> dict[str, float]:
    """The scale of each layer by the path that the file gives: by its own alpha, or by the configuration.

    Raises InvalidAdapter if nothing says one.
    """
    scales = {own: _by_alpha(found, loaded, own) for own in found.content.alphas}
    missing = [own for own in found.tensors if own not in scales]
    if found.config is not None:
        return scales | {own: _by_config(found, own, paths[own]) for own in missing}
    if (scale := _mlx_scale(found)) is not None:
        return scales | dict.fromkeys(missing, scale)
    stated = found.evidence.alpha if alpha is None else positive(alpha, "alpha")
    if stated is None and missing:
        raise InvalidAdapter(
            "The files do not say alpha, without which the scale α/r is unknown; give it with --alpha."
        )
    return scales | {own: scaling(stated or 1.0, _rank(found, own)) for own in missing}


def _by_config(found: Found, own: str, path: str) -> float:
    """What PEFT's configuration says of a layer, by the path that it had in training or has in the base."""
    assert found.config is not None
    config, rank = found.config, _rank(found, own)
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    stated = stated_for(ranks, own, stated_for(ranks, path, config["r"]))
    if stated != rank:
        raise InvalidAdapter(f"{own[:120]} has rank {rank} in the file, and {stated} by {CONFIG_NAME}.")
    alpha = float(stated_for(alphas, own, stated_for(alphas, path, config["lora_alpha"])))
    return scaling(alpha, rank, found.evidence.use_rslora)


def _mlx_scale(found: Found) -> float | None:
    """The scale itself, which MLX writes; None where it is not written."""
    path = found.weights_file.with_name(CONFIG_NAME)
    if found.layout.name != "MLX" or not path.is_file():
        return None
    given = raw_config(path).get("lora_parameters")
    scale = given.get("scale") if isinstance(given, dict) else None
    return None if scale is None else positive(scale, "scale")


def _rank(found: Found, own: str) -> int:
    return rank_of(found.tensors[own], found.layout)


def _by_alpha(found: Found, loaded: Mapping[str, Tensor], own: str) -> float:
    value = loaded[found.content.alphas[own]]
    if value.numel() != 1:
        raise InvalidAdapter(f"The alpha of {own} holds {value.numel()} numbers; expected one.")
    return scaling(positive(float(value), f"alpha of {own}"), _rank(found, own))
