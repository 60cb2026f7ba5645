"""Writing GGUF: the merged model, one tensor in memory at a time, or the adapter alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import LlamaFileType as File
from numpy.typing import NDArray

from core.base_model.tokenizer import end_token_ids, load_tokenizer
from core.data.pieces import opening_ids
from core.data.rendering import Renderer
from core.errors import InvalidAdapter, InvalidModel
from core.events import Progress
from core.files.publish import require_space
from core.gguf.architecture import Array, GgufArchitecture, gguf_architecture
from core.gguf.vocabulary import vocabulary
from core.lora.adapter import AdapterWeights
from core.lora.scaling import alpha_of
from core.merge.merge import Source, merged_weight, sources
from core.reporting import Report

_KINDS = {
    "auto": Kind.F16,
    "float32": Kind.F32,
    "float16": Kind.F16,
    "bfloat16": Kind.BF16,
    "q8_0": Kind.Q8_0,
    "q5_1": Kind.Q5_1,
    "q5_0": Kind.Q5_0,
    "q4_1": Kind.Q4_1,
    "q4_0": Kind.Q4_0,
}
_FILE_TYPES = {
    Kind.F32: File.ALL_F32,
    Kind.F16: File.MOSTLY_F16,
    Kind.BF16: File.MOSTLY_BF16,
    Kind.Q8_0: File.MOSTLY_Q8_0,
    Kind.Q5_1: File.MOSTLY_Q5_1,
    Kind.Q5_0: File.MOSTLY_Q5_0,
    Kind.Q4_1: File.MOSTLY_Q4_1,
    Kind.Q4_0: File.MOSTLY_Q4_0,
}
_PLAIN = {Kind.F32: np.float32, Kind.F16: np.float16}
ADAPTER_ALPHA = (
    16.0  # written once for the file; what a layer's own scale says otherwise is folded into its B
)


@dataclass(frozen=True)
class Planned:
    """One tensor of the file."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    source: Source | None
    own: Array | None = None
    """Its values, where they come from no file of the base."""


def kind_of(dtype: str) -> Kind:
    """The number format that large tensors are written in."""
    return _KINDS[dtype]


def planned(
    base_folder: Path, adapter: AdapterWeights, transposed: frozenset[str], dtype: str
) -> tuple[GgufArchitecture, list[Planned]]:
    """What a merged file will hold. Raises InvalidModel, InvalidAdapter."""
    architecture = gguf_architecture(base_folder)
    found = []
    for source in (source for rows in sources(base_folder, adapter, transposed) for source in rows):
        name = architecture.tensor_name(source.entry.name)
        if name is not None:
            found.append(
                Planned(name, source.entry.shape, _kind_for(source.entry.shape, kind_of(dtype)), source)
            )
    extra = architecture.extra_tensors().items()
    return architecture, [*found, *[Planned(name, own.shape, Kind.F32, None, own) for name, own in extra]]


def _kind_for(shape: tuple[int, ...], wanted: Kind) -> Kind:
    """Vectors stay in float32; what does not divide into the blocks of a quantised kind stays in float16."""
    if len(shape) < 2:
        return Kind.F32
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if shape[-1] % block == 0 else Kind.F16


def exact_values(architecture: GgufArchitecture, one: Planned) -> Array:
    """A tensor of the merged model in float32, in GGUF's layout."""
    if one.source is None:
        assert one.own is not None
        return one.own
    return architecture.arranged(one.source.entry.name, merged_weight(one.source).numpy())


def stored_values(values: Array, kind: Kind) -> NDArray[np.generic]:
    """The same in a number format of GGUF; quantised kinds come as bytes."""
    if kind == Kind.F32:
        return np.ascontiguousarray(values, np.float32)
    if kind == Kind.F16:
        return np.ascontiguousarray(values).astype(np.float16)
    return gguf.quants.quantize(np.ascontiguousarray(values, np.float32), kind)


