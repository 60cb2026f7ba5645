"""Adapters on disk, in PEFT's format: a folder with adapter_config.json and adapter_model.safetensors.

Reading is strict, because adapter files come from strangers: exactly these two files, the configuration
against a list of known keys and ranges, the tensors against the exact set the configuration and the base call
for, finite values. Nothing is allocated before the header was checked, and nothing named in a file is
imported.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from core.errors import InvalidAdapter, InvalidInput
from core.files.safetensors_file import SafetensorsHeader, TensorEntry, read_header, write_float32
from core.lora.adapter import AdapterWeights, LayerWeights
from core.lora.expert_shapes import ExpertShape
from core.lora.kinds import ADAPTER_KINDS, AdapterKind, largest
from core.lora.layout import corner
from core.lora.peft.config import kind_of, peft_config, read_config
from core.lora.peft.config_checks import CONFIG_NAME, MODULE_NAME
from core.lora.peft.embedding_files import copied_weights, embedding_in, embedding_shape
from core.lora.peft.expert_files import (
    as_computed,
    as_in_files,
    file_shapes,
    keys_of_experts,
    require_all,
    targeted_experts,
)
from core.lora.peft.own_head import DTYPES, LABELS_KEY, PREFIX, WEIGHTS_NAME, head_entries, labels_of
from core.lora.peft.targeting import targeted_paths
from core.lora.peft.whole_files import check_wholes, key_of, whole_entries
from core.lora.targets import LayerShapes
from core.lora.wholes import WEIGHT, Wholes

FINGERPRINT_KEY, TOKENIZER_KEY, TEMPLATE_KEY = "base_fingerprint", "tokenizer_hash", "template_hash"
_SHARED_PREFIX = "base_model."
_FINGERPRINT = re.compile(r"^[0-9a-f]{64}$")
_MAX_HEADER_BYTES = 4 * 1024 * 1024
_MAX_TENSORS = 10_000

Entries = dict[str, dict[str, TensorEntry]]
"""By module path, then by what the adapter's kind calls the tensor."""
Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]
"""Likewise."""


def save_adapter(
    folder: Path,
    adapter: AdapterWeights,
    recorded: Mapping[str, str] | None = None,
    modules: Collection[str] = (),
    experts: Collection[str] = (),
) -> None:
    """Write `adapter` into the existing folder, in the layout PEFT loads. float32 numbers, fingerprint in the
    header.

    recorded: what else the header should say, such as the tokenizer's hash. modules: the paths of its base's
    linear layers; where they are known, short names stand for the layers if they mean no others. experts:
    those of its fused parameters, likewise.
    """
    kind = ADAPTER_KINDS.get(adapter.kind)
    tensors: dict[str, torch.Tensor] = {}
    keys = keys_of_experts(adapter.experts)
    for path, layer in adapter.layers.items():
        own = as_in_files(layer.tensors) if path in keys else layer.tensors
        for name in kind.peft_names:
            tensor = own[name]
            key = _key(keys.get(path, path), name, kind, path == adapter.embedding)
            tensors[key] = max(tensors.get(key, tensor), tensor, key=torch.Tensor.numel)  # of a shared one
    tensors |= {key_of(name, adapter.layers): tensor for name, tensor in adapter.head.items()}
    tensors |= {f"{PREFIX}{path}": tensor for path, tensor in adapter.whole.items()}
    metadata = {"format": "pt", FINGERPRINT_KEY: adapter.base_fingerprint, **(recorded or {})}
    if adapter.labels is not None:
        metadata[LABELS_KEY] = adapter.labels.to_json()
    arrays = {key: tensor.contiguous().float().numpy() for key, tensor in tensors.items()}
    write_float32(folder / WEIGHTS_NAME, arrays, metadata)
    config = json.dumps(peft_config(adapter, modules, experts), indent=2, ensure_ascii=False)
    (folder / CONFIG_NAME).write_text(config + "\n", encoding="utf-8")


