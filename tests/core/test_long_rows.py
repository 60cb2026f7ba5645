"""Layers' inputs that wait in the host's memory, and what grows with the row computed in slices: both change
nothing that is learnt.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager
from transformers import LlamaConfig, LlamaForCausalLM

from core.base_model.attention import Attending
from core.data.formats import Example
from core.lora.config import LoraConfig
from core.lora.wrapping import wrap_linear_layers
from core.train import memory
from core.train.base_shape import BaseShape
from core.train.config import TrainConfig
from core.train.estimate import DataShape, estimate
from core.train.group import TrainingGroup
from core.train.memory import ExecutionPlan, Tier, first_plan, needed
from core.train.offloading import HostStash
from core.train.slicing import in_slices, token_wise
from core.train.step import MicroBatchStep
from core.train.training_options import TrainingOptions
from tests.benchmarks.shapes import SHAPES
from tests.conftest import _save
from tests.core.families import tiny_model
from tests.core.helpers import load, load_float64, request

ROWS = [
    Example(
        i,
        (
            {"role": "user", "content": f"hello {i}"},
            {"role": "assistant", "content": "fine thanks " * (1 + i % 5)},
        ),
    )
    for i in range(12)
]
STEPS = 2  # the second with what was let go after the first
FULL = ExecutionPlan(Tier.FULL, compiled=False, captures=False)
OFFLOADED, SLICED = FULL.offloading(), FULL.slicing()
BOTH = OFFLOADED.slicing()


@pytest.fixture
def short_slices(monkeypatch):
    """A few tokens of all rows at a time, so that even short rows are several slices."""
    monkeypatch.setattr(
        "core.train.step.in_slices", lambda modules, begin: in_slices(modules, begin, tokens=13)
    )


def _learnt(monkeypatch, base, plan, runs=1, kind="lora", lora=None, **train):
    """The losses and gradients of a few micro-batches of runs that train under `plan`, from factors none of
    which is zero.
    """
    real, found = MicroBatchStep.train, []

    def watched(step, batch):
        if not found:
            torch.manual_seed(0)
            step.bank.flat.normal_(std=0.3)
            step.bank.refresh()
        before = step.bank.grad.clone()
        figures = real(step, batch)
        found.append((figures[:, 0].double(), (step.bank.grad - before).double()))
        return figures

    config = TrainConfig(
        **{
            "max_steps": STEPS,
            "micro_batch_size": 2,
            "gradient_accumulation_steps": 1,
            "learning_rate": 1e-8,
            **train,
        }
    )
    options = LoraConfig(kind=kind, rank=4, alpha=8, **(lora or {}))
    requests = [
        request(base, ROWS, replace(options, rank=4 - number), replace(config, seed=number), key=number)
        for number in range(runs)
    ]
    with monkeypatch.context() as patched:
        patched.setattr("core.train.executing.first_plan", lambda *about, **more: plan)
        patched.setattr(MicroBatchStep, "train", watched)
        for _, event in TrainingGroup(base, requests, most_runs=runs).run():
            if (error := getattr(event, "error", None)) is not None:
                raise error
    assert len(found) == STEPS
    return found


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("packing", "runs"), [("off", 1), ("on", 1), ("off", 3), ("on", 3)])
def test_offloading_is_bit_for_bit_what_recomputing_is(any_model, monkeypatch, packing, runs, dropout):
    base = load(any_model)
    how = {"runs": runs, "packing": packing, "max_length": 64, "lora": {"dropout": dropout}}
    wanted, offloaded = (_learnt(monkeypatch, base, plan, **how) for plan in (FULL, OFFLOADED))
    for one, other in zip(wanted, offloaded, strict=True):
        assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("packing", "runs"), [("off", 1), ("on", 1), ("off", 3), ("on", 3)])
@pytest.mark.usefixtures("short_slices")
def test_slices_give_the_losses_and_the_adapter_of_whole_rows(any_model, monkeypatch, packing, runs, dropout):
    base = load_float64(any_model)
    _wide_norms(monkeypatch, base)
    how = {"runs": runs, "packing": packing, "max_length": 64, "lora": {"dropout": dropout}}
    wanted, sliced = (_learnt(monkeypatch, base, plan, **how) for plan in (FULL, BOTH))
    _assert_close(wanted, sliced, 1e-10)


def _wide_norms(monkeypatch, base):
    """transformers' RMS norms round to float32 whatever they are given."""

    def forward(norm, x):
        return norm.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon)

    for kind in {type(one) for one in base.model.modules() if type(one).__name__.endswith("RMSNorm")}:
        monkeypatch.setattr(kind, "forward", forward)


def _assert_close(wanted, found, tolerance):
    for one, other in zip(wanted, found, strict=True):
        for numbers, others in zip(one, other, strict=True):
            far, largest = float((numbers - others).abs().max()), float(numbers.abs().max())
            assert far <= tolerance * largest