def write_merged_gguf(
    base_folder: Path,
    adapter: AdapterWeights,
    transposed: frozenset[str],
    target: Path,
    report: Report,
    name: str,
    dtype: str,
    template: str = "",
    licence: str = "",
) -> int:
    """Write base + adapter as the file `target`; returns its number of tensors.

    Each tensor is added in float32 and rounded once, to the kind that is written. Raises InvalidModel for a
    model whose layout or tokenizer GGUF cannot hold, OutOfSpace before anything is written.
    """
    architecture, tensors = planned(base_folder, adapter, transposed, dtype)
    require_space(target.parent, sum(_bytes(one) for one in tensors))
    writer = gguf.GGUFWriter(target, architecture.name)
    writer.add_name(name)
    if licence:
        writer.add_license(licence)
    writer.add_file_type(_FILE_TYPES[kind_of(dtype)])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    embedding = next(one for one in tensors if one.name == "token_embd.weight")
    architecture.write_header(writer, embedding.shape[0])
    vocabulary(base_folder, embedding.shape[0]).write(writer)
    _write_special_tokens(writer, base_folder, template)
    for one in tensors:
        block, size = gguf.GGML_QUANT_SIZES[one.kind]
        shape = one.shape if one.kind in _PLAIN else (*one.shape[:-1], one.shape[-1] // block * size)
        stored = np.dtype(_PLAIN.get(one.kind, np.uint8))
        writer.add_tensor_info(one.name, shape, stored, _bytes(one), raw_dtype=one.kind)
    made = ((one.name, stored_values(exact_values(architecture, one), one.kind)) for one in tensors)
    _write_all(writer, made, len(tensors), report)
    return len(tensors)


def _bytes(one: Planned) -> int:
    block, size = gguf.GGML_QUANT_SIZES[one.kind]
    return int(np.prod(one.shape)) // block * size


def _write_all(
    writer: gguf.GGUFWriter, tensors: Iterator[tuple[str, NDArray[np.generic]]], count: int, report: Report
) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for number, (name, values) in enumerate(tensors):
        report(Progress(f"Writing {name}", number / count))
        writer.write_tensor_data(values)
    writer.close()


def _write_special_tokens(writer: gguf.GGUFWriter, folder: Path, template: str) -> None:
    """BOS as the tokenizer puts it, and what ends an answer: llama.cpp stops at EOS, EOT and EOM."""
    tokenizer = load_tokenizer(folder, template)
    opening = opening_ids(tokenizer)
    ends = end_token_ids(folder, Renderer(tokenizer))
    first_end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else min(ends, default=None)
    further = sorted(ends - {first_end})
    ids = (
        (opening[0] if len(opening) == 1 else tokenizer.bos_token_id, writer.add_bos_token_id),
        (first_end, writer.add_eos_token_id),
        (further[0] if further else None, writer.add_eot_token_id),
        (further[1] if len(further) > 1 else None, writer.add_eom_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
    )
    for number, add in ids:
        if number is not None:
            add(number)
    writer.add_add_bos_token(len(opening) == 1)
    templates = tokenizer.chat_template
    if isinstance(templates, str):
        writer.add_chat_template(templates)
    elif isinstance(templates, dict):
        writer.add_chat_template([{"name": name, "template": one} for name, one in templates.items()])


def write_adapter_gguf(base_folder: Path, adapter: AdapterWeights, target: Path, name: str) -> int:
    """Write an adapter alone, for llama.cpp's --lora; returns its number of tensors. Raises InvalidModel."""
    architecture = gguf_architecture(base_folder)
    tensors = dict(adapter_tensors(architecture, adapter))
    writer = gguf.GGUFWriter(target, architecture.name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, ADAPTER_ALPHA)
    writer.add_name(name)
    for key, values in tensors.items():
        writer.add_tensor(key, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return len(tensors)


def adapter_tensors(architecture: GgufArchitecture, adapter: AdapterWeights) -> Iterator[tuple[str, Array]]:
    """Names and values as llama.cpp reads them: A [r, in] and B [out, r], scaled by alpha / r there."""
    adapter.require_factors_alone("llama.cpp's file of an adapter")
    if adapter.embedding:
        raise InvalidAdapter(
            f"The adapter changes the input embedding ({adapter.embedding}), for which llama.cpp's file of "
            "an adapter has no place; export it merged."
        )
    for path, factors in adapter.low_rank().items():
        own = f"{path}.weight"
        if own == "lm_head.weight" and architecture.config.get("tie_word_embeddings"):
            raise InvalidModel(
                "The adapter changes the output head, which this base shares with its embedding; GGUF "
                "cannot say that."
            )
        name = architecture.tensor_name(own)
        fold = alpha_of(factors.scale, factors.rank) / ADAPTER_ALPHA
        yield f"{name}.lora_a", factors.A.float().numpy()
        yield (
            f"{name}.lora_b",
            np.ascontiguousarray(architecture.arranged(own, (factors.B.float() * fold).numpy())),
        )
