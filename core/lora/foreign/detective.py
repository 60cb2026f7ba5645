"""LoRA weights of unknown origin: which layout they are in, what they are, and which base model's layers they
fit.

Read are folders, zip files and single safetensors files, of these only the header until a base has been
found. The layouts differ in the names and in which way round the factors lie; PEFT's is the one that others
are turned into.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors.torch import load_file

from core.errors import InvalidAdapter, InvalidInput
from core.files.archive import safe_members
from core.files.publish import require_space
from core.files.safetensors_file import SafetensorsHeader, TensorEntry, read_header
from core.lora.adapter import AdapterWeights, LayerFactors
from core.lora.peft.files import (
    CONFIG_NAME,
    TEMPLATE_KEY,
    TOKENIZER_KEY,
    WEIGHTS_NAME,
    load_adapter,
    read_config,
    recorded_fingerprint,
    recorded_hash,
)
from core.lora.targets import LayerShapes, layer_number

_MOST_BYTES = 8 << 30
_MAX_HEADER_BYTES = 4 * 1024 * 1024
_MAX_TENSORS = 10_000
_WEIGHT_NAMES = (WEIGHTS_NAME, "adapters.safetensors")  # the second is MLX's
_DTYPES = ("F32", "F16", "BF16")
_PREFIXES = (
    "base_model.model.",
    "model.",
    "transformer.",
    "language_model.",
    "lora_te_",
    "lora_unet_",
    "lora_",
)


@dataclass(frozen=True)
class Layout:
    """How one tool writes LoRA factors."""

    name: str
    pattern: re.Pattern[str]
    """Groups: path, factor."""
    A: str
    """What the first factor is called."""
    transposed: bool = False
    """Whether A lies as [in, r] and B as [r, out]."""


LAYOUTS = (
    Layout("PEFT", re.compile(r"^base_model\.model\.(?P<path>.+)\.lora_(?P<factor>[AB])\.weight$"), "A"),
    Layout(
        "PEFT, one of several",
        re.compile(r"^base_model\.model\.(?P<path>.+)\.lora_(?P<factor>[AB])\.[^.]+\.weight$"),
        "A",
    ),
    Layout("PEFT without its prefix", re.compile(r"^(?P<path>.+)\.lora_(?P<factor>[AB])\.weight$"), "A"),
    Layout("loralib", re.compile(r"^(?P<path>.+)\.lora_(?P<factor>[AB])$"), "A"),
    Layout("MLX", re.compile(r"^(?P<path>.+)\.lora_(?P<factor>[ab])$"), "a", transposed=True),
    Layout("torchtune", re.compile(r"^(?P<path>.+)\.lora_(?P<factor>[ab])\.weight$"), "a"),
    Layout("kohya", re.compile(r"^(?P<path>.+)\.lora_(?P<factor>down|up)\.weight$"), "down"),
)
_ALPHA = re.compile(r"^(?P<path>.+)\.alpha$")


@dataclass(frozen=True)
class Evidence:
    """What the files say, without any base model."""

    layout: str
    ranks: tuple[int, ...]
    """Every rank that occurs."""
    alpha: float | None
    """None where the files do not say it."""
    use_rslora: bool
    modules: dict[str, int]
    """How many layers of each name."""
    layers: int
    """Decoder layers that are touched."""
    parameters: int
    claims: str
    """The base it says it was made for; empty if it does not say."""
    fingerprint: str
    """The base's fingerprint, if the file records it."""
    tokenizer_hash: str
    template_hash: str
    """Of the base as it was trained with it, if the file records them."""

    def sentence(self) -> str:
        """In words."""
        ranks = ", ".join(map(str, self.ranks))
        alpha = "no alpha stated" if self.alpha is None else f"alpha {self.alpha:g}"
        names = ", ".join(f"{name} × {count}" for name, count in self.modules.items())
        claims = f"says it was made for {self.claims}" if self.claims else "does not say what it was made for"
        kind = "rsLoRA" if self.use_rslora else "LoRA"
        return f"{kind} in {self.layout} layout, rank {ranks}, {alpha}, on {names}; {claims}."


