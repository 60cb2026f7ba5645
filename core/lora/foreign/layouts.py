"""The layouts in which tools write LoRA factors; PEFT's is the one that others are turned into."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from core.errors import InvalidAdapter
from core.files.safetensors_file import SafetensorsHeader, TensorEntry
from core.lora.foreign.strangers import refuse_convolution, refuse_stranger
from core.lora.peft.files import DTYPES, Entries


@dataclass(frozen=True)
class Layout:
    """How one tool writes LoRA factors."""

    name: str
    pattern: re.Pattern[str]
    """Groups: path, factor, and adapter where the name of the adapter is in it."""
    A: str
    """What the first factor is called."""
    transposed: bool = False
    """Whether A lies as [in, r] and B as [r, out]."""


LAYOUTS = (
    Layout("PEFT", re.compile(r"^base_model\.model\.(?P<path>.+)\.lora_(?P<factor>[AB])\.weight$"), "A"),
    Layout(
        "PEFT, one of several",
        re.compile(
            r"^(?:base_model\.model\.)?(?P<path>.+)\.lora_(?P<factor>[AB])\.(?P<adapter>[^.]+)\.weight$"
        ),
        "A",
    ),
    Layout("PEFT without its prefix", re.compile(r"^(?P<path>.+)\.lora_(?P<factor>[AB])\.weight$"), "A"),
    Layout("loralib", re.compile(r"^(?P<path>.+)\.lora_(?P<factor>[AB])$"), "A"),
    Layout("MLX", re.compile(r"^(?P<path>.+)\.lora_(?P<factor>[ab])$"), "a", transposed=True),
    Layout("torchtune", re.compile(r"^(?P<path>.+)\.lora_(?P<factor>[ab])\.weight$"), "a"),
    Layout("kohya", re.compile(r"^(?P<path>[^.]+)\.lora_(?P<factor>down|up)\.weight$"), "down"),
    Layout(
        "diffusers",
        re.compile(r"^(?P<path>.+)[._]lora(?:_linear_layer\.|\.|_)(?P<factor>down|up)\.weight$"),
        "down",
    ),
)
PEFT = LAYOUTS[0]
_ALPHA = re.compile(r"^(?P<path>.+)\.alpha$")
_WHOLE = re.compile(r"^(?:base_model\.model\.)?(?P<path>.+?)(?:\.base_layer)?\.weight$")
_AROUND = ".base_layer"
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


@dataclass(frozen=True)
class SortedOut:
    """The tensors of a file, by what they are."""

    layout: Layout
    tensors: Entries
    """A and B by the path that the file gives."""
    alphas: dict[str, str]
    """Names of the tensors that hold a layer's own alpha, by path."""
    whole: dict[str, TensorEntry] = field(default_factory=dict)
    """Weights of the base itself, by the path of their module."""
    several: bool = False
    """Whether there are other adapters in the file."""
    as_written: bool = True
    """Whether no name had a wrapper's part in it."""


def plain_name(name: str) -> str:
    """A tensor's name without what torch.compile, FSDP, checkpointing and DDP put around modules."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    return ".".join(parts[1:] if parts[0] == "module" else parts)


def sorted_out(header: SafetensorsHeader, which: str = "") -> SortedOut:
    """What the tensors of a file are; `which` names one of several adapters in it.

    Raises InvalidAdapter naming the first that is in no layout, or breaks the pairs.
    """
    entries = {plain_name(entry.name): entry for entry in header.tensors}
    if len(entries) != len(header.tensors):
        raise InvalidAdapter("Two of the file's tensors have the same name but for a wrapper's part in it.")
    whole = {name: _WHOLE.match(name) for name in entries if _is_whole(name)}
    factors = [name for name in entries if not _ALPHA.match(name) and name not in whole]
    if not factors:
        raise InvalidAdapter("The file holds no LoRA factors at all.")
    layout = next((one for one in LAYOUTS if all(one.pattern.match(name) for name in factors)), None)
    if layout is None:
        _refuse_strangers(factors)
    assert layout is not None
    chosen, several = _of_one_adapter(layout, factors, which)
    tensors = _pairs(layout, {name: entries[name] for name in chosen})
    alphas = {match["path"]: entries[name].name for name in entries if (match := _ALPHA.match(name))}
    if stray := sorted(set(alphas) - set(tensors)):
        raise InvalidAdapter(f"There is an alpha for {stray[0][:120]}, which has no factors.")
    return SortedOut(
        layout,
        tensors,
        alphas,
        {match["path"]: entries[name] for name, match in whole.items() if match},
        several,
        as_written=all(name == entry.name for name, entry in entries.items()),
    )


def _is_whole(name: str) -> bool:
    """Whether it is a module's own weight: PEFT saves those of embedding and head beside their factors."""
    return name.endswith(".weight") and not any(
        part in name for part in ("lora", "magnitude", "modules_to_save")
    )


def _of_one_adapter(layout: Layout, factors: Sequence[str], which: str) -> tuple[list[str], bool]:
    """The factors of the wanted adapter, and whether the file has others."""
    if "adapter" not in layout.pattern.groupindex:
        _require_known(which, ())
        return list(factors), False
    owner = {name: match["adapter"] for name in factors if (match := layout.pattern.match(name))}
    names = sorted(set(owner.values()))
    _require_known(which, names)
    if len(names) > 1 and not which:
        raise InvalidAdapter(
            f"The file holds {len(names)} adapters: {', '.join(names)[:200]}. Say which one to take "
            "(Which one; --which on the command line)."
        )
    return [name for name in factors if owner[name] == (which or names[0])], len(names) > 1


def _require_known(which: str, names: Sequence[str]) -> None:
    if which and which not in names:
        there = f"it holds {', '.join(names)}" if names else "its adapter has no name in it"
        raise InvalidAdapter(f"The file holds no adapter {which[:60]!r}; {there}.")


def _pairs(layout: Layout, entries: Mapping[str, TensorEntry]) -> Entries:
    tensors: Entries = {}
    for name, entry in entries.items():
        match = layout.pattern.match(name)
        assert match is not None  # the layout was chosen by that
        if 0 in entry.shape:
            raise InvalidAdapter(
                f"{name[:120]!r} is empty: the adapter was saved before its shards were gathered "
                "(DeepSpeed ZeRO-3 or FSDP); save it again with the gathered factors."
            )
        if len(entry.shape) == 4:
            refuse_convolution(name)
        if len(entry.shape) != 2 or entry.dtype not in DTYPES:
            raise InvalidAdapter(
                f"{name[:120]!r} is {entry.dtype} {list(entry.shape)}; expected a matrix in one of "
                f"{', '.join(DTYPES)}."
            )
        tensors.setdefault(match["path"], {})["A" if match["factor"] == layout.A else "B"] = entry
    for path, pair in tensors.items():
        if set(pair) != {"A", "B"} or rank_of(pair, layout) != pair["B"].shape[0 if layout.transposed else 1]:
            raise InvalidAdapter(f"The factors A and B of {path[:120]} do not belong together.")
    return tensors


def _refuse_strangers(names: Iterable[str]) -> None:
    names = list(names)
    refuse_stranger(names)
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
    own = dotted(path, layout)
    while own.endswith(_AROUND):  # PEFT's, around a module with several parameters that have factors
        own = own.removesuffix(_AROUND)
    return own.rpartition(".")[2]
