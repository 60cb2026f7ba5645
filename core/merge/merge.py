"""Merging an adapter into its base: W' = W + (α/r)·B·A, as a pure function from files to files. Where the
adapter's kind gives each row a length, such as DoRA, the rows of that sum are brought to it.

Untargeted tensors are copied byte for byte; targeted ones are added in float32 and cast once. Pieces of a few
MB are read, computed and written at the same time, so memory stays bounded whatever the model, and the base
is only read.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from core.base_model.files import INDEX_NAME, weight_files
from core.base_model.stored_names import model_names
from core.errors import InvalidAdapter
from core.events import Progress
from core.files.publish import require_space
from core.files.safetensors_file import DTYPE_BYTES, TensorEntry, build_header, read_header
from core.lora.adapter import AdapterWeights, LayerFactors
from core.lora.low_rank import inner_product
from core.lora.wholes import WEIGHT
from core.merge.expert_tensors import expert_tensors
from core.merge.held import Held
from core.merge.stream import PIECE_BYTES, in_order, read_range
from core.merge.whole_tensors import TORCH_DTYPES, name_in, replaced_tensors, tensor_name, whole_tensors
from core.reporting import Report

_TINY = torch.finfo(torch.float32).tiny  # a row of zeros stays one
_CACHED = 1 << 18  # numbers that are worked on at a time
_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True)
class MergeReport:
    """What a merge wrote."""

    merged_tensors: int
    copied_tensors: int
    bytes_written: int
    rounding_loss: float
    """‖stored − (W + ΔW)‖ / ‖ΔW‖ over all targeted layers: the share of the adapter that the cast rounds
    away; 0 in float32.
    """
    worst_rounding_loss: float
    """The same of the layer that loses most."""
    base_difference: float = 0.0
    """‖Q − W‖ / ‖W‖ over the tensors of which not W was added to but Q, what a quantised base holds of it."""


@dataclass(frozen=True)
class Source:
    """A tensor of the base: where it lies, and what is added to it."""

    path: Path
    entry: TensorEntry
    factors: LayerFactors | None
    """The adapter's part of this layer; None where it changes nothing."""
    module: str | None
    """The module path of a layer that the adapter changes."""
    transposed: bool
    """Whether W is stored as [in, out] (GPT-2)."""
    lengths: Tensor | None = None
    """That the rows of W + ΔW are brought to, [out]; None where they stay as they come."""
    whole: Tensor | None = None
    """What the adapter has of its own in the place of the base's numbers; see core/lora/wholes.py."""
    held: Held | None = None
    """How the base holds it, where ΔW is added to its quantised weight; None for the file's own."""
    renamed: str = ""
    """How the merged files call it; empty if as the base's do."""

    @property
    def name(self) -> str:
        """How the merged files call it."""
        return self.renamed or self.entry.name

    @property
    def is_changed(self) -> bool:
        """Whether it is written as something else than it is."""
        return self.factors is not None or self.whole is not None or self.held is not None

    @functools.cached_property
    def touched(self) -> Tensor | None:
        """Which rows of W have a part in ΔW, [out] bool; None for all."""
        if self.factors is None:
            return None
        touched = self.factors.B.ne(0).any(-1)
        return None if bool(touched.all()) else touched

    def at(self, row: int) -> tuple[Source, int]:
        """This source where it is a matrix, and the number of a row there; of experts in one tensor [E, …, …]
        that of the expert whose matrix the row of the tensor stands in, and the row's number in it.
        """
        if self.factors is None or not self.factors.of_experts:
            return self, row
        number, inside = divmod(row, self.entry.shape[1])
        return replace(self, factors=self.factors.of_expert(number)), inside

    @functools.cached_property
    def column_ratios(self) -> Tensor | None:
        """What the columns of a transposed W + ΔW are multiplied by, [out]; None where nothing is."""
        if self.lengths is None or not self.transposed:
            return None
        return self.lengths.float() / torch.linalg.vector_norm(_sum(self), dim=0).clamp(min=_TINY)


@dataclass(frozen=True)
class _Piece:
    """Some rows of a tensor, or of an untouched one some bytes."""

    source: Source
    start: int
    end: int
    dtype: str