@dataclass(frozen=True)
class Found:
    """Adapter files that were looked at, in a place where nobody changes them."""

    evidence: Evidence
    weights_file: Path
    config: dict[str, Any] | None
    """PEFT's adapter_config.json, checked; None if there is none."""
    tensors: dict[str, dict[str, TensorEntry]]
    """By the path that the file gives: the entries of A and B."""
    layout: Layout
    alphas: dict[str, str]
    """Names of the tensors that hold a layer's own alpha, by path."""


def take(origin: Path, staging: Path, name: str = "") -> Path:
    """Copy what belongs to an adapter from a folder, a zip or a safetensors file into the empty folder
    `staging`.

    What is looked at later is this copy, so nobody changes it in between. Raises InvalidAdapter, OutOfSpace.
    """
    name = name or origin.name
    if origin.is_symlink():
        raise InvalidAdapter(f"{origin} is a link, which is not followed; give the file itself.")
    if not origin.exists():
        raise InvalidAdapter(f"There is no file or folder {origin}.")
    if origin.is_dir():
        _take_folder(origin, staging)
    elif Path(name).suffix.lower() == ".zip":
        _take_zip(origin, staging, name)
    elif Path(name).suffix.lower() == ".safetensors":
        _copy(origin, staging / WEIGHTS_NAME)
        beside = origin.with_name(CONFIG_NAME)
        if beside.is_file() and not beside.is_symlink():
            _copy(beside, staging / CONFIG_NAME)
    else:
        raise InvalidAdapter(f"{name} is no adapter: give a folder, a .zip or a .safetensors file.")
    return staging


def _take_folder(origin: Path, staging: Path) -> None:
    weights = [
        origin / name for name in _WEIGHT_NAMES if (origin / name).exists() or (origin / name).is_symlink()
    ]
    if not weights:
        weights = sorted(path for path in origin.glob("*.safetensors"))
    if not weights and any(
        (origin / name).exists() for name in ("adapter_model.bin", "pytorch_lora_weights.bin")
    ):
        raise InvalidAdapter(
            f"{origin} holds a pickle adapter, which can run code and is never opened; save it as "
            f"{WEIGHTS_NAME}."
        )
    if len(weights) != 1:
        count = "no .safetensors file" if not weights else f"{len(weights)} .safetensors files"
        raise InvalidAdapter(f"{origin} holds {count}; an adapter is {CONFIG_NAME} and {WEIGHTS_NAME}.")
    for path, target in ((weights[0], WEIGHTS_NAME), (origin / CONFIG_NAME, CONFIG_NAME)):
        if path.is_symlink():
            raise InvalidAdapter(
                f"{path} is a link, which is not followed; copy the file itself into the folder."
            )
        if path.is_file():
            _copy(path, staging / target)


def _take_zip(origin: Path, staging: Path, name: str) -> None:
    try:
        with zipfile.ZipFile(origin) as archive:
            members = safe_members(archive, name, _MOST_BYTES, InvalidAdapter)
            weights = [one for one in members if _is_weights(one.filename)]
            named = [one for one in weights if PurePosixPath(one.filename).name in _WEIGHT_NAMES] or weights
            if len(named) != 1:
                raise InvalidAdapter(
                    f"{name} holds {len(named)} adapters' weights ({WEIGHTS_NAME}); expected one."
                )
            folder = PurePosixPath(named[0].filename).parent
            config = [one for one in members if PurePosixPath(one.filename) == folder / CONFIG_NAME]
            require_space(staging, sum(one.file_size for one in (*named, *config)))
            for member, target in ((named[0], WEIGHTS_NAME), *[(one, CONFIG_NAME) for one in config]):
                with archive.open(member) as packed, (staging / target).open("xb") as unpacked:
                    shutil.copyfileobj(
                        packed, unpacked, 1 << 20
                    )  # zipfile ends at the announced size and checks the CRC
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, zlib.error) as error:
        raise InvalidAdapter(f"{name} cannot be unpacked: {str(error)[:120]}.") from None


