"""Bases whose files contradict each other: refused when they are added and when they are loaded."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.base_model.describe import describe
from core.base_model.soundness import require_sound
from core.base_model.tensors import check_tensors
from core.errors import InvalidInput, InvalidModel
from tests.core.helpers import load

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
A_LAYER = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tiny_llama, tmp_path):
    """A sound base that can be changed."""
    return shutil.copytree(tiny_llama, tmp_path / "mine")


def _weights(folder, change):
    path = folder / "model.safetensors"
    found = load_file(path)
    change(found)
    save_file(found, path, metadata={"format": "pt"})


def _json(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _rename(weights, how):
    for name in list(weights):
        weights[how(name)] = weights.pop(name)


def _require(folder):
    """As when it is added."""
    require_sound(folder)
    describe(folder)


FAULTY_WEIGHTS = {
    "a tensor is missing": (lambda w: w.pop(A_LAYER), f"missing: {A_LAYER}"),
    "a layer is missing": (
        lambda w: [w.pop(name) for name in list(w) if "layers.1." in name],
        "missing: .* and 6 more",
    ),
    "a tensor is left over": (lambda w: w.update(extra=torch.zeros(2)), "does not have: extra"),
    "a layer is left over": (
        lambda w: w.update({name.replace("rs.1.", "rs.2."): w[name].clone() for name in list(w)}),
        r"does not have: model\.layers\.2",
    ),
    "another shape": (
        lambda w: w.update({A_LAYER: torch.zeros(32, 64)}),
        r"up_proj.weight is \[32, 64\] instead of \[64, 32\]",
    ),
    "an empty tensor": (lambda w: w.update({A_LAYER: torch.zeros(0, 32)}), "is empty"),
    "integers": (lambda w: w.update({A_LAYER: w[A_LAYER].to(torch.int8)}), "stored as I8"),
    "8 bits": (lambda w: w.update({A_LAYER: w[A_LAYER].to(torch.float8_e4m3fn)}), "stored as F8_E4M3"),
    "NaN": (lambda w: w[A_LAYER].view(-1)[-1:].fill_(torch.nan), f"{A_LAYER} .*NaN or infinite"),
    "infinite": (lambda w: w[EMBEDDING].view(-1)[:1].fill_(-torch.inf), "NaN or infinite"),
    "NaN in 16 bits": (
        lambda w: w.update({A_LAYER: torch.full((64, 32), torch.nan, dtype=torch.bfloat16)}),
        "NaN or infinite",
    ),
    "another head than the tied one": (
        lambda w: w.update({HEAD: w[EMBEDDING] + 1}),
        "tie_word_embeddings = true, but .* other numbers",
    ),
    "names with and without prefix": (
        lambda w: w.update({A_LAYER.removeprefix("model."): w[A_LAYER].clone()}),
        "which are one tensor of the model",
    ),
    "another prefix": (lambda w: _rename(w, lambda name: f"module.{name}"), "tensors are missing"),
}


@pytest.mark.parametrize("what", FAULTY_WEIGHTS)
def test_weights_that_are_not_the_architectures_are_refused(folder, what):
    change, said = FAULTY_WEIGHTS[what]
    _weights(folder, change)
    with pytest.raises(InvalidModel, match=said):
        _require(folder)


@pytest.mark.parametrize(
    "what",
    ["a tensor is missing", "a tensor is left over", "another shape", "another head than the tied one"],
)
def test_loading_takes_no_number_from_chance(folder, what):
    """Bases that came in before anybody compared them."""
    change, said = FAULTY_WEIGHTS[what]
    _weights(folder, change)
    with pytest.raises(InvalidModel, match=said):
        load(folder)


RIGHT_WEIGHTS = {
    "as saved": lambda w: None,
    "without the model's prefix": lambda w: _rename(w, lambda name: name.removeprefix("model.")),
    "with the tied head": lambda w: w.update({HEAD: w[EMBEDDING].clone()}),
    "with buffers of earlier releases": lambda w: w.update(
        {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    ),
    "of several formats": lambda w: w.update(
        {A_LAYER: w[A_LAYER].bfloat16(), EMBEDDING: w[EMBEDDING].half()}
    ),
}


@pytest.mark.parametrize("what", RIGHT_WEIGHTS)
def test_weights_that_are_right_are_accepted_and_loaded(folder, tiny_llama, what):
    _weights(folder, RIGHT_WEIGHTS[what])
    _require(folder)
    found, wanted = load(folder), load(tiny_llama)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(found.model(ids).logits, wanted.model(ids).logits, atol=0.05, rtol=0)
    assert found.model.lm_head.weight is found.model.model.embed_tokens.weight


def _split(folder, *names):
    """The weights in two files, with the index that says so."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    halves = sorted(weights)[::2], sorted(weights)[1::2]
    for name, half in zip(names, halves, strict=True):
        save_file({one: weights[one] for one in half}, folder / name, metadata={"format": "pt"})
    places = {one: name for name, half in zip(names, halves, strict=True) for one in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return weights


def test_two_sets_of_weights_in_one_folder_are_refused(folder):
    weights = _split(folder, "a.safetensors", "b.safetensors")
    _require(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidModel, match="two sets of weights"):
        _require(folder)


def test_a_tensor_that_stands_in_two_files_is_refused(folder):
    weights = _split(folder, "a.safetensors", "b.safetensors")
    half = load_file(folder / "b.safetensors")
    save_file(half | {EMBEDDING: weights[EMBEDDING]}, folder / "b.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidModel, match=r"stands in .*\.safetensors and in .*\.safetensors"):
        _require(folder)


def test_files_that_no_index_names_are_loaded_as_they_are_hashed(folder, tiny_llama):
    """An index that names a file wrongly is no matter as long as every tensor is there once."""
    _split(folder, "a.safetensors", "b.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    names = {"a.safetensors": "b.safetensors", "b.safetensors": "a.safetensors"}
    index["weight_map"] = {name: names[file] for name, file in index["weight_map"].items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    _require(folder)
    wanted = load(tiny_llama).model.state_dict()
    assert all(torch.equal(one, wanted[name]) for name, one in load(folder).model.state_dict().items())
    (folder / "model.safetensors.index.json").unlink()
    assert all(torch.equal(one, wanted[name]) for name, one in load(folder).model.state_dict().items())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"hidden_size": 0}, "hidden_size|other shapes"),
        ({"hidden_size": 1_000_000_000}, "whole number up to 100,000,000"),
        ({"vocab_size": 0}, "vocab_size|other shapes"),
        ({"vocab_size": 99_999_999}, r"embed_tokens.weight is \[320, 32\] instead of"),
        ({"vocab_size": 321}, r"is \[320, 32\] instead of \[321, 32\]"),
        ({"intermediate_size": 48}, "other shapes"),
        ({"num_hidden_layers": 1}, "tensors that it does not have"),
        ({"num_hidden_layers": 3}, "tensors are missing"),
        ({"num_hidden_layers": 9_999}, r"num_hidden_layers = 9,999, but its files hold 20 tensors"),
        ({"num_attention_heads": 0}, "config.json"),
        ({"num_attention_heads": 3}, "not a multiple of the number of attention heads"),
        ({"num_key_value_heads": 4}, "other shapes"),
        ({"num_key_value_heads": 0}, "transformers cannot"),
        ({"head_dim": 16}, "other shapes"),
        ({"max_position_embeddings": 0}, "max_position_embeddings = '0'"),
        ({"max_position_embeddings": -1}, "max_position_embeddings = '-1'"),
        ({"attention_bias": True}, "tensors are missing"),
        ({"tie_word_embeddings": False}, "missing: lm_head.weight"),
        ({"model_type": "qwen2"}, "contradicts itself: .*Qwen2ForCausalLM.*names LlamaForCausalLM"),
        ({"model_type": "qwen2", "architectures": None}, "tensors are missing"),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "tensors are missing"),
        ({"model_type": "clip", "architectures": None}, "no causal language model|cannot use config"),
        ({"model_type": "of nobody"}, "of nobody"),
        ({"hidden_act": "of nobody"}, "of nobody"),
        ({"rope_parameters": {"rope_type": "of nobody", "rope_theta": 1e4}}, "of nobody"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"text_config": {"quantization_config": {"quant_method": "x"}}}, "was quantised before"),
        ({"text_config": {"auto_map": {"AutoModel": "x.Y"}}}, "code of its own"),
    ],
    ids=str,
)
def test_a_configuration_that_contradicts_the_weights_is_refused(folder, values, said):
    _json(folder, "config.json", **values)
    with pytest.raises(InvalidModel, match=said) as refused:
        _require(folder)
    assert not any(word in str(refused.value) for word in ("KeyError", "TypeError", "AttributeError"))


