"""torchtune's own names, and the order in which it keeps the rows of queries and keys.

It follows Meta's: the two numbers that a rotation turns are neighbours, where transformers keeps all first
ones of a head before all second ones. Qwen 2 is kept as in transformers. Source: convert_weights in
torchtune.models and in torchtune.models.qwen2. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from core.errors import InvalidAdapter

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = {
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.output_proj": "self_attn.o_proj",
    "mlp.w1": "mlp.gate_proj",
    "mlp.w2": "mlp.down_proj",
    "mlp.w3": "mlp.up_proj",
}
_NEIGHBOURS = ("llama", "mistral", "gemma")
_HALVES = ("qwen2",)


def in_transformers_words(path: str) -> str:
    """A path as transformers has it; one that is not torchtune's stays as it is."""
    if path == "output":
        return "lm_head"
    head, dot, name = path.rpartition(".")
    layer, _, part = head.rpartition(".")
    known = _NAMES.get(f"{part}.{name}")
    return f"{layer}.{known}" if dot and known and layer else path


def is_of_torchtune(path: str) -> bool:
    """Whether the path is in torchtune's own words."""
    return in_transformers_words(path) != path


def rearranged(path: str, B: Tensor, base: Mapping[str, Any]) -> Tensor:
    """A factor B [out, r] of the layer at this path, in torchtune's words, in the order of transformers.

    base: the content of the base's config.json. Raises InvalidAdapter for a family whose order is not known.
    """
    kind = str(base.get("model_type") or "unknown")
    if kind not in (*_NEIGHBOURS, *_HALVES):
        raise InvalidAdapter(
            f"These are torchtune's own names; its order of rows is not known here for {kind} models, only "
            f"for {', '.join((*_NEIGHBOURS, *_HALVES))}. Have torchtune save the adapter in PEFT's format."
        )
    heads = {"q_proj": base.get("num_attention_heads"), "k_proj": base.get("num_key_value_heads")}
    count = heads.get(path.rpartition(".")[2]) or base.get("num_attention_heads")
    if kind in _HALVES or not path.endswith(("attn.q_proj", "attn.k_proj")):
        return B
    if not isinstance(count, int) or count < 1 or B.shape[0] % (2 * count):
        raise InvalidAdapter(f"{path[:120]} has {B.shape[0]} rows, which {count} heads cannot share evenly.")
    size = B.shape[0] // count
    return B.view(count, size // 2, 2, -1).transpose(1, 2).reshape(B.shape)
