"""Full fine-tuning: plain transformers with torch's AdamW as the oracle; kept, resumed, answered, merged."""

import itertools
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, Trainer

from core.adapter_source import AdapterSource
from core.base_model.skeleton import skeleton
from core.base_model.source import BaseSource
from core.combine.combining import resize
from core.data.rendering import IGNORE
from core.engine import AnswerRequest, Engine
from core.errors import InvalidAdapter, InvalidConfig
from core.events import RunFailed, StepDone, TrainingDone
from core.generate.config import GenerationConfig
from core.lora.adapter import AdapterWeights
from core.lora.config import LoraConfig
from core.lora.peft.files import load_adapter, save_adapter
from core.lora.whole import computing_bank
from core.merge.merge import merge_into_base
from core.merge.verify import differing_tensors, verify_merge
from core.reporting import silent
from core.train.batches import RunData
from core.train.config import TrainConfig
from core.train.evaluation import validation_losses
from core.train.group import TrainingGroup
from core.train.run import RunRequest
from core.train.run_state import RunState
from core.train.schedule import rate_factor, warmup_steps
from core.train.training_options import TrainingOptions
from tests.core.helpers import load, logits, plain_model, random_adapter, token_rows
from tests.core.test_variants import ROWS

TRAIN: dict[str, Any] = {
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_length": 96,
    "learning_rate": 1e-3,
    "weight_decay": 0.01,
    "packing": "off",
    "max_steps": 20,
}


def _options(lora=(), **train) -> TrainingOptions:
    return TrainingOptions(LoraConfig(kind="full", **dict(lora)), TrainConfig(**{**TRAIN, **train}))


def _request(base, options, key="run", validation_rows=0, **about) -> RunRequest:
    return RunRequest(key, token_rows(base, ROWS, 96, validation_rows), options, **about)


def _trained(
    base, options, *, stop_at: int = 0, **about
) -> tuple[list[float], AdapterWeights, RunState | None]:
    """Losses by step, the weights and the state at the end, or at step `stop_at`."""
    group, losses = TrainingGroup(base, [_request(base, options, **about)]), []
    for _, event in group.run():
        if isinstance(event, RunFailed):
            raise event.error
        if isinstance(event, StepDone):
            losses.append(event.loss)
            if event.step == stop_at:
                return losses, group.adapter("run"), group.state("run")
        if isinstance(event, TrainingDone):
            found = group.adapter("run")
    return losses, found, None


def _plain_losses(folder, base, options) -> tuple[list[float], torch.nn.Module]:
    """The same steps by transformers and torch alone, each row by itself."""
    model = plain_model(folder)
    optimiser = torch.optim.AdamW(_groups(model, options.train.weight_decay), lr=1.0)
    data, losses = RunData(token_rows(base, ROWS, 96, 0), options.train), []
    total = options.train.max_steps
    warmup = warmup_steps(total, options.train.warmup_ratio)
    for number, step in enumerate(itertools.islice(data.steps(), total)):
        summed = torch.zeros(())
        for part in step.micro_batches:
            for (row,) in part.blocks:
                ids, labels = (torch.tensor(one).long() for one in part.rows[row])
                found = model(input_ids=ids[None]).logits[0]
                summed = summed + cross_entropy(found[:-1], labels[1:], ignore_index=IGNORE, reduction="sum")
        loss = summed / step.units
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.train.max_grad_norm)
        at = number + 1 if number < warmup else number
        for group in optimiser.param_groups:
            group["lr"] = options.train.learning_rate * rate_factor("cosine", at, total, warmup)
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses, model


def _groups(model, decay):
    """What transformers' Trainer draws to zero, and what it does not."""
    drawn = set(Trainer.get_decay_parameter_names(None, model))
    return [
        {"params": [one], "weight_decay": decay if name in drawn else 0.0}
        for name, one in model.named_parameters()
    ]


@pytest.fixture(scope="module", params=["tied", "untied"])
def folder(request, tiny_llama, tmp_path_factory):
    """A tiny Llama whose head is its embedding, and one with a head of its own."""
    if request.param == "tied":
        return tiny_llama
    folder = tmp_path_factory.mktemp("untied") / "llama"
    shutil.copytree(tiny_llama, folder)
    config = AutoConfig.from_pretrained(tiny_llama)
    config.tie_word_embeddings = False
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_the_same_steps_as_plain_transformers_with_adamw(folder, tmp_path):
    base = load(folder)
    before = logits(base.model)
    losses, adapter, _ = _trained(base, _options())
    expected, model = _plain_losses(folder, base, _options())
    assert torch.allclose(torch.tensor(losses), torch.tensor(expected), atol=1e-4), (losses, expected)
    assert losses[-1] < 0.7 * losses[0]
    assert set(adapter.whole) == {name for name, _ in model.named_parameters()}
    with computing_bank(base.model, base.layers, [adapter]).use():
        live = logits(base.model)
    assert torch.allclose(live, logits(model), atol=2e-3)
    assert torch.equal(logits(base.model), before)

    target = tmp_path / "merged"
    target.mkdir()
    merge_into_base(folder, adapter, frozenset(), target, silent, {})
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        if (folder / name).exists():
            (target / name).write_bytes((folder / name).read_bytes())
    merged = plain_model(target)
    for name, parameter in merged.named_parameters():
        assert torch.equal(parameter, adapter.whole[name]), name
    assert torch.allclose(logits(merged), live, atol=1e-5)
    assert not differing_tensors(folder, adapter, frozenset(), target)


