"""GGUF files: every tensor read back, refused where llama.cpp would read something else, and llama.cpp itself
where it is.
"""

import json

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from core.base_model.skeleton import skeleton
from core.errors import InvalidConfig, InvalidModel
from core.export.config import ExportConfig
from core.gguf.check import check_adapter_gguf, check_merged_gguf, llama_cpp_is_installed
from core.gguf.vocabulary import vocabulary
from core.gguf.write import write_adapter_gguf, write_merged_gguf
from core.reporting import silent
from tests.conftest import VOCABULARY, _save, make_llama
from tests.core.helpers import load, random_adapter

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
KINDS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "llama 3": lambda: LlamaForCausalLM(
        LlamaConfig(**SHAPE, tie_word_embeddings=False, rope_parameters=LLAMA3)
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None)),
    "qwen 3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=32)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**SHAPE, head_dim=16)),
}


@pytest.fixture
def kinds(tmp_path, tokenizer, tiny_qwen):
    def make(kind):
        if kind == "qwen 2":
            return tiny_qwen
        torch.manual_seed(0)
        model = KINDS[kind]()
        for name, parameter in model.named_parameters():
            if "norm" in name:
                torch.nn.init.normal_(parameter, mean=1.0 if kind != "gemma" else 0.0, std=0.2)
        return _save(model, tokenizer, tmp_path / "base")

    return make


def written(folder, target, dtype="auto"):
    adapter = random_adapter(load(folder))
    write_merged_gguf(folder, adapter, skeleton(folder).transposed, target, silent, "mine", dtype)
    return adapter


@pytest.mark.parametrize("dtype", ["auto", "q8_0"])
@pytest.mark.parametrize("kind", [*KINDS, "qwen 2"])
def test_a_merged_model_reads_back_and_llama_cpp_agrees(kinds, tmp_path, kind, dtype):
    folder = kinds(kind)
    adapter = written(folder, tmp_path / "m.gguf", dtype=dtype)
    found = check_merged_gguf(
        folder, adapter, skeleton(folder).transposed, tmp_path / "m.gguf", dtype, silent
    )
    assert found.passed, found.sentence()
    assert (found.answer_agreement is not None) == llama_cpp_is_installed()
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert "<|im_start|>" in fields["tokenizer.chat_template"].contents()
    assert fields["general.name"].contents() == "mine"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_every_number_format_is_as_exact_as_it_can_be(kinds, tmp_path, monkeypatch, dtype):
    monkeypatch.setattr("core.gguf.check.llama_cpp_is_installed", lambda: False)
    folder = kinds("llama")
    adapter = written(folder, tmp_path / "m.gguf", dtype=dtype)
    found = check_merged_gguf(folder, adapter, frozenset(), tmp_path / "m.gguf", dtype, silent)
    assert found.passed, found.sentence()
    assert (found.worst_error == 0) == (dtype == "float32")


@pytest.fixture
def by_transformers(monkeypatch):
    """Has transformers, which reads GGUF files by code of its own, answer in llama.cpp's place."""

    def answer(file, lora, text, ids):
        given = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
        model = AutoModelForCausalLM.from_pretrained(**given, dtype=torch.float32).eval()
        with torch.no_grad():
            likeliest = model(input_ids=torch.tensor([ids])).logits[0].argmax(-1).tolist()
        return AutoTokenizer.from_pretrained(**given)(text, add_special_tokens=False)["input_ids"], likeliest

    monkeypatch.setattr("core.gguf.check.llama_cpp_is_installed", lambda: True)
    monkeypatch.setattr("core.gguf.check.llama_cpp_answer", answer)


@pytest.mark.parametrize("kind", ["llama", "qwen 2"])
def test_what_rounding_changes_in_an_answer_is_told_and_is_no_failure(kinds, tmp_path, by_transformers, kind):
    folder = kinds(kind)
    adapter = written(folder, tmp_path / "m.gguf", dtype="q4_0")
    found = check_merged_gguf(folder, adapter, frozenset(), tmp_path / "m.gguf", "q4_0", silent)
    assert found.passed, found.sentence()
    assert found.answer_agreement >= 0.95
    assert found.rounding_agreement < 0.7, "rounding changes too little for this to be tested"
    assert "of one without rounding stay the likeliest" in found.sentence()


def test_an_answer_that_the_files_numbers_do_not_give_is_a_failure(
    kinds, tmp_path, by_transformers, monkeypatch
):
    folder = kinds("llama")
    adapter = written(folder, tmp_path / "m.gguf", dtype="q4_0")
    monkeypatch.setattr(
        "core.gguf.check.llama_cpp_answer", lambda file, lora, text, ids: (ids[: len(ids) - 63], ids)
    )
    found = check_merged_gguf(folder, adapter, frozenset(), tmp_path / "m.gguf", "q4_0", silent)
    assert not found.passed
    assert "llama.cpp answers something else" in found.sentence()


