"""A foreign adapter fitted to a base: each of its layers to one of the base's, in PEFT's way round."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors.torch import load_file
from torch import Tensor

from core.errors import InvalidAdapter
from core.lora.adapter import AdapterWeights, LayerFactors
from core.lora.foreign.layouts import LAYOUTS, Layout, rank_of
from core.lora.foreign.look import Found, positive, raw_config
from core.lora.peft.config_checks import CONFIG_NAME
from core.lora.peft.files import load_adapter
from core.lora.scaling import alpha_of, scaling
from core.lora.targets import LayerShapes

_PREFIXES = (
    "base_model.model.",
    "model.",
    "transformer.",
    "language_model.",
    "lora_te_",
    "lora_unet_",
    "lora_",
)


def fit(found: Found, shapes: LayerShapes, head: str | None, alpha: float | None = None) -> AdapterWeights:
    """The adapter for a base with these (in, out) `shapes` by module path. alpha serves files that do not say
    theirs.

    Raises InvalidAdapter with the first thing that does not fit.
    """
    if found.layout is LAYOUTS[0] and found.config is not None:
        return load_adapter(found.weights_file.parent, shapes, head)
    paths = _paths_in(found, shapes)
    scales = _scales(found, alpha)
    loaded = load_file(found.weights_file)
    layers = {}
    for own, path in sorted(paths.items(), key=lambda pair: pair[1]):
        A, B = _factors(found, loaded, own, *shapes[path])
        scale = scales[own] if own in scales else _by_alpha(found, loaded, own, A.shape[0])
        layers[path] = LayerFactors(A, B, scale)
    rank = max(factors.rank for factors in layers.values())
    return AdapterWeights(
        rank=rank,
        alpha=alpha_of(max(factors.scale for factors in layers.values()), rank, found.evidence.use_rslora),
        dropout=0.0,
        layers=layers,
        base_fingerprint=found.evidence.fingerprint,
        base_name=found.evidence.claims,
        use_rslora=found.evidence.use_rslora,
    )


def _factors(
    found: Found, loaded: Mapping[str, Tensor], own: str, n_in: int, n_out: int
) -> tuple[Tensor, Tensor]:
    """A [r, in] and B [out, r] of one layer in float32, by the path that the file gives."""
    A, B = (loaded[found.tensors[own][factor].name].float() for factor in "AB")
    if found.layout.transposed:
        A, B = A.T.contiguous(), B.T.contiguous()
    if A.shape[1] != n_in or B.shape[0] != n_out:
        raise InvalidAdapter(
            f"{own} has the shape {A.shape[1]} → {B.shape[0]}; in this base it is {n_in} → {n_out}."
        )
    if not (torch.isfinite(A).all() and torch.isfinite(B).all()):
        raise InvalidAdapter(f"The factors of {own} hold NaN or infinite numbers.")
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
        candidates = next((by_end[name] for name in _stripped(own) if name in by_end), [])
        if len(candidates) != 1:
            why = "has no layer" if not candidates else f"has {len(candidates)} layers that could be"
            raise InvalidAdapter(f"The base {why} {own[:120]}; the adapter is for another model.")
        paths[own] = candidates[0]
    if len(set(paths.values())) != len(paths):
        raise InvalidAdapter("Two of the file's layers would be the same layer of the base.")
    return paths


def _ends(path: str, layout: Layout) -> list[str]:
    """The names by which a file may call a layer: its path with or without the outermost modules."""
    parts = path.split(".")
    ends = [".".join(parts[at:]) for at in range(min(2, len(parts) - 1) + 1)]
    return [one.replace(".", "_") for one in ends] if layout.name == "kohya" else ends


def _stripped(own: str) -> list[str]:
    return [own, *[own.removeprefix(prefix) for prefix in _PREFIXES if own.startswith(prefix)]]


def _scales(found: Found, alpha: float | None) -> dict[str, float]:
    """The scale of each layer whose file does not give an alpha of its own.

    Raises InvalidAdapter if nothing says one.
    """
    path = found.weights_file.with_name(CONFIG_NAME)
    if found.layout.name == "MLX" and path.is_file():
        given = raw_config(path).get("lora_parameters")
        scale = given.get("scale") if isinstance(given, dict) else None
        if scale is not None:
            return dict.fromkeys(found.tensors, positive(scale, "scale"))
    stated = found.evidence.alpha if alpha is None else positive(alpha, "alpha")
    missing = set(found.tensors) - set(found.alphas)
    if stated is None and missing:
        raise InvalidAdapter(
            "The files do not say alpha, without which the scale α/r is unknown; give it with --alpha."
        )
    return {} if stated is None else {own: _scale_of(found, own, stated) for own in missing}


def _scale_of(found: Found, own: str, alpha: float) -> float:
    return scaling(alpha, rank_of(found.tensors[own], found.layout), found.evidence.use_rslora)


def _by_alpha(found: Found, loaded: Mapping[str, Tensor], own: str, rank: int) -> float:
    value = loaded[found.alphas[own]]
    if value.numel() != 1:
        raise InvalidAdapter(f"The alpha of {own} holds {value.numel()} numbers; expected one.")
    return scaling(positive(float(value), f"alpha of {own}"), rank)