@dataclass(frozen=True)
class _Made:
    source: Source
    data: bytearray
    error: float
    """Sum of the squared rounding errors."""
    energy: float
    """Sum of the squared changes, where the rows were brought to lengths; else 0, ΔW is known."""
    moved: tuple[float, float] = (0.0, 0.0)
    """‖Q − W‖² and ‖W‖², where a quantised weight was added to."""


def sources(
    base_folder: Path,
    adapter: AdapterWeights,
    transposed: frozenset[str],
    held: Mapping[str, Held] = MappingProxyType({}),
) -> list[list[Source]]:
    """All tensors of the base, by file and in their order there. held: how those are quantised, by name, of
    which the quantised weight counts.

    Raises InvalidAdapter if a targeted layer is not among them, or the adapter's kind cannot be merged.
    """
    parts = adapter.merge_parts()
    headers = {path: read_header(path) for path in weight_files(base_folder)}
    stored = {entry.name for header in headers.values() for entry in header.tensors}
    of_experts = {path: parts.pop(path)[0] for path in adapter.experts}
    names = _names(base_folder, stored, [*(f"{path}{WEIGHT}" for path in parts), *adapter.whole])
    module_of = {tensor_name(path, names): path for path in parts}
    entries = {entry.name: (path, entry) for path, header in headers.items() for entry in header.tensors}
    whole = whole_tensors(adapter, entries, names)
    whole |= replaced_tensors(base_folder, adapter.whole, entries, names)
    experts = expert_tensors(base_folder, of_experts, entries)
    found = []
    for path, header in headers.items():
        rows = []
        for entry in header.tensors:
            module = module_of.get(entry.name)
            factors, lengths = parts[module] if module else (None, None)
            if expert := experts.get(entry.name):
                module, factors = expert.module, expert.factors
            own = whole.get(entry.name)
            how = held.get(entry.name)
            rows.append(Source(path, entry, factors, module, module in transposed, lengths, own, how))
            if factors is not None:
                _require_shape(rows[-1])
        found.append(rows)
    return found


def _names(base_folder: Path, stored: Collection[str], wanted: Collection[str]) -> dict[str, str]:
    """What the files call each tensor, by its name there, and by what transformers calls it where one of
    those that are wanted is not found by that.
    """
    names = {name: name for name in stored}
    paths = [name.rpartition(".") for name in wanted]
    if not all(name_in(path, names, f".{end}") for path, _, end in paths):
        return model_names(base_folder, stored) | names
    return names


def _require_shape(source: Source) -> None:
    factors, entry = source.factors, source.entry
    assert factors is not None
    delta = (*factors.B.shape[:-1], factors.A.shape[-1])
    wanted = (*delta[:-2], *reversed(delta[-2:])) if source.transposed else delta
    if wanted != entry.shape or entry.dtype not in TORCH_DTYPES:
        shape = f"{entry.dtype} {list(entry.shape)}"
        raise InvalidAdapter(f"ΔW of {entry.name} is {list(delta)}, but the base holds {shape} there.")