def _is_weights(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix == ".safetensors" and not any(
        part.startswith((".", "__MACOSX")) for part in path.parts
    )


def _copy(source: Path, target: Path) -> None:
    require_space(target.parent, source.stat().st_size)
    shutil.copyfile(source, target)


def look(folder: Path) -> Found:
    """Recognise what take() has brought into `folder`. Raises InvalidAdapter with what is wrong."""
    weights = folder / WEIGHTS_NAME
    try:
        header = read_header(weights, max_bytes=_MAX_HEADER_BYTES, max_tensors=_MAX_TENSORS)
    except InvalidInput as error:
        raise InvalidAdapter(str(error)) from None
    layout, tensors, alphas = _sorted_out(header)
    path = folder / CONFIG_NAME
    config, about = None, {}
    if path.is_file():
        about = _raw_config(path)
        config = read_config(path) if "peft_type" in about or layout.name.startswith("PEFT") else None
    ranks = {_rank(pair, layout) for pair in tensors.values()}
    alpha = _alpha(config, about, header)
    claims = (
        about.get("base_model_name_or_path")
        or about.get("model")
        or header.metadata.get("ss_base_model_version")
    )
    evidence = Evidence(
        layout=layout.name,
        ranks=tuple(sorted(ranks)),
        alpha=alpha,
        use_rslora=bool(config and config.get("use_rslora")),
        modules=dict(sorted(Counter(_module_name(path, layout) for path in tensors).items())),
        layers=len({layer_number(_dotted(path, layout)) for path in tensors} - {None}),
        parameters=sum(entry.count for pair in tensors.values() for entry in pair.values()),
        claims=str(claims or "")[:200],
        fingerprint=recorded_fingerprint(header),
        tokenizer_hash=recorded_hash(header, TOKENIZER_KEY),
        template_hash=recorded_hash(header, TEMPLATE_KEY),
    )
    return Found(evidence, weights, config, tensors, layout, alphas)


def _sorted_out(
    header: SafetensorsHeader,
) -> tuple[Layout, dict[str, dict[str, TensorEntry]], dict[str, str]]:
    """The layout that every tensor is in.

    Raises InvalidAdapter naming the first that is in none, or breaks the pairs.
    """
    names = [entry.name for entry in header.tensors]
    factors = [name for name in names if not _ALPHA.match(name)]
    if not factors:
        raise InvalidAdapter("The file holds no LoRA factors at all.")
    layout = next((one for one in LAYOUTS if all(one.pattern.match(name) for name in factors)), None)
    if layout is None:
        _refuse_strangers(factors)
    assert layout is not None
    tensors: dict[str, dict[str, TensorEntry]] = {}
    for entry in header.tensors:
        if (match := layout.pattern.match(entry.name)) is None:
            continue
        if len(entry.shape) != 2 or entry.dtype not in _DTYPES:
            raise InvalidAdapter(
                f"{entry.name[:120]!r} is {entry.dtype} {list(entry.shape)}; a LoRA factor is a matrix "
                "of floats."
            )
        tensors.setdefault(match["path"], {})["A" if match["factor"] == layout.A else "B"] = entry
    for path, pair in tensors.items():
        if set(pair) != {"A", "B"} or _rank(pair, layout) != pair["B"].shape[0 if layout.transposed else 1]:
            raise InvalidAdapter(f"The factors A and B of {path[:120]} do not belong together.")
    alphas = {match["path"]: name for name in names if (match := _ALPHA.match(name))}
    if stray := sorted(set(alphas) - set(tensors)):
        raise InvalidAdapter(f"There is an alpha for {stray[0][:120]}, which has no factors.")
    return layout, tensors, alphas


def _refuse_strangers(names: Sequence[str]) -> None:
    if magnitude := next(
        (name for name in names if "magnitude" in name or name.endswith("dora_scale")), None
    ):
        raise InvalidAdapter(f"It is a DoRA adapter ({magnitude[:120]}), which cannot be used yet.")
    stranger = next((name for name in names if not any(one.pattern.match(name) for one in LAYOUTS)), names[0])
    raise InvalidAdapter(
        f"{stranger[:120]!r} is no LoRA factor in any layout that is known here: "
        f"{', '.join(one.name for one in LAYOUTS)}."
    )


def _rank(pair: Mapping[str, TensorEntry], layout: Layout) -> int:
    return pair["A"].shape[1 if layout.transposed else 0] if "A" in pair else 0


def _dotted(path: str, layout: Layout) -> str:
    """kohya writes underscores between the parts of a path, and within them."""
    return re.sub(r"_(\d+)_", r".\1.", path) if layout.name == "kohya" else path


def _module_name(path: str, layout: Layout) -> str:
    """The last part of a path; where it cannot be told from the others, what stands behind the layer's
    number.
    """
    return _dotted(path, layout).rpartition(".")[2]


def _raw_config(path: Path) -> dict[str, Any]:
    try:
        about = (
            json.loads(path.read_text(encoding="utf-8-sig")) if path.stat().st_size <= 256 * 1024 else None
        )
    except (ValueError, RecursionError) as error:
        raise InvalidAdapter(f"{path.name} is not valid JSON: {str(error)[:100]}.") from None
    if not isinstance(about, dict):
        raise InvalidAdapter(f"{path.name} holds no JSON object of a sensible size.")
    return about


def _alpha(
    config: Mapping[str, Any] | None, about: Mapping[str, Any], header: SafetensorsHeader
) -> float | None:
    """From PEFT's configuration; MLX gives the scale itself; kohya writes it into the header."""
    if config is not None:
        return float(config["lora_alpha"])
    for key in ("lora_alpha", "ss_network_alpha", "alpha"):
        if key in header.metadata:
            return _positive(header.metadata[key], key)
    return None


def _positive(value: object, what: str) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not 0 < number <= 65536:
        raise InvalidAdapter(f"{what} is {str(value)[:40]!r}; expected a number above 0 and up to 65,536.")
    return number


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
        A, B = (loaded[found.tensors[own][factor].name].float() for factor in "AB")
        if found.layout.transposed:
            A, B = A.T.contiguous(), B.T.contiguous()
        n_in, n_out = shapes[path]
        if A.shape[1] != n_in or B.shape[0] != n_out:
            raise InvalidAdapter(
                f"{own} has the shape {A.shape[1]} → {B.shape[0]}; in this base it is {n_in} → {n_out}."
            )
        if not (torch.isfinite(A).all() and torch.isfinite(B).all()):
            raise InvalidAdapter(f"The factors of {own} hold NaN or infinite numbers.")
        scale = scales[own] if own in scales else _by_alpha(found, loaded, own, A.shape[0])
        layers[path] = LayerFactors(A, B, scale)
    rank = max(factors.rank for factors in layers.values())
    numbers = sorted({number for path in layers if (number := layer_number(path)) is not None})
    everywhere = len(numbers) == len({layer_number(path) for path in shapes} - {None})
    root = math.sqrt(rank) if found.evidence.use_rslora else rank
    return AdapterWeights(
        rank=rank,
        alpha=max(factors.scale for factors in layers.values()) * root,
        dropout=0.0,
        layers=layers,
        base_fingerprint=found.evidence.fingerprint,
        base_name=found.evidence.claims,
        use_rslora=found.evidence.use_rslora,
        layers_to_transform=None if everywhere else tuple(numbers),
    )


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
        given = _raw_config(path).get("lora_parameters")
        scale = given.get("scale") if isinstance(given, dict) else None
        if scale is not None:
            return dict.fromkeys(found.tensors, _positive(scale, "scale"))
    stated = found.evidence.alpha if alpha is None else _positive(alpha, "alpha")
    missing = set(found.tensors) - set(found.alphas)
    if stated is None and missing:
        raise InvalidAdapter(
            "The files do not say alpha, without which the scale α/r is unknown; give it with --alpha."
        )
    return {} if stated is None else {own: _scale_of(found, own, stated) for own in missing}


def _scale_of(found: Found, own: str, alpha: float) -> float:
    rank = _rank(found.tensors[own], found.layout)
    return alpha / (math.sqrt(rank) if found.evidence.use_rslora else rank)


def _by_alpha(found: Found, loaded: Mapping[str, torch.Tensor], own: str, rank: int) -> float:
    value = loaded[found.alphas[own]]
    if value.numel() != 1:
        raise InvalidAdapter(f"The alpha of {own} holds {value.numel()} numbers; expected one.")
    return _positive(float(value), f"alpha of {own}") / rank
