"""The layouts in which tools write LoRA factors; PEFT's is the one that others are turned into."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.errors import InvalidAdapter
from core.files.safetensors_file import SafetensorsHeader, TensorEntry
from core.lora.peft.files import DTYPES, Entries


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


def sorted_out(header: SafetensorsHeader) -> tuple[Layout, Entries, dict[str, str]]:
    """The layout that every tensor is in, the entries of A and B by the path that the file gives, and the
    names of the tensors that hold a layer's own alpha.

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
    tensors: Entries = {}
    for entry in header.tensors:
        if (match := layout.pattern.match(entry.name)) is None:
            continue
        if len(entry.shape) != 2 or entry.dtype not in DTYPES:
            raise InvalidAdapter(
                f"{entry.name[:120]!r} is {entry.dtype} {list(entry.shape)}; a LoRA factor is a matrix "
                "of floats."
            )
        tensors.setdefault(match["path"], {})["A" if match["factor"] == layout.A else "B"] = entry
    for path, pair in tensors.items():
        if set(pair) != {"A", "B"} or rank_of(pair, layout) != pair["B"].shape[0 if layout.transposed else 1]:
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


def rank_of(pair: Mapping[str, TensorEntry], layout: Layout) -> int:
    """r of a pair of factors; 0 where A is missing."""
    return pair["A"].shape[1 if layout.transposed else 0] if "A" in pair else 0


def dotted(path: str, layout: Layout) -> str:
    """kohya writes underscores between the parts of a path, and within them."""
    return re.sub(r"_(\d+)_", r".\1.", path) if layout.name == "kohya" else path


def module_name(path: str, layout: Layout) -> str:
    """The last part of a path; where it cannot be told from the others, what stands behind the layer's
    number.
    """
    return dotted(path, layout).rpartition(".")[2]