def merge_into_base(
    base_folder: Path,
    adapter: AdapterWeights,
    transposed: frozenset[str],
    target: Path,
    report: Report,
    metadata: Mapping[str, str],
    dtype: str = "auto",
    file_bytes: float = 0,
    named: Mapping[str, str] | None = None,
    added: Mapping[str, Tensor] | None = None,
    held: Mapping[str, Held] = MappingProxyType({}),
) -> MergeReport:
    """Write the weights of base + adapter into the existing folder `target`.

    transposed: module paths whose weight is stored as [in, out]. metadata goes into every file's header.
    dtype: float32, bfloat16, float16, or auto for the base's own. file_bytes: the largest file; 0 for the
    base's files. named: how the files call the base's tensors, which are left out where it does not name
    them; added: what they hold beside these, such as a classifier's head. held: as of sources().
    Raises InvalidAdapter if a targeted layer has no weight in the files, OutOfSpace before anything is
    written.
    """
    files = _layout(_named(sources(base_folder, adapter, transposed, held), named), dtype, file_bytes)
    total = sum(_size(source, dtype) for rows in files.values() for source in rows)
    last, own = list(files)[-1], dict(added or {})
    total += sum(one.numel() * DTYPE_BYTES[_added_dtype(files[last], dtype)] for one in own.values())
    require_space(target, total)
    written = 0
    errors: dict[str, float] = {}
    changes: dict[str, float] = {}
    moved = size = 0.0
    for name, rows in files.items():
        more = own if name == last else {}
        for source, made in _write(target / name, rows, dtype, metadata, more):
            written += len(made.data)
            errors[source.entry.name] = errors.get(source.entry.name, 0.0) + made.error
            changes[source.entry.name] = changes.get(source.entry.name, 0.0) + made.energy
            moved, size = moved + made.moved[0], size + made.moved[1]
            report(Progress(f"Merging {source.entry.name}", min(written / max(total, 1), 1.0)))
    if len(files) > 1 or (base_folder / INDEX_NAME).is_file():
        names = {name: [source.name for source in rows] for name, rows in files.items()}
        names[last] += own
        _write_index(target, names, total)
    merged = [source for rows in files.values() for source in rows if source.is_changed]
    energy = {
        source.entry.name: inner_product(source.factors, source.factors)
        if source.factors is not None and source.lengths is None
        else changes[source.entry.name]
        for source in merged
        if source.factors is not None or source.whole is not None
    }
    lost = [math.sqrt(errors[name] / value) for name, value in energy.items() if value]
    return MergeReport(
        merged_tensors=len(merged),
        copied_tensors=sum(map(len, files.values())) - len(merged),
        bytes_written=written,
        rounding_loss=math.sqrt(sum(errors[name] for name in energy) / max(sum(energy.values()), 1e-300)),
        worst_rounding_loss=max(lost, default=0.0),
        base_difference=math.sqrt(moved / max(size, 1e-300)),
    )


def _named(files: Sequence[Sequence[Source]], named: Mapping[str, str] | None) -> list[list[Source]]:
    """The tensors that are written, under the names that they are to have."""
    if named is None:
        return [list(rows) for rows in files]
    kept = [
        [replace(one, renamed=named[one.entry.name]) for one in rows if one.entry.name in named]
        for rows in files
    ]
    return [rows for rows in kept if rows]


def _added_dtype(rows: Sequence[Source], dtype: str) -> str:
    """What is added is written as the first floats beside it; some files begin with whole numbers, such as
    BERT's positions.
    """
    return next((_stored(one, dtype) for one in rows if one.entry.dtype in TORCH_DTYPES), "F32")


def _layout(files: Sequence[Sequence[Source]], dtype: str, file_bytes: float) -> dict[str, list[Source]]:
    """Which tensors go into which file: as in the base, or packed in order into files of the wanted size."""
    if not file_bytes:
        return {rows[0].path.name: list(rows) for rows in files}
    shards: list[list[Source]] = [[]]
    filled = 0
    for source in (source for rows in files for source in rows):
        size = _size(source, dtype)
        if shards[-1] and filled + size > file_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(source)
        filled += size
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{at:05d}-of-{len(shards):05d}.safetensors": rows for at, rows in enumerate(shards, 1)}


def _stored(source: Source, dtype: str) -> str:
    """The dtype a tensor is written in: the wanted one where it holds floats."""
    own = source.entry.dtype
    return _NAMES.get(dtype, own) if own in TORCH_DTYPES else own


def _size(source: Source, dtype: str) -> int:
    return source.entry.count * DTYPE_BYTES[_stored(source, dtype)]


def _write(
    target: Path,
    rows: Sequence[Source],
    dtype: str,
    metadata: Mapping[str, str],
    added: Mapping[str, Tensor],
) -> Iterator[tuple[Source, _Made]]:
    """Write one file; yield for each piece its tensor and what was made of it. What is added stands behind
    the others.
    """
    own = {
        key: value
        for path in {source.path for source in rows}
        for key, value in read_header(path).metadata.items()
    }
    layout = [(source.name, _stored(source, dtype), source.entry.shape) for source in rows]
    added_dtype = _added_dtype(rows, dtype)
    layout += [(name, added_dtype, tuple(one.shape)) for name, one in added.items()]
    pieces = (piece for source in rows for piece in _pieces(source, _stored(source, dtype)))
    with target.open("wb") as out:
        out.write(build_header(layout, {**own, **metadata}))
        for made in in_order(_make, pieces):
            out.write(made.data)
            yield made.source, made
        for one in added.values():
            out.write(_bytes(one, added_dtype))


