"""Whole parameters beside an adapter's factors, in its files: PEFT's modules_to_save, bias and lora_bias.

PEFT 0.21 writes a saved module under its own path, a bias of a targeted layer behind base_layer, and the bias
of B as one of lora_B. With ensure_weight_tying, embedding and head are one; it writes both. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from core.errors import InvalidAdapter
from core.files.safetensors_file import SafetensorsHeader, TensorEntry
from core.lora.config import ALL_BIASES, TARGETED_BIASES
from core.lora.module_names import ends_with, is_among
from core.lora.peft.config import CLASSIFIES
from core.lora.peft.config_checks import CONFIG_NAME
from core.lora.peft.own_head import DTYPES, PREFIX, WEIGHTS_NAME
from core.lora.wholes import BIAS, BIAS_ON_B, WEIGHT, Wholes, is_bias_of_base, module_of

_BASE_LAYER = ".base_layer.bias"


def whole_entries(header: SafetensorsHeader, config: Mapping[str, Any]) -> dict[str, TensorEntry]:
    """The tensors of whole parameters by their paths in the model, as a checked configuration speaks of them;
    none of an adapter that classifies.

    Raises InvalidAdapter for one that is in no usual format.
    """
    if config.get("task_type") == CLASSIFIES:
        return {}
    found = {}
    for entry in header.tensors:
        name = entry.name.removeprefix(PREFIX)
        if name.endswith(_BASE_LAYER):
            name = f"{name.removesuffix(_BASE_LAYER)}{BIAS}"
        if name != entry.name and _is_whole(name, config):
            if entry.dtype not in DTYPES or name in found:
                raise InvalidAdapter(f"{WEIGHTS_NAME}: {entry.name[:120]!r} is no whole parameter.")
            found[name] = entry
    return found


def _is_whole(name: str, config: Mapping[str, Any]) -> bool:
    if name.endswith(BIAS_ON_B):
        return bool(config.get("lora_bias"))
    if ".lora_" in name or ".miss_" in name:
        return False
    if module_of(name).endswith(tuple(config.get("modules_to_save") or ())):
        return True  # PEFT looks at the end of a path, so norm means each input_layernorm, too
    if name.endswith(BIAS):
        return bool(config.get("bias", "none") != "none")
    return bool(config.get("ensure_weight_tying")) and name.endswith(WEIGHT)


def check_wholes(
    found: Mapping[str, TensorEntry], config: Mapping[str, Any], wholes: Wholes, layers: Collection[str]
) -> None:
    """Whole parameters must be those of the base, in its shapes, and all that the configuration speaks of;
    `layers` have factors.

    Raises InvalidAdapter with what is too much, missing or misshapen.
    """
    if config.get("task_type") == CLASSIFIES:
        return
    outputs = {f"{path}{BIAS_ON_B}" for path in layers}
    for name, entry in found.items():
        if name in outputs:
            continue
        shape = _shape(name, wholes)
        if shape is None:
            raise InvalidAdapter(
                f"It carries {name[:120]} whole (modules_to_save or bias). Of this base only the input "
                "embedding, the output head and biases can be an adapter's own. Merge it into its base with "
                "PEFT and add the result as a base."
            )
        if shape != entry.shape:
            resized = name in (f"{wholes.embedding}{WEIGHT}", f"{wholes.head}{WEIGHT}")
            raise InvalidAdapter(
                f"{name[:120]} of the adapter is {list(entry.shape)}; in this base it is {list(shape)}."
                + (" It was trained with a resized vocabulary, or for another base." if resized else "")
            )
    require_all(found, config, wholes, layers)


def require_all(
    found: Collection[str], config: Mapping[str, Any], wholes: Wholes, layers: Collection[str]
) -> None:
    """Raise InvalidAdapter where the configuration speaks of a whole parameter that is not among those found,
    by name.
    """
    if config.get("task_type") == CLASSIFIES:
        return
    missing = [name for name in _spoken_of(config, wholes, layers) if name not in found]
    if missing:
        raise InvalidAdapter(
            f"{CONFIG_NAME} says that {missing[0]} was trained whole, but {WEIGHTS_NAME} does not hold it "
            f"({len(missing)} such parameters); it is incomplete or for another base."
        )


def _shape(name: str, wholes: Wholes) -> tuple[int, ...] | None:
    head = wholes.tied and name == f"{wholes.head}{WEIGHT}"
    shape = wholes.shapes.get(f"{wholes.embedding}{WEIGHT}" if head else name)
    return None if shape is None else tuple(shape)


def _spoken_of(config: Mapping[str, Any], wholes: Wholes, layers: Collection[str]) -> list[str]:
    """The parameters that a configuration says are there."""
    saved, bias = config.get("modules_to_save") or [], config.get("bias", "none")
    modules = [path for path in (wholes.embedding, wholes.head) if is_among(path, saved)]
    if unknown := next((one for one in saved if not any(ends_with(path, one) for path in modules)), None):
        raise InvalidAdapter(
            f"{CONFIG_NAME}: modules_to_save names {unknown[:80]}; of this base only "
            f"{wholes.embedding or 'no embedding'} and {wholes.head or 'no head'} can be saved whole."
        )
    names = [f"{path}{WEIGHT}" for path in modules]
    biases = [name for name in wholes.shapes if name.endswith(BIAS)]
    names += [name for name in biases if bias == ALL_BIASES or module_of(name) in modules]
    names += [name for name in biases if bias == TARGETED_BIASES and module_of(name) in layers]
    return names + [f"{path}{BIAS_ON_B}" for path in layers if config.get("lora_bias")]


def key_of(name: str, layers: Collection[str]) -> str:
    """How a file calls a whole parameter, beside factors for these layers."""
    if is_bias_of_base(name) and module_of(name) in layers:
        return f"{PREFIX}{module_of(name)}{_BASE_LAYER}"
    return f"{PREFIX}{name}"
