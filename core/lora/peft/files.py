"""Adapters on disk, in PEFT's format: adapter_config.json and adapter_model.safetensors.

Reading is strict, because adapter files come from strangers: exactly these two files, the configuration
against a list of known keys and ranges, the tensors against the exact set the configuration and the base call
for, finite values. Nothing is allocated before the header was checked, and nothing named in a file is
imported.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from core.errors import InvalidAdapter, InvalidInput
from core.files.safetensors_file import SafetensorsHeader, read_header, write_float32
from core.lora.adapter import AdapterWeights, LayerFactors
from core.lora.targets import LayerShapes, ends_with, layer_number

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
FINGERPRINT_KEY, TOKENIZER_KEY, TEMPLATE_KEY = "base_fingerprint", "tokenizer_hash", "template_hash"
_PREFIX = "base_model.model."
_TENSOR = re.compile(r"^base_model\.model\.(?P<path>.+)\.lora_(?P<factor>[AB])\.weight$")
_FINGERPRINT = re.compile(r"^[0-9a-f]{64}$")
_MODULE_NAME = re.compile(r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$")
_MAX_CONFIG_BYTES = 256 * 1024
_MAX_HEADER_BYTES = 4 * 1024 * 1024
_MAX_TENSORS = 10_000
_MAX_TEXT = 1000
_DTYPES = ("F32", "F16", "BF16")

# Keys with a meaning we honour, or that describe and change nothing.
_UNDERSTOOD = {
    "peft_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "fan_in_fan_out",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "bias",
    "init_lora_weights",
    "exclude_modules",
}
_DESCRIPTIVE = {
    "base_model_name_or_path",
    "revision",
    "task_type",
    "inference_mode",
    "auto_mapping",
    "peft_version",
    "megatron_core",
    "layers_pattern",
    "qalora_group_size",
}
_REFUSED = {
    "use_dora": "DoRA adapters cannot be used yet",
    "modules_to_save": "adapters that carry whole modules (modules_to_save) cannot be used",
    "trainable_token_indices": "adapters with trained tokens cannot be used",
    "lora_bias": "adapters with a bias on B cannot be used",
    "target_parameters": "adapters on bare parameters cannot be used",
}


def save_adapter(folder: Path, adapter: AdapterWeights, recorded: Mapping[str, str] | None = None) -> None:
    """Write `adapter` into the existing folder, in the layout PEFT loads. float32 factors, fingerprint in the
    header.

    recorded: what else the header should say, such as the tokenizer's hash.
    """
    tensors = {}
    for path, factors in adapter.layers.items():
        tensors[f"{_PREFIX}{path}.lora_A.weight"] = factors.A.contiguous()
        tensors[f"{_PREFIX}{path}.lora_B.weight"] = factors.B.contiguous()
    metadata = {"format": "pt", FINGERPRINT_KEY: adapter.base_fingerprint, **(recorded or {})}
    write_float32(
        folder / WEIGHTS_NAME, {name: one.float().numpy() for name, one in tensors.items()}, metadata
    )
    config = peft_config(adapter)
    (folder / CONFIG_NAME).write_text(
        json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def peft_config(adapter: AdapterWeights) -> dict[str, Any]:
    """The content of adapter_config.json."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base_name,
        "revision": None,
        "inference_mode": True,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": adapter.target_names,
        "bias": "none",
        "use_rslora": adapter.use_rslora,
        "use_dora": False,
        "fan_in_fan_out": adapter.fan_in_fan_out,
        "rank_pattern": _pattern(adapter, {p: f.rank for p, f in adapter.layers.items()}, adapter.rank),
        "alpha_pattern": _pattern(
            adapter, {p: _alpha(adapter, f) for p, f in adapter.layers.items()}, adapter.alpha
        ),
        "layers_to_transform": None
        if adapter.layers_to_transform is None
        else list(adapter.layers_to_transform),
        "modules_to_save": None,
        "init_lora_weights": True,
    }


def _alpha(adapter: AdapterWeights, factors: LayerFactors) -> float:
    divisor = math.sqrt(factors.rank) if adapter.use_rslora else factors.rank
    return float(f"{factors.scale * divisor:.9g}")  # the scale was rounded to float32


def _pattern(adapter: AdapterWeights, values: dict[str, Any], default: Any) -> dict[str, Any]:
    return {path: value for path, value in values.items() if not math.isclose(value, default, rel_tol=1e-6)}


