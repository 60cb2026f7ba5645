"""Families of models that transformers builds: as transformers computes it, or refused with a sentence."""

import re
import shutil

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from core.base_model.describe import describe
from core.base_model.skeleton import skeleton
from core.base_model.soundness import require_sound
from core.data.formats import Example
from core.errors import InvalidInput, InvalidModel
from core.events import StepDone
from core.lora.bank import loaded_bank
from core.lora.config import LoraConfig
from core.merge.merge import merge_into_base
from core.reporting import silent
from core.train.config import TrainConfig
from tests.conftest import VOCABULARY, _save
from tests.core.helpers import load, random_adapter, train_alone

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
    "max_position_embeddings": 128,
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
    "topk_group": 1,
    "v_head_dim": 8,
    "vocab_size": VOCABULARY,
}
_ALL_HEADS = {"num_key_value_heads": 4}

COMPUTED: dict[str, dict[str, object]] = {
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
    "glm": {},
    "glm4": {},
    "glm4_moe": {},
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
    "minimax_m2": {},
    "ministral": {},
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
REFUSED: dict[str, dict[str, object]] = {
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "attn_layer_indices": [1]},
    "bart": {},
    "bloom": {},
    "doge": {},
    "falcon": {},
    "falcon_mamba": {},
    "gemma2": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gpt_oss": {},
    "jamba": {},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {"no_rope_layers": [1, 0], "attention_chunk_size": 8, "attn_temperature_tuning": True},
    "mamba": {},
    "mpt": {},
    "openai-gpt": {},
    "phimoe": {},
    "qwen3_next": {},
    "recurrent_gemma": {},
    "roberta": {},
    "rwkv": {},
    "xglm": {},
}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
ROWS = [Example(0, (), _LETTERS * 3 + "the end"), Example(1, (), "hello world how are you")]
_BARE = re.compile(r"\b[A-Z]\w*(Error|Exception)\b|Unexpected|Traceback")


@pytest.fixture
def saved(tokenizer, tmp_path):
    """Makes the folder of a tiny model of a family with random numbers."""

    def make(family, **values):
        if family not in CONFIG_MAPPING:
            pytest.skip(f"this transformers has no {family}")
        cls = CONFIG_MAPPING[family]
        known = {name for one in cls.__mro__ for name in getattr(one, "__annotations__", {})}
        given = {name: value for name, value in TINY.items() if name in known | set(cls.attribute_map)}
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(cls(**given | values), attn_implementation="eager")
        return _save(model, tokenizer, tmp_path / family)

    return make


def _added(folder):
    """As a job adds it."""
    require_sound(folder)
    describe(folder)
    return skeleton(folder)


@torch.no_grad()
def _losses(model, rows):
    """The mean loss of a token over rows, each of them alone, as transformers computes it."""
    losses = []
    for ids in rows:
        logits = model(input_ids=ids[None]).logits[0, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none"))
    return float(torch.cat(losses).mean())


def _takes_another_attention(family):
    """Whether transformers lets its attention be replaced: some families only do since lately."""
    return AutoModelForCausalLM._model_mapping[CONFIG_MAPPING[family]]._can_set_attn_implementation()


def _is_as_transformers(folder, tmp_path):
    """Logits and the first step's loss of a base past its windows, and what a merge of it makes."""
    layers, base = _added(folder), load(folder)
    oracle = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    rows = [torch.tensor(base.renderer.render(one).ids) for one in ROWS]
    assert len(rows[0]) > 4 * TINY["sliding_window"]
    with torch.no_grad():
        wanted = [oracle(input_ids=ids[None]).logits for ids in rows]
        found = [base.model(input_ids=ids[None], use_cache=False).logits for ids in rows]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-4)
    train = TrainConfig(max_steps=1, micro_batch_size=2, max_length=len(rows[0]) + len(rows[1]))
    _, events = train_alone(base, ROWS, LoraConfig(rank=2), train, 0)
    step = next(event for event in events if isinstance(event, StepDone))
    assert step.loss == pytest.approx(_losses(oracle, rows), abs=1e-4)
    adapter, merged = random_adapter(base, rank=2), tmp_path / f"{folder.name} merged"
    merged.mkdir()
    shutil.copy(folder / "config.json", merged)
    merge_into_base(folder, adapter, layers.transposed, merged, silent, {})
    with torch.no_grad(), loaded_bank(base.layers, [adapter]).use():
        wanted = base.model(input_ids=rows[1][None], use_cache=False).logits
    found = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()(input_ids=rows[1][None])
    torch.testing.assert_close(found.logits, wanted, atol=2e-3, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # GPT BigCode's
@pytest.mark.parametrize("family", COMPUTED)
def test_a_family_is_computed_as_transformers_computes_it(saved, tmp_path, family):
    if family in CONFIG_MAPPING and not _takes_another_attention(family):
        pytest.skip(f"the attention of this transformers' {family} is code of its own")
    _is_as_transformers(saved(family, **COMPUTED[family]), tmp_path)


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_is_computed_otherwise_is_refused_when_it_is_added(saved, family):
    folder = saved(family, **REFUSED[family])
    with pytest.raises(InvalidModel) as refused:
        _added(folder)
    assert not _BARE.search(str(refused.value))
    assert len(str(refused.value)) > 60
    with pytest.raises(InvalidInput):
        load(folder)


@pytest.mark.parametrize("family", ["phi3", "llama"])
def test_a_rotary_embedding_that_changes_with_the_batch_is_refused(saved, tmp_path, family):
    with pytest.raises(InvalidModel, match="longest row in a batch"):
        _added(saved(family, **_long_rope(32)))
    _is_as_transformers(saved(family, **_long_rope(TINY["max_position_embeddings"])), tmp_path)


def _long_rope(original):
    """Other factors for rows that are longer than `original`."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 4.0}
    return {
        "original_max_position_embeddings": original,
        "rope_parameters": factors
        | {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": original},
    }


def test_there_are_fifty_families():
    assert len([family for family in {**COMPUTED, **REFUSED} if family in CONFIG_MAPPING]) >= 50