def save_checked(
    folder: Path,
    adapter: AdapterWeights,
    shapes: LayerShapes,
    head: str | None,
    recorded: Mapping[str, str] | None = None,
    wholes: Wholes | None = None,
) -> None:
    """save_adapter() for a base with these layers, read again: what is kept or leaves must be usable.

    Raises InvalidAdapter if it is not read back as it was.
    """
    save_adapter(folder, adapter, recorded, shapes, wholes.experts if wholes else ())
    if different := differing_layers(adapter, load_adapter(folder, shapes, head, wholes)):
        raise InvalidAdapter(
            f"{different[0]} is not read back as it was written ({len(different)} such layers), so nothing "
            "was kept. Please report this."
        )


def differing_layers(adapter: AdapterWeights, found: AdapterWeights) -> list[str]:
    """The paths of layers and of parts of a head that are not the same in both, up to the rounding of a
    stated alpha.
    """
    paths = sorted({*adapter.layers, *found.layers})
    layers = [path for path in paths if not _same(adapter.layers.get(path), found.layers.get(path))]
    one, other = ({**each.head, **each.whole} for each in (adapter, found))
    return [*layers, *(path for path in sorted({*one, *other}) if not _equal(one.get(path), other.get(path)))]


def _equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)


def _same(one: LayerWeights | None, other: LayerWeights | None) -> bool:
    if one is None or other is None:
        return False
    return math.isclose(one.scale, other.scale, rel_tol=1e-6) and one.equals(other)


def _key(path: str, name: str, kind: AdapterKind, is_embedding: bool) -> str:
    """How the file calls one tensor of the module at this path."""
    if is_embedding:
        return f"{PREFIX}{path}.{kind.embedding_names[name]}"
    return f"{_SHARED_PREFIX if name in kind.shared else f'{PREFIX}{path}.'}{kind.peft_names[name]}"


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


def read_adapter_header(path: Path) -> SafetensorsHeader:
    """The header of a file with an adapter's tensors, within the limits of one.

    Raises InvalidAdapter.
    """
    try:
        return read_header(path, max_bytes=_MAX_HEADER_BYTES, max_tensors=_MAX_TENSORS)
    except InvalidInput as error:
        raise InvalidAdapter(str(error)) from None


def sorted_entries(
    header: SafetensorsHeader, kind: AdapterKind, head: Collection[TensorEntry] = ()
) -> Entries:
    """The tensors of an adapter of this kind beside those of its head: each module has all that the kind has,
    and nothing else.

    Raises InvalidAdapter with the tensor at fault.
    """
    found: Entries = {}
    shared: dict[str, TensorEntry] = {}
    of_head = {entry.name for entry in head}
    copies = {entry.name for entry in copied_weights(header)}
    for entry in header.tensors:
        if entry.name in of_head or entry.name in copies:
            continue
        path, name = _module_and_name(entry.name, kind)
        if not name or entry.dtype not in DTYPES:
            raise InvalidAdapter(_no_factor(entry.name, kind))
        (found.setdefault(path, {}) if path else shared)[name] = entry
    for path, entries in found.items():
        entries.update(shared)
        if set(entries) != set(kind.peft_names):
            raise InvalidAdapter(
                f"{WEIGHTS_NAME}: the factors {' and '.join(kind.peft_names)} of {path[:120]} do not belong "
                "together."
            )
    if not found:
        raise InvalidAdapter(f"{WEIGHTS_NAME} holds no {kind.label} factors at all.")
    return found


def _no_factor(name: str, kind: AdapterKind) -> str:
    if not kind.embedding_names and ".lora_embedding_" in name:
        return (
            f"It adapts the input embedding ({name[:120]}), and {kind.label} can be on linear layers only "
            "here. Train it without the embedding among its target_modules."
        )
    return f"{WEIGHTS_NAME}: {name[:120]!r} is no {kind.label} factor this workbench knows."