def test_norms_and_biases_are_not_drawn_to_zero(any_model):
    """Rates and decay are such that a norm which is would end at 0.9 of its size."""
    base, options = load(any_model), _options(learning_rate=5e-3, weight_decay=2.0)
    _, adapter, _ = _trained(base, options)
    _, model = _plain_losses(any_model, base, options)
    vectors = {name: one for name, one in model.named_parameters() if one.dim() == 1}
    assert vectors
    for name, one in vectors.items():
        assert float((adapter.whole[name] - one.detach()).abs().mean()) < 0.02, name


def test_a_stored_run_goes_on_as_if_it_had_not_stopped(tiny_qwen, tmp_path):
    base = load(tiny_qwen)
    options = _options(max_steps=6)
    losses, whole, _ = _trained(base, options)
    begun, adapter, state = _trained(base, options, stop_at=3)
    for name, part in (("adapter", adapter), ("state", state)):
        (tmp_path / name).mkdir()
        save_adapter(tmp_path / name, part) if part is adapter else part.save(tmp_path / name)
    read = load_adapter(tmp_path / "adapter", base.layer_shapes, base.head), RunState.load(tmp_path / "state")
    rest, resumed, _ = _trained(base, options, resume=read)
    assert [*begun, *rest] == losses
    assert resumed.whole.keys() == whole.whole.keys()
    assert all(torch.equal(one, whole.whole[path]) for path, one in resumed.whole.items())
    assert any(path.endswith("q_proj.bias") for path in whole.whole)


def test_it_goes_from_file_to_merge_in_every_family(any_model, tmp_path):
    base = load(any_model)
    _, adapter, _ = _trained(base, _options(max_steps=3))
    assert adapter.parameter_count == sum(one.numel() for one in plain_model(any_model).parameters())
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_adapter(folder, adapter)
    read = load_adapter(folder, base.layer_shapes, base.head)
    assert read.base_fingerprint == base.fingerprint
    assert len(load_file(folder / "adapter_model.safetensors")) == len(adapter.whole)
    assert all(torch.equal(one, read.whole[path]) for path, one in adapter.whole.items())
    target = tmp_path / "merged"
    shutil.copytree(any_model, target, ignore=shutil.ignore_patterns("*.safetensors"))
    report = merge_into_base(any_model, read, skeleton(any_model).transposed, target, silent, {})
    assert report.copied_tensors == 0
    check = verify_merge(any_model, read, target, silent)
    assert check.passed
    assert check.adapter_effect > 0.01
    bfloat16 = tmp_path / "bfloat16"
    bfloat16.mkdir()
    rounded = merge_into_base(any_model, read, frozenset(), bfloat16, silent, {}, "bfloat16")
    assert 0 < rounded.rounding_loss < 1


@pytest.mark.parametrize(
    ("lora", "inside"),
    [
        ({"layers_to_transform": "1"}, lambda path: ".layers.1." in path),
        ({"target_modules": "q_proj,norm"}, lambda path: "q_proj" in path or path == "model.norm.weight"),
        ({"target_modules": "embed_tokens"}, lambda path: path == "model.embed_tokens.weight"),
    ],
)
def test_only_the_chosen_parts_learn(tiny_llama, lora, inside):
    base = load(tiny_llama)
    _, adapter, _ = _trained(base, _options(lora, max_steps=2))
    assert set(adapter.whole) == {
        path for path, _ in plain_model(tiny_llama).named_parameters() if inside(path)
    }
    changed = [path for path, one in adapter.whole.items() if not torch.equal(one, _own(base, path))]
    assert changed == sorted(adapter.whole, key=list(adapter.whole).index)


def _own(base, path: str) -> torch.Tensor:
    module, _, name = path.rpartition(".")
    found = base.model.get_submodule(module)
    return getattr(getattr(found, "base", found), name)


def test_what_matches_nothing_is_refused_with_what_there_is(tiny_llama):
    base = load(tiny_llama)
    for lora, said in (
        ({"target_modules": "c_attn"}, "c_attn.*embed_tokens"),
        ({"layers_to_transform": "7"}, "layer 7.*0 to 1"),
    ):
        with pytest.raises(InvalidConfig, match=said):
            _trained(base, _options(lora))
    with pytest.raises(InvalidConfig, match="rank_pattern"):
        LoraConfig(kind="full", rank_pattern="q_proj=8")