@pytest.mark.parametrize("block", [1 << 27, 64])
def test_each_of_many_layers_gets_its_own_input_back_pass_after_pass(monkeypatch, block):
    monkeypatch.setattr("core.train.offloading._BLOCK", block)  # of 64 bytes, an input is several
    layers = [torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh()) for _ in range(5)]
    stash = HostStash(torch.device("cpu"))

    def gradients(call, seed, rows):
        x = torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        y = x
        for layer in layers:
            layer.zero_grad()
            y = call(layer, y)
        y.square().sum().backward()
        return [x.grad, *(layer[0].weight.grad.clone() for layer in layers)]

    for seed, rows in ((0, 6), (1, 9), (2, 3)):
        stash.begin()
        found = gradients(stash.recomputed, seed, rows)
        assert all(map(torch.equal, found, gradients(lambda layer, y: layer(y), seed, rows)))


@pytest.mark.parametrize("how", ["nf4", "int8"])
@pytest.mark.usefixtures("short_slices")
def test_a_quantised_base_learns_the_same(tiny_llama, monkeypatch, how):
    base = load(tiny_llama, quantisation=how)
    wanted, offloaded, sliced = (_learnt(monkeypatch, base, plan, runs=2) for plan in (FULL, OFFLOADED, BOTH))
    for one, other in zip(wanted, offloaded, strict=True):
        assert all(map(torch.equal, one, other))
    _assert_close(wanted, sliced, 1e-4)


def test_the_general_way_offloads_too(tmp_path, tokenizer, monkeypatch):
    base = load(_save(tiny_model("bloom"), tokenizer, tmp_path / "bloom"))
    assert not base.way.quick
    wanted, offloaded = (_learnt(monkeypatch, base, plan, runs=2) for plan in (FULL, OFFLOADED))
    for one, other in zip(wanted, offloaded, strict=True):
        assert all(map(torch.equal, one, other))


def _bank_of(base, **lora):
    requests = [request(base, ROWS, LoraConfig(rank=4, alpha=8, **lora), TrainConfig(max_steps=1), key=0)]
    group = TrainingGroup(base, requests)
    events = group.run()
    next(events)
    return group.bank


def test_norms_and_the_mlp_are_computed_in_slices(tiny_llama):
    base = load(tiny_llama)
    names = {module: path for path, module in base.model.named_modules()}
    found = {names[one.module] for one in token_wise(base, _bank_of(base), 2)}
    kinds = {path.split(".")[-1] for path in found}
    assert kinds == {"mlp", "norm", "input_layernorm", "post_attention_layernorm"}
    with_dropout = {names[one.module] for one in token_wise(base, _bank_of(base, dropout=0.1), 2)}
    assert {path.split(".")[-1] for path in with_dropout - found} == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_a_mixture_of_experts_is_computed_in_slices_for_several_rows(tmp_path, tokenizer):
    torch.manual_seed(0)
    base = load(_save(tiny_model("mixtral"), tokenizer, tmp_path / "mixtral"))
    mlp = base.decoder_layers[0].mlp
    assert mlp in {one.module for one in token_wise(base, _bank_of(base), 2)}


def test_what_mixes_tokens_stays_whole(tiny_llama):
    base = load(tiny_llama)
    mlp = base.decoder_layers[0].mlp
    mlp.register_forward_hook(lambda module, given, y: y + given[0].mean(1, keepdim=True))
    found = {one.module for one in token_wise(base, _bank_of(base), 2)}
    assert mlp not in found
    assert base.decoder_layers[1].mlp in found


@pytest.mark.usefixtures("short_slices")
def test_a_layer_that_ends_with_its_mlp_computes_it_twice_and_never_whole(tiny_llama, monkeypatch):
    base = load(tiny_llama)
    product, trained, widths = base.decoder_layers[0].mlp.down_proj.base, MicroBatchStep._trained, []
    compute = product.forward

    def noted(step, batch):
        with monkeypatch.context() as watching:
            watching.setattr(product, "forward", lambda x: (widths.append(x.shape[1]), compute(x))[1])
            return trained(step, batch)

    monkeypatch.setattr(MicroBatchStep, "_trained", noted)
    only_q = {"target_modules": "q_proj"}
    _learnt(monkeypatch, base, SLICED, packing="on", max_length=40, micro_batch_size=1, lora=only_q)
    assert widths == [13, 13, 13, 1] * 2 * STEPS  # forward and in backward, of each micro-batch


def test_compiled_layers_are_computed_again_as_what_was_compiled(tiny_llama, monkeypatch):
    base = load(tiny_llama)
    wanted = _learnt(monkeypatch, base, FULL)
    torch._dynamo.reset()
    seen = []

    def backend(graph, example):
        seen.append(graph)
        return aot_eager(graph, example)

    for layer in base.decoder_layers:
        layer.compile(dynamic=False, backend=backend)
    found = _learnt(monkeypatch, base, replace(OFFLOADED, compiled=True))
    assert seen
    _assert_close(wanted, found, 1e-5)


# Which plan.