def check_folder(folder: Path) -> tuple[Path, Path]:
    """The two files of an adapter folder.

    Raises InvalidAdapter if one is missing, a link, or pickle is all there is.
    """
    if not folder.is_dir():
        raise InvalidAdapter(
            f"{folder} is not a folder; an adapter is a folder with {CONFIG_NAME} and {WEIGHTS_NAME}."
        )
    config, weights = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    if not weights.is_file() and (folder / "adapter_model.bin").exists():
        raise InvalidAdapter(
            f"{folder} holds a pickle adapter (adapter_model.bin), which can run code and is never opened; "
            f"save it again as {WEIGHTS_NAME}."
        )
    for path in (config, weights):
        if path.is_symlink():
            raise InvalidAdapter(
                f"{path} is a link, which is not followed; copy the file itself into the folder."
            )
        if not path.is_file():
            raise InvalidAdapter(
                f"{folder} has no {path.name}; an adapter needs {CONFIG_NAME} and {WEIGHTS_NAME}."
            )
    return config, weights


def read_config(path: Path) -> dict[str, Any]:
    """Parse adapter_config.json against the known keys and ranges.

    Raises InvalidAdapter naming the key at fault.
    """
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise InvalidAdapter(
            f"{path.name} is {path.stat().st_size:,} bytes long; at most {_MAX_CONFIG_BYTES:,} are accepted."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InvalidAdapter(f"{path.name} is not valid JSON: {error}.") from None
    if not isinstance(config, dict):
        raise InvalidAdapter(f"{path.name} holds no JSON object.")
    if config.get("peft_type") != "LORA":
        raise InvalidAdapter(
            f"{path.name} describes a {config.get('peft_type')!r} adapter; only LORA can be used."
        )
    for key, value in config.items():
        _check_key(key, value)
    _check_values(config)
    return config


def _check_key(key: str, value: object) -> None:
    if key in _UNDERSTOOD or key in _DESCRIPTIVE or not value:
        return
    why = _REFUSED.get(
        key, f"the setting {key!r} is not known here, so its effect would be lost without a word"
    )
    raise InvalidAdapter(f"{CONFIG_NAME}: {why}.")


def _check_values(config: Mapping[str, Any]) -> None:
    for key, low, high in (("r", 1, 1024), ("lora_alpha", 1e-3, 65536), ("lora_dropout", 0, 0.95)):
        if key not in config and key != "lora_dropout":
            raise InvalidAdapter(f"{CONFIG_NAME} does not say {key}.")
        value = config.get(key, low)
        whole = "a whole number" if key == "r" else "a number"
        if not _is_number(value) or (key == "r" and not isinstance(value, int)) or not low <= value <= high:
            raise InvalidAdapter(
                f"{CONFIG_NAME}: {key} is {str(value)[:40]}; expected {whole} from {low} to {high}."
            )
    for key, low, high in (("rank_pattern", 1, 1024), ("alpha_pattern", 1e-3, 65536)):
        pattern = config.get(key) or {}
        sound = isinstance(pattern, dict) and all(
            _is_number(value) and low <= value <= high for value in pattern.values()
        )
        if not sound or not all(_MODULE_NAME.match(name) for name in pattern):
            raise InvalidAdapter(
                f"{CONFIG_NAME}: {key} must map plain module names (no regular expressions) to numbers "
                f"from {low} to {high}."
            )
    if config.get("bias", "none") != "none":
        raise InvalidAdapter(
            f"{CONFIG_NAME}: bias is {config['bias']!r}; only adapters without biases can be used."
        )
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(("pissa", "olora", "corda", "loftq")):
        raise InvalidAdapter(
            f"{CONFIG_NAME}: it was trained with {start}, which changes the base; convert it to plain "
            "LoRA first."
        )
    for key in ("fan_in_fan_out", "use_rslora"):
        if not isinstance(config.get(key, False), bool):
            raise InvalidAdapter(f"{CONFIG_NAME}: {key} must be true or false.")
    chosen = config.get("layers_to_transform")
    numbers = chosen if isinstance(chosen, list) else [0 if chosen is None else chosen]
    if not all(type(number) is int and 0 <= number < 10_000 for number in numbers):
        raise InvalidAdapter(f"{CONFIG_NAME}: layers_to_transform must be layer numbers.")
    _check_descriptions(config)
    _check_targets(config.get("target_modules"))
    excluded = config.get("exclude_modules") or []
    if not isinstance(excluded, list) or not all(isinstance(one, str) for one in excluded):
        raise InvalidAdapter(f"{CONFIG_NAME}: exclude_modules must be a list of module names.")


def _check_descriptions(config: Mapping[str, Any]) -> None:
    """Keys that change nothing still come from a stranger, and are shown or written again."""
    for key in ("base_model_name_or_path", "revision", "task_type", "peft_version"):
        value = config.get(key)
        if value is not None and not (isinstance(value, str) and len(value) <= _MAX_TEXT):
            raise InvalidAdapter(f"{CONFIG_NAME}: {key} must be a text of at most {_MAX_TEXT:,} characters.")
    if not isinstance(config.get("inference_mode", True), bool):
        raise InvalidAdapter(f"{CONFIG_NAME}: inference_mode must be true or false.")
    if config.get("layers_pattern"):
        raise InvalidAdapter(
            f"{CONFIG_NAME}: layers_pattern is not known here; save the adapter with "
            "layers_to_transform alone."
        )
    if config.get("megatron_core") not in (None, "megatron.core"):
        raise InvalidAdapter(
            f"{CONFIG_NAME}: megatron_core names {str(config['megatron_core'])[:40]!r}; adapters of "
            "Megatron are not used."
        )
    group = config.get("qalora_group_size", 16)
    if type(group) is not int or not 1 <= group <= 65536:
        raise InvalidAdapter(
            f"{CONFIG_NAME}: qalora_group_size is {str(group)[:40]!r}; expected a whole number from 1 "
            "to 65,536."
        )
    mapping = config.get("auto_mapping")
    if mapping is not None and not _is_auto_mapping(mapping):
        raise InvalidAdapter(
            f"{CONFIG_NAME}: auto_mapping names a class outside of transformers, which is never loaded."
        )


def _is_auto_mapping(mapping: object) -> bool:
    """As PEFT writes it: a class of transformers and its module."""
    if not isinstance(mapping, dict) or set(mapping) != {"base_model_class", "parent_library"}:
        return False
    return all(isinstance(one, str) and _MODULE_NAME.match(one) for one in mapping.values()) and (
        str(mapping["parent_library"]).split(".")[0] == "transformers"
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_targets(targets: object) -> None:
    listed = (
        isinstance(targets, list)
        and targets
        and all(isinstance(one, str) and len(one) < 512 for one in targets)
    )
    if not listed and not (isinstance(targets, str) and targets == "all-linear"):
        raise InvalidAdapter(f"{CONFIG_NAME}: target_modules must be a list of module names or all-linear.")


def read_weights_header(path: Path) -> SafetensorsHeader:
    """The header of adapter_model.safetensors, checked: names, dtypes, A and B in pairs of one rank.

    Raises InvalidAdapter with the tensor at fault.
    """
    try:
        header = read_header(path, max_bytes=_MAX_HEADER_BYTES, max_tensors=_MAX_TENSORS)
    except InvalidInput as error:
        raise InvalidAdapter(str(error)) from None
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for entry in header.tensors:
        match = _TENSOR.match(entry.name)
        if match is None or len(entry.shape) != 2 or entry.dtype not in _DTYPES:
            raise InvalidAdapter(f"{path.name}: {entry.name[:120]!r} is no LoRA factor this workbench knows.")
        shapes.setdefault(match["path"], {})[match["factor"]] = entry.shape
    for module, pair in shapes.items():
        if set(pair) != {"A", "B"} or pair["A"][0] != pair["B"][1]:
            raise InvalidAdapter(
                f"{path.name}: the factors A and B of {module[:120]} do not belong together."
            )
    if not shapes:
        raise InvalidAdapter(f"{path.name} holds no LoRA factors at all.")
    return header


def recorded_fingerprint(header: SafetensorsHeader) -> str:
    """The fingerprint of the base that the file records; empty if it records none."""
    return recorded_hash(header, FINGERPRINT_KEY)


def recorded_hash(header: SafetensorsHeader, key: str) -> str:
    """A SHA-256 that the file records; empty if it records none."""
    recorded = header.metadata.get(key, "")
    return recorded if _FINGERPRINT.match(recorded) else ""


def load_adapter(folder: Path, shapes: LayerShapes, head: str | None = None) -> AdapterWeights:
    """Read an adapter made for a base whose linear layers have these (in, out) `shapes` by module path.

    Raises InvalidAdapter if the files are malformed, target other layers than the base has, or hold NaN or
    infinity.
    """
    config_path, weights_path = check_folder(folder)
    config = read_config(config_path)
    header = read_weights_header(weights_path)
    found = {match["path"] for entry in header.tensors if (match := _TENSOR.match(entry.name))}
    _check_modules(found, config, list(shapes), head)
    for entry in header.tensors:
        _check_shape(entry.name, entry.shape, shapes, config)
    tensors = load_file(weights_path)
    layers = {}
    for path in sorted(found):
        A, B = tensors[f"{_PREFIX}{path}.lora_A.weight"], tensors[f"{_PREFIX}{path}.lora_B.weight"]
        if not (torch.isfinite(A).all() and torch.isfinite(B).all()):
            raise InvalidAdapter(f"{weights_path.name}: the factors of {path} hold NaN or infinite numbers.")
        layers[path] = LayerFactors(A.float(), B.float(), _scale(config, path, A.shape[0]))
    return AdapterWeights(
        rank=config["r"],
        alpha=float(config["lora_alpha"]),
        dropout=float(config.get("lora_dropout", 0.0)),
        layers=layers,
        base_fingerprint=recorded_fingerprint(header),
        base_name=str(config.get("base_model_name_or_path") or ""),
        fan_in_fan_out=config.get("fan_in_fan_out", False),
        use_rslora=config.get("use_rslora", False),
        layers_to_transform=_chosen_layers(config),
    )


def _check_modules(
    found: set[str], config: Mapping[str, Any], paths: Sequence[str], head: str | None
) -> None:
    """The file must hold exactly the modules that the configuration targets in this base."""
    unknown = sorted(found - set(paths))
    if unknown:
        raise InvalidAdapter(
            f"The base has no layer {unknown[0]} ({len(unknown)} such layers); the adapter is for "
            "another model."
        )
    targeted = set(_targeted(config, paths, head))
    untargeted = sorted(found - targeted)
    if untargeted:
        raise InvalidAdapter(
            f"The file holds factors for {untargeted[0]} ({len(untargeted)} such layers), which "
            "target_modules does not name."
        )
    missing = sorted(targeted - found)
    if missing:
        raise InvalidAdapter(
            f"The adapter targets {missing[0]} in this base but holds no factors for it ({len(missing)} "
            "such layers); "
            "it is incomplete or for a model with fewer layers."
        )


def _targeted(config: Mapping[str, Any], paths: Sequence[str], head: str | None) -> list[str]:
    names, layers = config["target_modules"], _chosen_layers(config)
    excluded = config.get("exclude_modules") or []
    paths = [path for path in paths if not any(ends_with(path, name) for name in excluded)]
    if names == "all-linear":
        chosen = [path for path in paths if path != head]
    else:
        chosen = [path for path in paths if any(ends_with(path, name) for name in names)]
    if layers is None:
        return chosen
    return [path for path in chosen if layer_number(path) in layers]


def _chosen_layers(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    layers = config.get("layers_to_transform")
    return layers if layers is None else tuple([layers] if isinstance(layers, int) else layers)


def _check_shape(name: str, shape: tuple[int, ...], shapes: LayerShapes, config: Mapping[str, Any]) -> None:
    match = _TENSOR.match(name)
    assert match is not None  # read_weights_header checked every name
    path, factor = match["path"], match["factor"]
    in_features, out_features = shapes[path]
    rank = int(_by_pattern(config.get("rank_pattern"), path, config["r"]))
    expected = (rank, in_features) if factor == "A" else (out_features, rank)
    if shape != expected:
        raise InvalidAdapter(
            f"{factor} of {path} is {list(shape)}; with rank {rank} this base needs {list(expected)}."
        )


def _by_pattern(pattern: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """PEFT's rule: a key applies to every path that ends with it."""
    ends = (value for key, value in (pattern or {}).items() if ends_with(path, key))
    return next(ends, default)


def _scale(config: Mapping[str, Any], path: str, rank: int) -> float:
    """α/r, or α/√r for rsLoRA (arXiv 2312.03732)."""
    alpha = float(_by_pattern(config.get("alpha_pattern"), path, config["lora_alpha"]))
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