def _module_and_name(key: str, kind: AdapterKind) -> tuple[str, str]:
    """The module path and the kind's own name of a tensor; a shared one has no path, a stranger neither."""
    for name, end in (*kind.peft_names.items(), *kind.embedding_names.items()):
        if name in kind.shared:
            if key == f"{_SHARED_PREFIX}{end}":
                return "", name
        elif key.startswith(PREFIX) and key.endswith(f".{end}"):
            path = key.removeprefix(PREFIX).removesuffix(f".{end}")
            return path, name if path else ""
    return "", ""


def recorded_fingerprint(header: SafetensorsHeader) -> str:
    """The fingerprint of the base that the file records; empty if it records none."""
    return recorded_hash(header, FINGERPRINT_KEY)


def recorded_hash(header: SafetensorsHeader, key: str) -> str:
    """A SHA-256 that the file records; empty if it records none."""
    recorded = header.metadata.get(key, "")
    return recorded if _FINGERPRINT.match(recorded) else ""


def load_adapter(
    folder: Path, shapes: LayerShapes, head: str | None = None, wholes: Wholes | None = None
) -> AdapterWeights:
    """Read an adapter made for a base whose linear layers have these (in, out) `shapes` by module path, and
    which lets adapters have these `wholes` of their own. What full fine-tuning replaces is held against the
    base where it is put into it.

    Raises InvalidAdapter if the files are malformed, target other layers than the base has, or hold NaN or
    infinity.
    """
    config_path, weights_path = check_folder(folder)
    config = read_config(config_path)
    kind, header = kind_of(config), read_adapter_header(weights_path)
    if kind.whole:
        return _replacing(weights_path, header, config, kind, head_entries(header, config))
    whole = whole_entries(header, config)
    own = {**head_entries(header, config), **whole}
    entries = sorted_entries(header, kind, own.values())
    embedding = embedding_in(header)
    experts = targeted_experts(config, wholes.experts if wholes else {})
    entries = _with_experts(entries, experts)
    if embedding:
        shapes = {**shapes, embedding: embedding_shape(embedding, wholes or Wholes())}
    _check_modules(set(entries) - {*experts}, config, list(shapes), head)
    shapes = {**shapes, **{path: wholes.experts[path] for path in experts if wholes}}
    check_wholes(whole, config, wholes or Wholes(), set(entries))
    sizes = {path: (*shapes[path], kind.stated_rank(config, path)) for path in entries}
    expected: dict[str, Mapping[str, tuple[int, ...]]] = {
        path: {one.name: one.shape for one in kind.tensors(*size) if one.name in kind.peft_names}
        for path, size in sizes.items()
    }
    expected |= {
        path: file_shapes(shape, sizes[path][2])
        for path, shape in shapes.items()
        if path in entries and isinstance(shape, ExpertShape)
    }
    for path, (_, _, rank) in sizes.items():
        _check_shapes(path, entries[path], expected, kind, rank)
    loaded = load_file(weights_path)
    tensors = {path: _finite(path, loaded[entry.name].float()) for path, entry in own.items()}
    if whole and wholes:
        tensors = _tied(tensors, wholes)
    return AdapterWeights(
        head=tensors,
        labels=labels_of(header, config),
        embedding=embedding,
        **kind.stated(config),
        kind=kind.name,
        layers={
            path: kind.layer(
                {
                    **_read(path, entries[path], expected[path], loaded, shapes[path]),
                    **kind.derived(*sizes[path]),
                },
                kind.stated_scale(config, path),
            )
            for path in sorted(entries)
        },
        base_fingerprint=recorded_fingerprint(header),
        base_name=str(config.get("base_model_name_or_path") or ""),
    )


