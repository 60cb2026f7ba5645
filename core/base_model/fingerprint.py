"""The exact identity of a base model, by content.

fingerprint = SHA-256 over the sorted (tensor name, dtype, shape, SHA-256 of the tensor's bytes) of every
tensor, and over the architecture fields of config.json. Renaming, moving or re-sharding a model does not
change it; one changed bit does. Needs no torch.
"""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.base_model.files import read_json, weight_files
from core.errors import InvalidModel
from core.files.safetensors_file import TensorEntry, read_header

ARCHITECTURE_FIELDS = (
    "model_type",
    "architectures",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "activation_function",
    "rms_norm_eps",
    "layer_norm_epsilon",
    "layer_norm_eps",
    "attention_bias",
    "mlp_bias",
    "sliding_window",
    "tie_word_embeddings",
    "n_embd",
    "n_layer",
    "n_head",
    "n_inner",
)
TOKENIZER_NAMES = ("tokenizer.json", "tokenizer.model", "vocab.json")
OLDER_TOKENIZER_NAMES = ("vocab.txt", "spm.model", "sentencepiece.bpe.model")
"""Of encoders that were published before tokenizer.json; they count where none of the others is there."""
_CHUNK = 8 * 1024 * 1024
_EXPONENTS = {
    "F64": (np.uint64, 0x7FF0000000000000),
    "F32": (np.uint32, 0x7F800000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
_COMPANION_SUFFIXES = (".json", ".jinja", ".model", ".txt")

ReportBytes = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


@dataclass(frozen=True)
class Manifest:
    """What a fingerprint is taken over, kept so that a difference can be named."""

    tensors: tuple[tuple[str, str, tuple[int, ...], str], ...]
    """(name, dtype, shape, SHA-256 of the bytes) of every tensor, sorted."""
    architecture: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all of it, 64 hexadecimal digits."""
        whole = {"tensors": self.tensors, "architecture": self.architecture}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_json(cls, tensors: Sequence[Sequence[Any]], architecture: dict[str, Any]) -> Manifest:
        """As it comes back from JSON, where tuples are lists."""
        return cls(
            tuple((name, dtype, tuple(shape), digest) for name, dtype, shape, digest in tensors), architecture
        )


def fingerprint(folder: Path, report: ReportBytes | None = None) -> str:
    """The fingerprint of the model in `folder`, computed afresh. Raises as manifest() does."""
    return manifest(folder, report).fingerprint


def manifest(folder: Path, report: ReportBytes | None = None, *, finite: bool = False) -> Manifest:
    """Hash the model in `folder` afresh, tensors in parallel. With `finite` every number is looked at too.

    Raises InvalidModel if there are no safetensors weights, or one that is not finite; InvalidInput if a file
    is damaged.
    """
    tensors = [(path, entry) for path in weight_files(folder) for entry in read_header(path).tensors]
    total = sum(entry.end - entry.start for _, entry in tensors)
    done = 0
    rows: list[tuple[str, str, tuple[int, ...], str]] = []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        digests = pool.map(lambda pair: tensor_digest(*pair, finite=finite), tensors)
        for (_, entry), digest in zip(tensors, digests, strict=True):
            rows.append((entry.name, entry.dtype, entry.shape, digest))
            done += entry.end - entry.start
            if report:
                report(done, total)
    return Manifest(tuple(sorted(rows)), architecture(read_json(folder / "config.json")))


def tensor_digest(path: Path, entry: TensorEntry, *, finite: bool = False) -> str:
    """SHA-256 of one tensor's bytes, read through a memory map.

    Raises InvalidModel if its numbers have to be finite and are not.
    """
    digest = hashlib.sha256()
    if entry.end > entry.start:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            for position in range(entry.start, entry.end, _CHUNK):
                chunk = view[position : min(position + _CHUNK, entry.end)]
                digest.update(chunk)
                if finite and not _is_finite(chunk, entry.dtype):
                    raise InvalidModel(
                        f"{entry.name[:120]} in {path} holds NaN or infinite numbers, so nothing can be "
                        "computed with it. The file is damaged, or its training failed; get it again."
                    )
    return digest.hexdigest()


def _is_finite(chunk: bytes, dtype: str) -> bool:
    """Whether no number of a floating-point format has all bits of its exponent set."""
    if dtype not in _EXPONENTS:
        return True
    kind, exponent = _EXPONENTS[dtype]
    return bool(((np.frombuffer(chunk, kind) & kind(exponent)) != exponent).all())


def architecture(config: dict[str, Any]) -> dict[str, Any]:
    """The fields that change what the weights compute.

    Rotary settings are read from either place they live in.
    """
    fields = {name: config[name] for name in ARCHITECTURE_FIELDS if config.get(name) is not None}
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise InvalidModel(f"config.json says rope parameters = {str(rope)[:40]!r}; expected an object.")
    theta = rope.get("rope_theta", config.get("rope_theta"))
    kind = rope.get("rope_type", rope.get("type", "default"))
    others = {key: value for key, value in rope.items() if key not in ("rope_theta", "rope_type", "type")}
    if theta is not None:
        fields["rope"] = {"theta": theta, "type": kind, **others}
    return fields


def stat_key(folder: Path) -> str:
    """A cheap key that changes when a weight file or the configuration was touched: path, size,
    mtime, inode.
    """
    return hashlib.sha256("\n".join(_stat_lines(folder)).encode()).hexdigest()


def _stat_lines(folder: Path) -> Iterator[str]:
    for path in [folder / "config.json", *weight_files(folder)]:
        about = path.stat()
        yield f"{path.resolve()}|{about.st_size}|{about.st_mtime_ns}|{about.st_ino}"


def _stamp(path: Path) -> tuple[int, int, int]:
    about = path.stat()
    return about.st_size, about.st_mtime_ns, about.st_ino


@functools.lru_cache(maxsize=256)
def _file_digest(path: Path, size: int, mtime_ns: int, inode: int) -> str:
    """SHA-256 of a file, read once for as long as it is not touched:
    a chat asks for it with every message.
    """
    return hashlib.sha256(path.read_bytes()).hexdigest()


def companions_hash(folder: Path) -> str:
    """SHA-256 over every file beside the weights that can decide what is read, said and when an answer ends:
    configurations, tokenizer, templates. Files that nobody has touched since are not read again.
    """
    beside = [path for path in folder.glob("*") if path.suffix in _COMPANION_SUFFIXES and path.is_file()]
    paths = sorted([*beside, *folder.glob("additional_chat_templates/*.jinja")])
    return text_hash("\n".join(f"{path.relative_to(folder)}:{file_digest(path)}" for path in paths))


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read once for as long as it is not touched; empty if there is none."""
    return _file_digest(path, *_stamp(path)) if path.is_file() else ""


def text_hash(text: str) -> str:
    """SHA-256 of a chat template or any other text."""
    return hashlib.sha256(text.encode()).hexdigest()


def tokenizer_hash(folder: Path) -> str:
    """SHA-256 over the files that decide how text becomes ids; empty if there are none."""
    newer = any((folder / name).is_file() for name in TOKENIZER_NAMES)
    names = [*(TOKENIZER_NAMES if newer else OLDER_TOKENIZER_NAMES), "merges.txt", "special_tokens_map.json"]
    present = [folder / name for name in names if (folder / name).is_file()]
    parts = [f"{path.name}:{file_digest(path)}" for path in present]
    return text_hash("\n".join(parts)) if parts else ""
