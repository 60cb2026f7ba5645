"""The two examples do from a terminal what they say, with PEFT and each adapter alone as the oracles."""

import ast
import re
import runpy
import sys

import pytest
import torch

from core.base_model.fingerprint import fingerprint
from core.data.conversations import conversation_rows
from core.errors import InvalidData
from core.generate.config import GenerationConfig
from core.generate.decode import Decoder, RowRequest
from core.lora.mixed_bank import loaded_bank
from core.lora.peft.files import load_adapter, save_adapter
from tests.core.helpers import CPU, load, logits, peft_from, plain_model, random_adapter

PROMPT = "hello world"


@pytest.fixture(autouse=True)
def _float32_on_the_cpu(monkeypatch):
    """Whatever this machine is best at, so that answers can be compared token by token."""
    monkeypatch.setattr("core.base_model.load.best_device", lambda: CPU)
    monkeypatch.setattr("core.base_model.load.best_dtype", lambda device: torch.float32)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs an example as `python -m` does; gives what it printed, line by line."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_module(f"tests.examples.{name}", run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def _alone(base, adapter):
    """This program's answer of one adapter, or of the plain base, in a batch of one."""
    ids = base.renderer.encode_prompt([{"role": "user", "content": PROMPT}])
    request = RowRequest(ids, 0, GenerationConfig(max_tokens=24, temperature=0.0))
    bank = loaded_bank(base.layers, [adapter]) if adapter else None
    return "".join(event.text for events in Decoder(base, bank, [request]).steps() for event in events)


def _transformers_answer(base, model):
    ids = base.renderer.encode_prompt([{"role": "user", "content": PROMPT}])
    found = model.generate(input_ids=torch.tensor([ids]), max_new_tokens=24, do_sample=False)
    return base.tokenizer.decode(found[0, len(ids) :], skip_special_tokens=True)


def test_training_on_conversations_lowers_the_loss_and_saves_what_peft_loads(tiny_llama, tmp_path, run):
    printed = run("train_conversations", tiny_llama, tmp_path / "new" / "pirate")
    steps = [re.fullmatch(r"step (\d+): loss (\d+\.\d+)", line).groups() for line in printed]
    assert [int(step) for step, _ in steps] == list(range(1, 21))
    assert float(steps[-1][1]) < 0.7 * float(steps[0][1])

    base = load(tiny_llama)
    adapter = load_adapter(tmp_path / "new" / "pirate", base.layer_shapes, base.head)
    assert adapter.base_fingerprint == fingerprint(tiny_llama)
    with loaded_bank(base.layers, [adapter]).use():
        ours = logits(base.model)
    torch.testing.assert_close(ours, logits(peft_from(tiny_llama, tmp_path / "new" / "pirate")))
    assert not torch.allclose(ours, logits(base.model), atol=0.1)


def test_two_adapters_and_the_base_answer_in_one_batch_as_each_does_alone(tiny_llama, tmp_path, run):
    base = load(tiny_llama, fingerprint(tiny_llama))
    folders = [tmp_path / "first", tmp_path / "second"]
    adapters = [random_adapter(base, rank, seed=seed) for seed, rank in enumerate((4, 2))]
    for folder, adapter in zip(folders, adapters, strict=True):
        folder.mkdir()
        save_adapter(folder, adapter)

    printed = run("two_adapters", tiny_llama, PROMPT, *folders)
    names, answers = zip(*(line.split(": ", 1) for line in printed), strict=True)
    answers = [ast.literal_eval(one) for one in answers]
    assert names == ("the plain base", *map(str, folders))
    assert answers == [_alone(base, one) for one in (None, *adapters)]
    models = [plain_model(tiny_llama), *(peft_from(tiny_llama, folder) for folder in folders)]
    assert answers == [_transformers_answer(base, model) for model in models]
    assert len(set(answers)) == 3


def test_an_adapter_of_another_base_is_refused(tiny_llama, other_llama, tmp_path, run):
    save_adapter(tmp_path, random_adapter(load(other_llama, fingerprint(other_llama))))
    with pytest.raises(SystemExit, match="made for another base"):
        run("two_adapters", tiny_llama, PROMPT, tmp_path, tmp_path)


ASK, ANSWER = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "fine thanks"}


def test_conversations_in_memory_are_rendered_cut_and_kept_back(tiny_llama):
    renderer = load(tiny_llama).renderer
    long = {**ANSWER, "content": "fine thanks " * 50}
    rows = conversation_rows([[ASK, ANSWER], [ASK, long], [ASK, ANSWER]], renderer, 32, validation_rows=1)
    assert rows.validation.tolist() == [True, False, False]
    assert (rows.truncated, rows.lengths[1]) == (1, 32)
    ids, labels = rows[2]
    assert renderer.tokenizer.decode(labels[labels >= 0]) == "fine thanks<|im_end|>"
    assert ids.tolist()[: (labels < 0).argmin()] == renderer.encode_prompt([ASK])


@pytest.mark.parametrize(
    ("conversations", "said"),
    [
        ([], "There are no conversations"),
        ([[ASK, ANSWER], [ASK]], "Conversation 2: There is no assistant turn"),
        ([ASK, ANSWER], "Conversation 1: .* expected a list of turns"),
        ([[ASK, {**ANSWER, "role": "pirate"}]], "Conversation 1: The role 'pirate' is not known"),
    ],
)
def test_conversations_that_cannot_be_used_are_named(tiny_llama, conversations, said):
    with pytest.raises(InvalidData, match=said):
        conversation_rows(conversations, load(tiny_llama).renderer, 64)
