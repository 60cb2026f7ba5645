"""Tiny models of the families that transformers builds, and which way each goes.

`python -m tests.core.families` writes core/base_model/FAMILIES.md anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel

from core.base_model.model_config import model_class
from core.lora.expert_layer import expert_shapes
from core.lora.wrapping import text_prefixes
from tests.conftest import VOCABULARY

TINY = {
    "attention_dropout": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": 1,
    "d_model": 32,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "decoder_layers": 2,
    "embd_pdrop": 0.0,
    "embed_dim": 32,
    "embedding_size": 32,
    "eos_token_id": 2,
    "ffn_dim": 64,
    "head_dim": 8,
    "hidden_size": 32,
    "initializer_range": 0.15,
    "intermediate_size": 64,
    "is_decoder": True,
    "kv_lora_rank": 16,
    "linear_key_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_value_head_dim": 8,
    "mamba_d_state": 8,
    "max_position_embeddings": 128,
    "max_seq_len": 128,
    "moe_intermediate_size": 16,
    "n_embd": 32,
    "n_group": 1,
    "n_head": 4,
    "n_heads": 4,
    "n_layer": 2,
    "n_layers": 2,
    "n_positions": 128,
    "n_routed_experts": 4,
    "num_attention_heads": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "num_layers": 2,
    "num_local_experts": 4,
    "pad_token_id": 0,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "resid_pdrop": 0.0,
    "rotary_dim": 8,
    "shared_expert_intermediate_size": 16,
    "sliding_window": 8,
    "state_size": 8,
    "topk_group": 1,
    "v_head_dim": 8,
    "vocab_size": VOCABULARY,
}
_ALL_HEADS = {"num_key_value_heads": 4}

QUICK: dict[str, dict[str, object]] = {
    "afmoe": {},
    "apertus": {},
    "arcee": {},
    "biogpt": {},
    "bitnet": {},
    "codegen": {},
    "cohere": {},
    "cohere2": {},
    "cwm": {},
    "deepseek_v2": _ALL_HEADS,
    "deepseek_v3": _ALL_HEADS,
    "ernie4_5": {},
    "ernie4_5_moe": {},
    "exaone4": {},
    "flex_olmo": {},
    "gemma": {},
    "gemma3_text": {},
    "gemma3n_text": {
        "activation_sparsity_pattern": [0.0, 0.0],
        "hidden_size_per_layer_input": 8,
        "intermediate_size": [64, 64],
        "laurel_rank": 4,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": 300,
    },
    "gemma4_text": {
        "global_head_dim": 8,
        "hidden_size_per_layer_input": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": VOCABULARY,
    },
    "glm": {},
    "glm4": {},
    "glm4_moe": {},
    "glm4_moe_lite": _ALL_HEADS,
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neox": {},
    "gptj": {},
    "granite": {"logits_scaling": 4.0, "attention_multiplier": 0.2},
    "granitemoe": {},
    "helium": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {},
    "jais2": {},
    "llama": {},
    "minicpm3": _ALL_HEADS,
    "minimax_m2": {},
    "ministral": {},
    "ministral3": {},
    "mistral": {},
    "mixtral": {},
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {},
    "olmoe": {},
    "opt": {"word_embed_proj_dim": 32},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen2_moe": {},
    "qwen3": {},
    "qwen3_moe": {},
    "seed_oss": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
}
GENERAL: dict[str, dict[str, object]] = {
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "attn_layer_indices": [1]},
    "bloom": {},
    "diffllama": {},
    "doge": {},
    "falcon": {},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
    "falcon_mamba": {},
    "gemma2": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gpt_neox_japanese": {},
    "gpt_oss": {},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "mlp_layer_types": ["dense", "sparse"],
        "num_key_value_heads": 4,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {"no_rope_layers": [1, 0], "attention_chunk_size": 8, "attn_temperature_tuning": True},
    "mamba": {},
    "mamba2": {"chunk_size": 16, "expand": 2, "num_heads": 8, "head_dim": 8, "n_groups": 1},
    "minimax": {"layer_types": ["full_attention", "linear_attention"]},
    "mpt": {},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 8, "moe_shared_expert_intermediate_size": 16},
    "olmo_hybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "phimoe": {},
    "qwen3_5_moe_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "vaultgemma": {},
    "xglm": {},
}
PICTURES: dict[str, dict[str, object]] = {
    "gemma3": {},
    "idefics3": {},
    "internvl": {},
    "llava": {},
    "mistral3": {},
    "qwen2_5_vl": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    },
    "qwen2_vl": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
    "qwen3_5": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_vl": {},
    "smolvlm": {},
}
"""Models that read pictures, too; the values are those of the part that reads text."""
SLOW_EYES = {"qwen3_5"}
"""Those of them that go the general way."""
_EYES = {
    "deepstack_visual_indexes": [0],
    "depth": 2,
    "embed_dim": 32,
    "fullatt_block_indexes": [1],
    "hidden_size": 32,
    "image_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_heads": 2,
    "num_hidden_layers": 2,
    "out_hidden_size": 32,
    "patch_size": 8,
}
REFUSED: dict[str, dict[str, object]] = {
    "bart": {},
    "deepseek_v32": _ALL_HEADS,
    "openai-gpt": {},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "roberta": {},
    "rwkv": {},
    "zamba2": {  # whose hybrid layers share weights, beside which each has layers that it never computes
        "adapter_rank": 4,
        "chunk_size": 16,
        "layers_block_type": ["hybrid", "mamba", "hybrid"],
        "mamba_headdim": 8,
        "mamba_ngroups": 1,
        "n_mamba_heads": 8,
        "num_hidden_layers": 3,
        "num_mem_blocks": 1,
    },
}


def tiny_model(family: str, **values: object) -> PreTrainedModel:
    """A model of a family with random numbers, and these values in its configuration."""
    cls = CONFIG_MAPPING[family]
    config = _with_eyes(cls, values) if family in PICTURES else cls(**_known(cls, TINY) | values)
    torch.manual_seed(0)
    return model_class(config)._from_config(config, attn_implementation="eager")


def _with_eyes(cls: type[PretrainedConfig], values: Mapping[str, object]) -> PretrainedConfig:
    """Of a model that reads pictures, too."""
    usual: Any = cls()
    text, eyes = type(usual.get_text_config()), type(usual.vision_config)
    parts = {
        "text_config": {"model_type": text.model_type, **_known(text, TINY), **values},
        "vision_config": {"model_type": eyes.model_type, **_known(eyes, _EYES)},
    }
    return cls(**parts, **{name: VOCABULARY - 2 for name in ("image_token_id", "image_token_index")})


def _known(cls: type[PretrainedConfig], values: Mapping[str, object]) -> dict[str, object]:
    """Those of the values that a configuration of this class has."""
    known = {name for one in cls.__mro__ for name in getattr(one, "__annotations__", {})}
    return {name: value for name, value in values.items() if name in known | set(cls.attribute_map)}


def long_rope(original: int) -> dict[str, object]:
    """Other factors for rows that are longer than `original`."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 4.0}
    return {
        "original_max_position_embeddings": original,
        "rope_parameters": factors
        | {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": original},
    }


TRAINABLE = {**QUICK, **GENERAL, **PICTURES}
"""All that are not refused."""
SPEEDS = Path(__file__).with_name("family_speeds.json")
"""What tests/core/family_speeds.py has measured last."""
PAGE = Path(__file__).parents[2] / "core" / "base_model" / "FAMILIES.md"
_ABOUT = """# Families of models, and which way each is computed

A base is compared with transformers when it is added ([agreement.py](agreement.py)), and goes the quick way
if that computes the same. Where it does not, it goes the general way: transformers' own passes and caches,
with rows filled up instead of packed and nothing compiled or captured. What differs there, too, is refused.

This is what tiny models of each family came to, as `tests/core/test_families.py` checks: losses and
gradients of three adapters at once against PEFT, logits, three answers with three adapters against
`generate`, and a merge that is loaded again, within 1e-4 of the norm. Other configurations of a family, such
as another rotary embedding, may go another way; the base's page tells. Under Experts stands whether adapters
can be on each expert (`target_parameters`), as `tests/core/test_experts.py` checks; those that are linear
layers of their own are targeted as such.

Speed is that of training, in tokens a second as a share of a Llama's of the same shapes on the quick way
(1.0), measured on one thread of a CPU in float32: two layers 32 wide, two adapters on all linear layers, 12
rows of 12 to 90 letters for each, packed into blocks of 128 on the quick way and filled up on the general
one; the best of six rounds. At such widths most of it is the work around the layers, and it differs by a
fifth from one measurement to the next: it tells which families are slow, not how much a large base is.
Written by `python -m tests.core.families`, and with new figures by `python -m tests.core.family_speeds`.

"""


def page() -> str:
    """The text of FAMILIES.md."""
    ways = {
        "quick": QUICK,
        "general": GENERAL,
        "quick, text alone": {one: PICTURES[one] for one in PICTURES if one not in SLOW_EYES},
        "general, text alone": {one: PICTURES[one] for one in SLOW_EYES},
        "refused": REFUSED,
    }
    found = sorted((family, way) for way, families in ways.items() for family in families)
    speeds: dict[str, float] = json.loads(SPEEDS.read_text(encoding="utf-8"))
    rows = [_row(family, ways[way][family], way, speeds.get(family)) for family, way in found]
    head = ["| `model_type` | Class | Way | Experts | Speed |", "| --- | --- | --- | --- | --- |"]
    return _ABOUT + "\n".join([*head, *rows]) + "\n"


def _row(family: str, values: Mapping[str, object], way: str, speed: float | None) -> str:
    model = tiny_model(family, **values)
    experts = "" if way == "refused" else _experts(model)
    cells = f"`{family}`", type(model).__name__, way, experts, "–" if speed is None else f"{speed:.2g}"
    return f"| {' | '.join(cells)} |"


def _experts(model: PreTrainedModel) -> str:
    """What adapters can be on of the experts of a mixture."""
    if text_prefixes(model) == ("",) and any(map(expert_shapes, model.modules())):
        return "each its own"
    there = any(one.dim() == 3 and ".experts." in name for name, one in model.named_parameters())
    return "none" if there else ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
