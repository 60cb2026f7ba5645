"""Linear layers that hold several in one, such as GPT-2's c_attn with q, k and v, and LoRA on some of these
parts (MergedLinear of microsoft/LoRA, whose enable_lora=[True, False, True] is "q+v").

Each part that is chosen has r rows of A and a block of B of its own, which is what separate linear layers
would have:

    A = [A_q; A_v] (2r × in),  B = [B_q 0; 0 0; 0 B_v] (out × 2r),  the scale stays α/r.

So it is an ordinary LoRA of rank r × parts, which every tool loads. Which rows of W are whose follows from
how transformers' attention takes the output apart, by the kind of model. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.errors import InvalidConfig
from core.lora.module_names import ends_with

Rows = Sequence[tuple[int, int]]
"""First and behind the last, of each stretch of rows."""


@dataclass(frozen=True)
class Fused:
    """How the outputs of one layer are divided: in equal groups, such as heads, and each into the parts."""

    sizes: Mapping[str, int]
    """Rows of each part in a group, in order."""
    groups: int = 1

    @property
    def outputs(self) -> int:
        """Rows in all."""
        return self.groups * sum(self.sizes.values())

    def rows(self, part: str) -> Rows:
        """Those of a part, in order."""
        before = 0
        for name, size in self.sizes.items():
            if name == part:
                break
            before += size
        whole = sum(self.sizes.values())
        found = [(group * whole + before, group * whole + before + size) for group in range(self.groups)]
        return found if self.groups > 1 else found[:1]


def parts_by_name(text: str) -> dict[str, tuple[str, ...]]:
    """The chosen parts by the layer's name: c_attn=q+v,gate_up_proj=up. Raises InvalidConfig."""
    found: dict[str, tuple[str, ...]] = {}
    for one in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, parts = (piece.strip() for piece in one.partition("="))
        chosen = tuple(dict.fromkeys(part.strip() for part in parts.split("+") if part.strip()))
        if not (name and equals and chosen):
            raise InvalidConfig(
                f"enable_lora: {one!r} does not say which parts of which layer; write for example c_attn=q+v."
            )
        found[name] = chosen
    return found


def fused_parts(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, int]], chosen: Mapping[str, tuple[str, ...]]
) -> dict[str, list[Rows]]:
    """The rows of each chosen part, by the path of each targeted layer that `chosen` names. config: that of
    the base; shapes: (in, out) of the targeted layers.

    Raises InvalidConfig where it is not known how a layer is divided, or it has no such part.
    """
    found = {}
    for name, parts in chosen.items():
        for path in (path for path in shapes if ends_with(path, name)):
            fused = _fused(config, path.rpartition(".")[2], shapes[path][1])
            if unknown := [part for part in parts if part not in fused.sizes]:
                raise InvalidConfig(
                    f"enable_lora: {name} has the parts {', '.join(fused.sizes)}, and not {unknown[0]!r}."
                )
            found[path] = [fused.rows(part) for part in parts]
    return found


def _fused(config: Mapping[str, Any], name: str, outputs: int) -> Fused:
    kind = str(config.get("model_type"))
    how = _KNOWN.get((kind, name))
    if how is None:
        known = ", ".join(sorted({f"{name} of {kind}" for kind, name in _KNOWN}))
        raise InvalidConfig(
            f"enable_lora: how {name} of this kind of model ({kind}) is divided into parts is not known "
            f"here; known are {known}. Leave it out, or target the layer as a whole."
        )
    fused = how(config, outputs)
    if fused.outputs != outputs:
        raise InvalidConfig(
            f"enable_lora: {name} has {outputs} outputs, and by config.json its parts have {fused.outputs}; "
            "it cannot be divided."
        )
    return fused


def _even(*names: str) -> Callable[[Mapping[str, Any], int], Fused]:
    return lambda config, outputs: Fused(dict.fromkeys(names, outputs // len(names)))


def _by_head(config: Mapping[str, Any], outputs: int) -> Fused:
    """q, k and v of one head after another."""
    heads = _number(config, "num_attention_heads", "n_head")
    return Fused(dict.fromkeys("qkv", outputs // (3 * heads)), heads)


def _heads_in_order(config: Mapping[str, Any], outputs: int) -> Fused:
    """All heads of q, then the fewer ones of k and of v."""
    heads = _number(config, "num_attention_heads", "n_head")
    shared = _number(config, "num_key_value_heads", "num_attention_heads")
    size = outputs // (heads + 2 * shared)
    return Fused({"q": heads * size, "k": shared * size, "v": shared * size})


def _of_falcon(config: Mapping[str, Any], outputs: int) -> Fused:
    """Groups of heads that share k and v, or one such group, or each head with its own."""
    heads = _number(config, "num_attention_heads", "n_head")
    if config.get("new_decoder_architecture"):
        groups = _number(config, "num_kv_heads", "num_attention_heads")
    elif config.get("multi_query", True):
        groups = 1
    else:
        groups = heads
    each = heads // groups
    size = outputs // (groups * (each + 2))
    return Fused({"q": each * size, "k": size, "v": size}, groups)


def _of_bigcode(config: Mapping[str, Any], outputs: int) -> Fused:
    if not config.get("multi_query", True):
        return _by_head(config, outputs)
    return _heads_in_order({**config, "num_key_value_heads": 1}, outputs)


def _number(config: Mapping[str, Any], *names: str) -> int:
    """The first of these settings that the configuration holds; 1 if it has none, which fits no layer."""
    return int(next((config[name] for name in names if config.get(name)), 1))


_KNOWN: Mapping[tuple[str, str], Callable[[Mapping[str, Any], int], Fused]] = {
    ("gpt2", "c_attn"): _even("q", "k", "v"),
    ("gpt_bigcode", "c_attn"): _of_bigcode,
    ("gpt_neox", "query_key_value"): _by_head,
    ("persimmon", "query_key_value"): _by_head,
    ("falcon", "query_key_value"): _of_falcon,
    ("phi3", "qkv_proj"): _heads_in_order,
    ("phi3", "gate_up_proj"): _even("gate", "up"),
    ("glm", "gate_up_proj"): _even("gate", "up"),
    ("glm4", "gate_up_proj"): _even("gate", "up"),
}
"""By model_type and the layer's name; read off the forward passes of transformers 5."""
FUSED_ATTENTION = frozenset(name for _, name in _KNOWN) - {"gate_up_proj"}
"""Names of layers that hold q, k and v."""
