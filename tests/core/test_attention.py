"""The attention of resident bases: windows, models it cannot stand for, and what stays switched on."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from core.base_model.attention import Packed, attend
from core.generate.config import GenerationConfig
from core.generate.decode import Decoder, RowRequest
from tests.conftest import VOCABULARY, _save
from tests.core.helpers import load

SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}


@pytest.fixture
def windowed(tmp_path, tokenizer):
    """A Mistral that sees eight tokens back."""
    torch.manual_seed(0)
    config = MistralConfig(**SIZES, **HEADS, head_dim=8, sliding_window=8, initializer_range=0.15)
    return _save(MistralForCausalLM(config), tokenizer, tmp_path / "mistral")


def test_a_sliding_window_is_kept_in_a_pass_and_in_packed_blocks(windowed):
    base = load(windowed)
    ids = torch.arange(3, 43).view(1, 40)
    oracle = AutoModelForCausalLM.from_pretrained(windowed, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = oracle(input_ids=ids).logits
        torch.testing.assert_close(
            base.model(input_ids=ids, use_cache=False).logits, expected, atol=1e-5, rtol=1e-5
        )
        positions = torch.tensor([[*range(15), *range(25)]])
        with attend(base.attention, [Packed([0, 15, 40])] * 2):
            packed = base.model(input_ids=ids, position_ids=positions, use_cache=False).logits
        torch.testing.assert_close(packed[:, 15:], oracle(input_ids=ids[:, 15:]).logits, atol=1e-5, rtol=1e-5)


def test_a_sliding_window_is_kept_while_decoding(windowed, monkeypatch):
    monkeypatch.setattr("core.generate.prompt_reading.PREFILL", 16)
    base, prompts = load(windowed), [list(range(3, 43)), list(range(50, 55))]
    oracle = AutoModelForCausalLM.from_pretrained(windowed, dtype=torch.float32).eval()
    decoder = Decoder(
        base, None, [RowRequest(one, 0, GenerationConfig(max_tokens=20, temperature=0.0)) for one in prompts]
    )
    rows = {row.index: row for row in decoder._rows}
    list(decoder.steps())
    for index, prompt in enumerate(prompts):
        expected = oracle.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[
            0, len(prompt) :
        ]
        assert rows[index].ids == expected.tolist()
