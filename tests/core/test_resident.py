"""What is resident is known by all that decides its answers, not by its weights alone."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from core.base_model.fingerprint import fingerprint, stat_key
from core.base_model.source import BaseSource
from core.base_model.tokenizer import load_tokenizer
from core.data.rendering import Renderer
from core.data.tokens import token_path
from core.engine import AnswerRequest, Engine
from core.errors import BaseTooLarge, WorkbenchError
from core.generate.config import GenerationConfig
from core.train.memory import ran_out_of_memory

ASKED = [{"role": "user", "content": "hello"}]


def _source(folder, template=""):
    return BaseSource(folder.name, folder, fingerprint(folder), stat_key(folder), template)


def _other_template(folder):
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m['role'] }} ZZ {{ m['content'] }}<|im_end|>{% endfor %}"
    )


def _other_tokenizer(folder):
    about = json.loads((folder / "tokenizer.json").read_text())
    about["model"]["merges"] = about["model"]["merges"][:-20]
    (folder / "tokenizer.json").write_text(json.dumps(about))


def _other_special_token(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<|endoftext|>"}))


def _other_end(folder):
    about = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(about | {"eos_token_id": [7, 8]}))


TRAITS = [_other_template, _other_tokenizer, _other_special_token, _other_end]


@pytest.fixture
def twins(tiny_llama, tmp_path):
    """Makes two folders with equal weights that differ in one trait."""

    def make(change):
        one, two = (shutil.copytree(tiny_llama, tmp_path / name) for name in ("one", "two"))
        change(two)
        assert fingerprint(one) == fingerprint(two)
        return one, two

    return make


@pytest.fixture
def engine():
    return Engine(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("change", TRAITS)
def test_bases_with_equal_weights_keep_what_is_their_own(twins, engine, change):
    one, two = twins(change)
    for folder in (one, two, one):
        base = engine.load_base(_source(folder))
        own = load_tokenizer(folder)
        assert base.name == folder.name
        assert base.renderer.encode_prompt(ASKED) == Renderer(own).encode_prompt(ASKED)
        assert base.tokenizer.special_tokens_map == own.special_tokens_map
        assert base.end_token_ids() >= ({7, 8} if change is _other_end and folder.name == "two" else set())
        assert 7 not in base.end_token_ids() or folder.name == "two"


def test_rendered_rows_are_kept_by_all_that_renders_them(tiny_llama, tmp_path):
    """A template may name any special token, not only the end token."""
    one, two = (shutil.copytree(tiny_llama, tmp_path / name) for name in ("one", "two"))
    settings = json.loads((two / "tokenizer_config.json").read_text())
    (two / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": "<|endoftext|>"}))
    places = {token_path("d" * 64, Renderer(load_tokenizer(folder)), tmp_path) for folder in (one, two, one)}
    assert len(places) == 2


def test_what_is_edited_in_the_folder_of_a_resident_base_counts(tiny_llama, tmp_path, engine):
    folder = shutil.copytree(tiny_llama, tmp_path / "mine")
    source = _source(folder)
    engine.load_base(source)
    _other_template(folder)
    assert "ZZ" in engine.load_base(source).tokenizer.chat_template


def test_a_twin_answers_while_the_other_does_and_neither_notices(twins, engine):
    """One model in memory serves both, each with its own template."""
    one, two = (_source(folder) for folder in twins(_other_template))
    ask = [AnswerRequest(ASKED, None, GenerationConfig(max_tokens=4, temperature=0.0))]
    first = engine.answer(one, ask)
    second = engine.answer(two, ask)
    assert first._base.model is second._base.model
    prompts = [decoder._rows[0].prompt for decoder in (first, second)]
    assert prompts == [
        Renderer(load_tokenizer(one.folder)).encode_prompt(ASKED),
        Renderer(load_tokenizer(two.folder)).encode_prompt(ASKED),
    ]
    for decoder in (second, first):
        assert list(decoder.steps())


def test_equal_weights_with_another_configuration_are_another_model(twins, engine):
    """What config.json says is computed, whether a fingerprint knows the field or not."""

    def otherwise(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))

    one, two = (_source(folder) for folder in twins(otherwise))
    decoder = engine.answer(one, [AnswerRequest(ASKED, None, GenerationConfig(max_tokens=4))])
    assert engine.free_for(one)
    assert not engine.free_for(two)
    with pytest.raises(WorkbenchError, match="one is answering right now"):
        engine.load_base(two)
    decoder.cancel()
    assert engine.load_base(two).model.config.attention_dropout == 0.5


def test_a_base_that_is_held_otherwise_is_another_model(tiny_llama, engine):
    """But what is asked of it while it is in use is answered by the one in memory, and told so."""
    plain = _source(tiny_llama)
    small = replace(plain, quantisation="nf4")
    ask = [AnswerRequest(ASKED, None, GenerationConfig(max_tokens=4, temperature=0.0))]
    first = engine.answer(small, ask)
    assert not engine.free_for(plain)
    with pytest.raises(WorkbenchError, match="tiny-llama in full precision can be used when that ends"):
        engine.load_base(plain)
    for decoder in (first, engine.answer(plain, ask)):
        ((event, *_), *_) = list(decoder.steps())
        assert event.weights["quantisation"] == "nf4"
    ((event, *_), *_) = list(engine.answer(plain, ask).steps())
    assert "quantisation" not in event.weights
    assert engine.base.quantisation == "none"


def test_a_base_that_has_no_room_says_what_would_help(tiny_llama, engine, monkeypatch):
    def full(*given, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("core.engine.load_base", full)
    with pytest.raises(BaseTooLarge, match=r"\(quantisation=nf4\) they take about 0.0 GiB") as found:
        engine.load_base(_source(tiny_llama))
    assert ran_out_of_memory(found.value)
    monkeypatch.setattr("core.engine.card_names", lambda: ["RTX 4090"] * 2)
    with pytest.raises(
        BaseTooLarge, match=r"the 2 cards here can hold a part each \(devices=2, sharding=fsdp\)"
    ):
        engine.load_base(replace(_source(tiny_llama), quantisation="nf4"))