def _rows(whole: Tensor, piece: _Piece) -> Tensor:
    """The part of an adapter's own numbers that stands where the base has this piece."""
    entry = piece.source.entry
    width = math.prod(entry.shape[1:]) * DTYPE_BYTES[entry.dtype]
    return whole[(piece.start - entry.start) // width : (piece.end - entry.start) // width]


def _bytes(tensor: Tensor, dtype: str) -> bytes:
    plain = tensor.to(TORCH_DTYPES[dtype]).contiguous().flatten()
    return plain.view(torch.uint8).numpy().tobytes()


def _pieces(source: Source, dtype: str) -> Iterator[_Piece]:
    entry = source.entry
    if not source.is_changed and dtype == entry.dtype:
        step = PIECE_BYTES
    else:  # whole rows, so that each piece is a matrix
        width = _width(source) * DTYPE_BYTES[entry.dtype]
        step = max(1, PIECE_BYTES // max(width, 1)) * width
    if source.held is not None:  # its scales are quantised over all of it
        step = entry.end - entry.start
    for first, behind in _matrices(source):
        for start in range(first, behind, max(step, 1)):
            yield _Piece(source, start, min(start + step, behind), dtype)


def _of_experts(source: Source) -> bool:
    return source.factors is not None and source.factors.of_experts


def _width(source: Source) -> int:
    """Numbers in a row of the matrices that a tensor holds: one, or one for each expert."""
    shape = source.entry.shape
    return shape[-1] if _of_experts(source) else math.prod(shape[1:])


def _matrices(source: Source) -> Iterator[tuple[int, int]]:
    """Where the bytes of each of them begin and end."""
    entry = source.entry
    size = (entry.end - entry.start) // (entry.shape[0] if _of_experts(source) else 1)
    for start in range(entry.start, entry.end, max(size, 1)):
        yield start, start + size


def _make(piece: _Piece) -> _Made:
    source, entry = piece.source, piece.source.entry
    raw = read_range(source.path, piece.start, piece.end)
    if source.whole is not None:
        return _instead(source, _rows(source.whole, piece).float(), raw, piece.dtype)
    if source.factors is None and piece.dtype == entry.dtype:
        return _Made(source, raw, 0.0, 0.0)
    width = _width(source)
    weight = torch.frombuffer(raw, dtype=TORCH_DTYPES[entry.dtype]).view(-1, width)
    data, stored = raw, weight  # rounded in place, unless the numbers become wider or narrower
    moved = 0.0, 0.0
    if source.held is not None:
        weight, moved = source.held.weight_and_distance(weight)
    if piece.dtype != entry.dtype:
        data = bytearray(weight.numel() * DTYPE_BYTES[piece.dtype])
        stored = torch.frombuffer(data, dtype=TORCH_DTYPES[piece.dtype]).view(-1, width)
    first = (piece.start - entry.start) // (width * DTYPE_BYTES[entry.dtype])
    matrix, row = source.at(first)
    return _Made(source, data, *_add_rounded(matrix, row, weight, stored), moved)


def _instead(source: Source, own: Tensor, raw: bytearray, dtype: str) -> _Made:
    """An adapter's own numbers in the place of those that `raw` holds."""
    data = bytearray(_bytes(own, dtype))
    flat = own.flatten()
    change = flat - torch.frombuffer(raw, dtype=TORCH_DTYPES[source.entry.dtype]).float()
    lost = torch.frombuffer(data, dtype=TORCH_DTYPES[dtype]).float() - flat
    return _Made(source, data, float(torch.dot(lost, lost)), float(torch.dot(change, change)))


def _add_rounded(source: Source, first: int, weight: Tensor, stored: Tensor) -> tuple[float, float]:
    """stored = weight + ΔW, a few rows at a time that stay in the processor's cache; returns the squared
    rounding error, and the squared change where rows have lengths.

    weight [rows, …] is the part of W that begins at row `first`.
    """
    step, width = max(1, _CACHED // weight.shape[1]), weight.shape[1]
    exact, rounded = torch.empty(step, width), torch.empty(step, width)
    rounds = source.factors is not None and stored.dtype != torch.float32
    error = energy = 0.0
    for at in range(0, weight.shape[0], step):
        rows = slice(at, min(at + step, weight.shape[0]))
        whole = exact[: rows.stop - rows.start].copy_(weight[rows])
        if source.factors is not None:
            left, right = _delta_rows(source, first + rows.start, first + rows.stop)
            whole.addmm_(left, right)
            _keep_untouched(whole, weight[rows], source, first + rows.start)
        if source.lengths is not None:
            _bring_to_length(whole, source, first + rows.start)
            energy += float((whole - weight[rows]).square().sum())
        stored[rows].copy_(whole)
        if rounds:
            lost = rounded[: len(whole)].copy_(stored[rows]).sub_(whole).flatten()
            error += float(torch.dot(lost, lost))
    return error, energy


def _keep_untouched(whole: Tensor, weight: Tensor, source: Source, first: int) -> None:
    """Rows of W whose rows of B are zero stay as they are to the bit, and with them the sign of a zero."""
    assert source.factors is not None
    touched = source.touched
    if touched is None:
        return
    if source.transposed:
        whole[:, ~touched] = weight[:, ~touched].to(whole.dtype)
    else:
        untouched = ~touched[first : first + len(whole)]
        whole[untouched] = weight[untouched].to(whole.dtype)


def _bring_to_length(whole: Tensor, source: Source, first: int) -> None:
    """Rescale these rows of W + ΔW, as the file stores it from row `first` on, in place."""
    assert source.lengths is not None
    if source.column_ratios is not None:
        whole.mul_(source.column_ratios)
        return
    lengths = source.lengths[first : first + len(whole)].float()
    whole.mul_((lengths / torch.linalg.vector_norm(whole, dim=1).clamp(min=_TINY))[:, None])


def _delta_rows(source: Source, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Two factors in float32 whose product is these rows of ΔW as the file stores them."""
    factors = source.factors
    assert factors is not None
    if source.transposed:
        return factors.A[:, first:last].float().T * factors.scale, factors.B.float().T
    return factors.B[first:last].float() * factors.scale, factors.A.float()


def merged_weight(source: Source) -> Tensor:
    """A whole tensor with what the adapter makes of it, in float32, in the shape that the file gives."""
    if source.whole is not None:
        return source.whole.float()
    whole = _sum(source)
    if source.lengths is not None:
        _bring_to_length(whole, source, 0)
    return whole


def _sum(source: Source) -> Tensor:
    """W + ΔW in float32, in the shape that the file gives."""
    entry = source.entry
    exact = torch.frombuffer(
        read_range(source.path, entry.start, entry.end), dtype=TORCH_DTYPES[entry.dtype]
    ).float()
    if source.held is not None:
        exact = source.held.weight(exact.view(entry.shape))
    if _of_experts(source):
        rows = entry.shape[1]
        for number, one in enumerate(exact.view(entry.shape)):
            one.addmm_(*_delta_rows(source.at(number * rows)[0], 0, rows))
    elif source.factors is not None:
        exact = exact.view(entry.shape).addmm(*_delta_rows(source, 0, entry.shape[0]))
    return exact.view(entry.shape)


def weight_norms(
    base_folder: Path, adapter: AdapterWeights, transposed: frozenset[str], report: Report
) -> dict[str, float]:
    """‖W‖ by module path of the layers that the adapter changes, one in memory at a time."""
    targeted = [one for rows in sources(base_folder, adapter, transposed) for one in rows if one.module]
    norms: dict[str, float] = {}
    for number, source in enumerate(targeted):
        report(Progress(f"Measuring {source.entry.name}", number / len(targeted)))
        weight = merged_weight(replace(source, factors=None, lengths=None))
        own = float(torch.linalg.vector_norm(weight, dtype=torch.float64))
        norms[source.module or ""] = math.hypot(norms.get(source.module or "", 0.0), own)  # experts are many
    return norms


def _write_index(target: Path, files: Mapping[str, Sequence[str]], total: int) -> None:
    """files: the names of the tensors in each."""
    weight_map = {tensor: name for name, tensors in files.items() for tensor in tensors}
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (target / INDEX_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