def test_a_file_that_is_not_the_merge_is_found_out(kinds, tmp_path, monkeypatch):
    monkeypatch.setattr("core.gguf.check.llama_cpp_is_installed", lambda: False)
    folder = kinds("llama")
    adapter = written(folder, tmp_path / "m.gguf")
    layer = adapter.layers["model.layers.1.mlp.up_proj"]
    layer.B[3] += 1.0
    found = check_merged_gguf(folder, adapter, frozenset(), tmp_path / "m.gguf", "auto", silent)
    assert not found.passed
    assert "blk.1.ffn_up.weight differs" in found.sentence()


def test_an_adapter_alone_reads_back_and_gives_the_same_answers_in_llama_cpp(kinds, tmp_path):
    folder = kinds("llama")
    base = load(folder)
    adapter = random_adapter(base)
    write_adapter_gguf(folder, adapter, tmp_path / "a.gguf", "mine")
    assert check_adapter_gguf(folder, adapter, tmp_path / "a.gguf").passed
    adapter.layers["model.layers.0.self_attn.q_proj"].A[0, 0] += 1.0
    assert not check_adapter_gguf(folder, adapter, tmp_path / "a.gguf").passed


@pytest.mark.skipif(not llama_cpp_is_installed(), reason="llama.cpp's Python binding is not installed")
def test_llama_cpp_applies_the_adapter_as_we_do(kinds, tmp_path):
    from core.gguf.check import llama_cpp_answer
    from core.lora.bank import AdapterBank

    folder = kinds("llama")
    base = load(folder)
    adapter, nothing = random_adapter(base, size=0.3), random_adapter(base, size=0.0)
    write_merged_gguf(folder, nothing, frozenset(), tmp_path / "base.gguf", silent, "base", "float32")
    write_adapter_gguf(folder, adapter, tmp_path / "a.gguf", "mine")
    bank = AdapterBank(base.layers, list(adapter.layers), slots=1, rank=4)
    bank.load(0, adapter)
    ids = list(range(5, 45))
    with bank.use(), torch.no_grad():
        expected = base.model(input_ids=torch.tensor([ids])).logits[0].argmax(-1).tolist()
    _, found = llama_cpp_answer(tmp_path / "base.gguf", tmp_path / "a.gguf", "x", ids)
    _, without = llama_cpp_answer(tmp_path / "base.gguf", None, "x", ids)
    assert np.mean(np.array(found) == expected) > 0.95
    assert np.mean(np.array(without) == expected) < 0.5


def sentencepiece_like(prepend):
    bare = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    steps = [normalizers.Prepend("▁")] if prepend else []
    bare.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    specials = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)]]
    corpus = ["▁hello▁world▁how▁are▁you▁fine▁thanks▁the▁quick▁brown▁fox"] * 4
    bare.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=specials))
    bare.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    about = json.loads(bare.to_str())
    about["added_tokens"] = [one for one in about["added_tokens"] if not one["content"].startswith("<0x")]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(about)),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    fast.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}</s>{% endfor %}"
    return fast


@pytest.mark.parametrize("prepend", [True, False])
def test_a_sentencepiece_vocabulary_keeps_its_bytes_scores_and_spaces(tmp_path, prepend):
    folder = make_llama(tmp_path / "base", sentencepiece_like(prepend))
    found = vocabulary(folder, VOCABULARY + 2)
    assert (found.model, found.space_prefix) == ("llama", prepend)
    assert found.tokens[-1] == f"[PAD{VOCABULARY + 1}]"
    assert found.types[found.tokens.index("<0x41>")] == gguf.TokenType.BYTE
    assert found.types[found.tokens.index("</s>")] == gguf.TokenType.CONTROL
    assert found.types[-1] == gguf.TokenType.UNUSED
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    first, second = ("".join(merges[at]) for at in (0, 1))
    assert found.scores[found.tokens.index(first)] > found.scores[found.tokens.index(second)] > -len(merges)
    adapter = written(folder, tmp_path / "m.gguf")
    checked = check_merged_gguf(folder, adapter, frozenset(), tmp_path / "m.gguf", "auto", silent)
    assert checked.passed, checked.sentence()


QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| "
    r"?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [(QWEN2, "qwen2"), (QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|", 1), "llama-bpe"), ("x", None)],
)
def test_the_way_text_is_split_has_a_name_or_is_refused(tiny_llama, tmp_path, pattern, name):
    import shutil

    folder = shutil.copytree(tiny_llama, tmp_path / "copy")
    about = json.loads((folder / "tokenizer.json").read_text())
    about["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }
    (folder / "tokenizer.json").write_text(json.dumps(about))
    if name is None:
        with pytest.raises(InvalidModel, match=r"no name in llama\.cpp"):
            vocabulary(folder, VOCABULARY)
    else:
        assert vocabulary(folder, VOCABULARY).pre == name


def test_what_gguf_cannot_hold_is_refused_in_words(tiny_gpt2, tmp_path):
    with pytest.raises(InvalidModel, match="GPT2LMHeadModel cannot be written as GGUF"):
        written(tiny_gpt2, tmp_path / "m.gguf")
    with pytest.raises(InvalidConfig, match="q8_0 is a kind of GGUF weights"):
        ExportConfig(format="safetensors", dtype="q8_0")
    assert not (tmp_path / "m.gguf").exists()