@pytest.mark.parametrize(
    "values",
    [
        {"_attn_implementation": "kernels-community/flash-attn"},
        {"attn_implementation": "flash_attention_2"},
        {"_experts_implementation": "of nobody"},
        {"torch_dtype": "float16", "dtype": "of nobody"},
        {"transformers_weights": "other.safetensors"},
        {"return_dict": False, "output_hidden_states": True, "output_attentions": True},
        {"torchscript": True},
        {"fusion_config": {"patch_embeddings": True}},
    ],
    ids=str,
)
def test_no_field_of_a_configuration_chooses_how_or_what_is_loaded(folder, tiny_llama, values):
    save_file({"x": torch.zeros(1)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    _json(folder, "config.json", **values)
    _require(folder)
    found, ids = load(folder), torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(found.model(ids).logits, load(tiny_llama).model(ids).logits)
    assert found.model.config._attn_implementation == "lora_workbench"


def test_tokenizers_that_do_not_fit_are_refused(folder, tokenizer):
    tokenizer = type(tokenizer).from_pretrained(folder)
    tokenizer.add_tokens(["<beyond>", "<further>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InvalidModel, match=r"has 320 rows: '<(beyond|further)>' \(\d+\)"):
        _require(folder)
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "of nobody"}}')
    with pytest.raises(InvalidModel, match="cannot load the tokenizer"):
        _require(folder)
    (folder / "tokenizer.json").write_text("[1, 2")
    with pytest.raises(InvalidModel, match="cannot load the tokenizer"):
        _require(folder)


def test_a_pointer_of_git_lfs_is_told_so(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(
        InvalidInput, match=r"model\.safetensors is only a pointer of Git LFS; fetch the file"
    ):
        _require(folder)


def test_what_is_missing_is_known_before_a_number_is_read(folder):
    assert {one.device.type for one in check_tensors(folder).parameters()} == {"meta"}


@pytest.mark.parametrize("ends", ["x", 1.5, [[1]], {"a": 1}], ids=str)
def test_end_tokens_that_are_no_tokens_are_refused(folder, ends):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(InvalidModel, match="eos_token_id"):
        _require(folder)
    with pytest.raises(InvalidModel, match="eos_token_id"):
        load(folder)


HOSTILE = {
    "chat_template.jinja": [b"\xff\xfe"],
    "tokenizer_config.json": [b"{", b"[1]", b'{"eos_token": 5}', b'{"tokenizer_class": 5}'],
    "tokenizer.json": [b"", b"{}", b"null", b"\xff", b'{"added_tokens": "x"}'],
    "special_tokens_map.json": [b"[1]"],
    "generation_config.json": [b"[1]", b"{"],
    "config.json": [b"[1]", b"{", b"\xff"],
    "model.safetensors.index.json": [b"{", b"[]", b"{}", b'{"weight_map": [1]}', b'{"weight_map": {"a": 5}}'],
    "model.safetensors": [b"", b"\xff" * 64],
}


@pytest.mark.parametrize(
    ("name", "content"), [(name, content) for name, contents in HOSTILE.items() for content in contents]
)
def test_files_that_cannot_be_read_are_refused_with_a_sentence(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(InvalidInput) as refused:
        _require(folder)
    assert len(str(refused.value)) > 40


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"architectures": "LlamaForCausalLM"}, "expected a list with the name"),
        ({"model_type": 5}, r"config\.json"),
        ({"model_type": ["llama"]}, r"config\.json"),
        ({"rms_norm_eps": float("nan")}, "no finite numbers"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "x"}}, "transformers cannot"),
        ({"rope_scaling": {"type": "linear"}, "rope_parameters": None}, "factor"),
        ({"per_layer_config": {"0": {"num_attention_heads": 2}}}, "transformers cannot"),
        ({"is_causal": False}, "computed as transformers computes it"),
        ({"to_dict": "x"}, "transformers cannot"),
        ({"attribute_map": {"hidden_size": "x"}}, "transformers cannot"),
        ({"eos_token_id": "x"}, "eos_token_id"),
    ],
    ids=str,
)
def test_a_configuration_that_is_none_is_refused_with_a_sentence(folder, values, said):
    _json(folder, "config.json", **values)
    with pytest.raises(InvalidModel, match=said):
        _require(folder)