class _Card:
    """A base as the plans see it: so many GiB free on the device and in the host's memory."""

    def __init__(self, monkeypatch, base, device, host):
        monkeypatch.setattr(memory, "_free", lambda device_: device * 2**30)
        monkeypatch.setattr(memory, "host_room", lambda: host * 2**30)
        self.base = SimpleNamespace(
            device=torch.device("cuda"),
            dtype=torch.bfloat16,
            layers=base.layers,
            head=base.head,
            model=base.model,
            decoder_layers=base.decoder_layers,
            attention=base.attention,
        )


@pytest.fixture(scope="module")
def llama_of_8b():
    """Its shapes, without numbers."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SHAPES["8b"]))
    layers = wrap_linear_layers(model)
    attending = [Attending(layer.self_attn, 8, 128, 128) for layer in model.model.layers]
    return SimpleNamespace(
        layers=layers,
        head="lm_head",
        model=model,
        decoder_layers=list(model.model.layers),
        attention=attending,
    )


@pytest.mark.parametrize(
    ("device", "host", "tokens", "wanted"),
    [
        (62, 120, 4096, ExecutionPlan(Tier.CHEAP, True)),
        (62, 120, 32_768, ExecutionPlan(Tier.FULL, True)),
        (50, 120, 131_072, ExecutionPlan(Tier.FULL, True).offloading()),
        (72, 120, 200_000, ExecutionPlan(Tier.FULL, True).offloading()),
        (72, 120, 350_000, ExecutionPlan(Tier.FULL, True).offloading().slicing()),
        (24, 1, 65_536, ExecutionPlan(Tier.FULL, True).slicing()),
        (8, 120, 131_072, ExecutionPlan(Tier.FULL, True).offloading().slicing()),
    ],
)
def test_the_plan_follows_from_the_memory_at_hand(monkeypatch, llama_of_8b, device, host, tokens, wanted):
    base = _Card(monkeypatch, llama_of_8b, device, host).base
    start = ExecutionPlan(Tier.KEEP, compiled=True)
    assert first_plan(base, 1, tokens, start, may_slice=True) == wanted
    assert first_plan(base, 1, tokens, start, "off", may_slice=True).tier is Tier.CHEAP
    assert first_plan(base, 1, 4096, start, "offload", may_slice=True).offloads == (host > 1)


def test_pieces_come_before_the_hosts_memory(monkeypatch, llama_of_8b):
    base = _Card(monkeypatch, llama_of_8b, 24, 120).base
    plan = first_plan(base, 8, 8 * 16_384, ExecutionPlan(Tier.KEEP, True), may_slice=True)
    assert plan == ExecutionPlan(Tier.FULL, True, pieces=4)


def test_the_need_is_what_was_measured(llama_of_8b):
    """One row of 32,768 tokens, compiled, each layer computed again: 28.9 GiB with base, factors and moments
    (15.8 GiB) on an H100.
    """
    base = SimpleNamespace(**vars(llama_of_8b), dtype=torch.bfloat16)
    assert needed(base, 32_768, ExecutionPlan(Tier.FULL, True)) / 2**30 == pytest.approx(13.1, rel=0.1)


def test_a_containers_limit_is_the_hosts_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    assert memory.host_room(tmp_path / "none") == 1000
    for name, text in (
        ("memory.max", "700\n"),
        ("memory.current", "500\n"),
        ("memory.stat", "anon 350\nfile 150\n"),
    ):
        (tmp_path / name).write_text(text)
    assert memory.host_room(tmp_path) == 350
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.host_room(tmp_path) == 1000


def test_the_ladder_ends_in_slices():
    plan, seen = ExecutionPlan(Tier.KEEP, compiled=True), []
    while (smaller := plan.smaller(1, 100_000, may_offload=True, may_slice=True)) is not None:
        plan = smaller
        seen.append(plan.sentence)
    assert seen[-2:] == [
        "each layer is computed again in backward, its input waits in the host's memory",
        "each layer is computed again in backward, its input waits in the host's memory, norms and the MLP "
        "in slices of tokens",
    ]
    assert not plan.compiled


def test_the_estimate_before_a_run_knows_what_lowers_it(llama_of_8b):
    """One row of 131,072 tokens at 8B in bfloat16."""
    shapes = {path: (one.in_features, one.out_features) for path, one in llama_of_8b.layers.items()}
    base = BaseShape(shapes, "lm_head", 8_030_261_248, 32, 4096, 128_256)
    rows = DataShape(1, 0.0, row_tokens=131_072)

    def planned(how):
        train = TrainConfig(max_length=131_072, micro_batch_size=1, packing="off", gradient_checkpointing=how)
        options = TrainingOptions(LoraConfig(rank=16), train)
        return estimate(base, rows, options, bytes_per_weight=2, tokens_per_second=None)

    auto, on, offload, off = (planned(how) for how in ("auto", "on", "offload", "off"))
    assert auto.memory_bytes == off.memory_bytes > on.memory_bytes > offload.memory_bytes > auto.least_bytes
    assert auto.least_bytes / 2**30 == pytest.approx(35, abs=2)
    assert not any(one.least_bytes for one in (on, offload, off))