def _replacing(
    weights_path: Path,
    header: SafetensorsHeader,
    config: Mapping[str, Any],
    kind: AdapterKind,
    head: Mapping[str, TensorEntry],
) -> AdapterWeights:
    """An adapter of whole parameters beside a classifier's head. Whether they are the base's is seen where
    they are put into it, or merged.
    """
    of_head = {entry.name for entry in head.values()}
    whole = {_parameter_path(entry): entry for entry in header.tensors if entry.name not in of_head}
    if not whole:
        raise InvalidAdapter(f"{WEIGHTS_NAME} holds no weights at all.")
    if not recorded_fingerprint(header):
        raise InvalidAdapter(
            f"{WEIGHTS_NAME} holds whole weights and does not record the base that they are of: they could "
            "stand in another's place unnoticed; export the merged model where they were trained."
        )
    loaded = load_file(weights_path)
    return AdapterWeights(
        **kind.stated(config),
        layers={},
        kind=kind.name,
        head={path: _finite(path, loaded[entry.name].float()) for path, entry in head.items()},
        whole={path: _finite(path, loaded[entry.name].float()) for path, entry in sorted(whole.items())},
        labels=labels_of(header, config),
        base_fingerprint=recorded_fingerprint(header),
        base_name=str(config.get("base_model_name_or_path") or ""),
    )


def _parameter_path(entry: TensorEntry) -> str:
    path = entry.name.removeprefix(PREFIX)
    if path == entry.name or not MODULE_NAME.match(path) or entry.dtype not in DTYPES:
        raise InvalidAdapter(f"{WEIGHTS_NAME}: {entry.name[:120]!r} is no weight of a model.")
    return path


def _tied(tensors: dict[str, torch.Tensor], wholes: Wholes) -> dict[str, torch.Tensor]:
    """The same with one tensor for an embedding and a head that the base ties.

    Raises InvalidAdapter where they have parted: no merged model could keep both.
    """
    names = [f"{path}{WEIGHT}" for path in (wholes.embedding, wholes.head)]
    found = [tensors.get(name) for name in names]
    if not wholes.tied or found == [None, None]:
        return tensors
    embedding, head = found
    if embedding is None or head is None or not torch.equal(embedding, head):
        raise InvalidAdapter(
            f"In this base the output head is the input embedding (tied), and the adapter has {names[0]} and "
            f"{names[1]} apart, or one of them alone: it was trained without ensure_weight_tying, and no "
            "merged model could keep both. Train it again with ensure_weight_tying, or here."
        )
    return wholes.with_tied({**tensors, names[0]: embedding})


def _finite(path: str, tensor: torch.Tensor) -> torch.Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise InvalidAdapter(f"{WEIGHTS_NAME}: {path} holds NaN or infinite numbers.")
    return tensor


def _read(
    path: str,
    entries: Mapping[str, TensorEntry],
    shapes: Mapping[str, tuple[int, ...]],
    loaded: Mapping[str, torch.Tensor],
    layer: tuple[int, int],
) -> dict[str, torch.Tensor]:
    """One module's tensors in float32, of experts with these in front; `layer` is its shape."""
    tensors = {name: corner(loaded[entries[name].name], shape).float() for name, shape in shapes.items()}
    if not all(bool(torch.isfinite(one).all()) for one in tensors.values()):
        raise InvalidAdapter(f"{WEIGHTS_NAME}: the factors of {path} hold NaN or infinite numbers.")
    return as_computed(tensors, layer.experts) if isinstance(layer, ExpertShape) else tensors


def _with_experts(entries: Entries, experts: Collection[str]) -> Entries:
    """The same by the paths of the fused parameters that the tensors belong to."""
    keys = keys_of_experts(experts)
    found = {path: one for path, one in entries.items() if path not in keys.values()}
    own = {path: entries[key] for path, key in keys.items() if key in entries}
    require_all(own, list(experts))
    return found | own


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
    targeted = set(targeted_paths(config, paths, head))
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


def _check_shapes(
    path: str, entries: Mapping[str, TensorEntry], expected: Shapes, kind: AdapterKind, rank: int
) -> None:
    """One module's tensors must be as the configuration and the base call for, shared ones as the largest."""
    for name, wanted in expected[path].items():
        if name in kind.shared:
            wanted = largest(shapes[name] for shapes in expected.values())
        found = entries[name].shape
        if found != wanted:
            raise InvalidAdapter(
                f"{name} of {path} is {list(found)}; with rank {rank} this base needs {list(wanted)}."
            )