def test_it_trains_by_itself(tiny_llama):
    base = load(tiny_llama)
    lora = TrainingOptions(LoraConfig(), TrainConfig(**{**TRAIN, "max_steps": 2}))
    for first, second in (("full", "lora"), ("lora", "full")):
        options = {"full": _options(max_steps=2), "lora": lora}
        group = TrainingGroup(
            base, [_request(base, options[key], key) for key in (first, second)], most_runs=2
        )
        refused = [(key, event.error) for key, event in group.run() if isinstance(event, RunFailed)]
        assert [key for key, _ in refused] == [second]
        assert "by itself" in str(refused[0][1])


def test_without_the_memory_it_is_refused_with_figures(tiny_llama, monkeypatch):
    monkeypatch.setattr("core.train.memory._free", lambda device: 1 << 18)
    with pytest.raises(InvalidConfig, match=r"parameters does not fit.*GiB.*LoRA"):
        _trained(load(tiny_llama), _options())


def _replacing(norm: torch.Tensor) -> AdapterWeights:
    return AdapterWeights(0, 0.0, 0.0, {}, "f" * 64, kind="full", whole={"model.norm.weight": norm})


def test_other_weights_and_damaged_files_are_refused(tiny_llama, tiny_qwen, tmp_path):
    base, other = load(tiny_llama), load(tiny_qwen)
    adapter = _replacing(torch.ones(32))
    for whole, said in (
        ({"model.norm.weight": torch.ones(31)}, r"\[31\].*\[32\]"),
        ({"model.other.weight": torch.ones(31)}, "no parameter model.other"),
    ):
        with pytest.raises(InvalidAdapter, match=said):
            computing_bank(base.model, base.layers, [replace(adapter, whole=whole)])
        with pytest.raises(InvalidAdapter):
            merge_into_base(tiny_llama, replace(adapter, whole=whole), frozenset(), tmp_path, silent, {})
    save_adapter(tmp_path, _replacing(torch.full((32,), torch.nan)))
    with pytest.raises(InvalidAdapter, match="NaN"):
        load_adapter(tmp_path, other.layer_shapes, other.head)
    save_adapter(tmp_path, replace(adapter, base_fingerprint=""))
    with pytest.raises(InvalidAdapter, match="does not record the base"):
        load_adapter(tmp_path, base.layer_shapes, base.head)


def test_what_needs_factors_is_refused_with_the_reason():
    adapter = _replacing(torch.ones(32))
    for work in (adapter.as_lora, lambda: resize(adapter, 4)):
        with pytest.raises(InvalidAdapter, match="trained weights themselves"):
            work()


def test_it_answers_beside_adapters_as_it_answers_alone(tiny_llama):
    base = load(tiny_llama)
    _, full, _ = _trained(base, _options(max_steps=6))
    engine = Engine(torch.device("cpu"), torch.float32)
    source = BaseSource("llama", tiny_llama, base.fingerprint, "", recorded=lambda: None)
    engine.base, engine._key = base, None
    made = {"full": full, "lora": random_adapter(base, size=0.1)}
    speakers = [
        AdapterSource(name, lambda: tiny_llama, name, base.fingerprint, "llama", one, whole=bool(one.whole))
        for name, one in made.items()
    ]
    greedy = GenerationConfig(max_tokens=8, temperature=0)
    asked = [AnswerRequest([{"role": "user", "content": "hello"}], one, greedy) for one in (None, *speakers)]
    engine.load_base = lambda source: base

    def answers(requests) -> list[str]:
        texts = [""] * len(requests)
        for events in engine.answer(source, requests).steps():
            for event in events:
                texts[event.row] += event.text
        return texts

    together = answers(asked)
    assert together == [answers([one])[0] for one in asked]
    assert len(set(together)) == 3
    said = [{"role": "user", "content": "hello"}], "fine"
    totals = [one.total for one in engine.score(source, [speakers[0], None, speakers[1]], *said)]
    alone = [engine.score(source, [one], *said)[0].total for one in (speakers[0], None, speakers[1])]
    assert totals == pytest.approx(alone, abs=1e-4)
    assert len({round(one, 3) for one in totals}) == 3


def test_its_validation_loss_is_measured_beside_others(tiny_llama):
    base = load(tiny_llama)
    _, full, _ = _trained(base, _options(max_steps=6))
    lora = random_adapter(base, size=0.1)
    options = _options()
    data = RunData(token_rows(base, ROWS, 96, 6), options.train)

    def judge(*adapters) -> list[float]:
        return validation_losses(base, data, adapters, options.train, options.objective, silent)

    together = judge(full, lora)
    assert together == pytest.approx([*judge(full), *judge(lora)])
    assert together[0] < together[1]


def test_layers_that_are_computed_again_learn_the_same(tiny_llama):
    base = load(tiny_llama)
    losses = [_trained(base, _options(max_steps=3, gradient_checkpointing=how))[0] for how in ("off", "on")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
