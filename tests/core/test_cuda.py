"""What only an accelerator does: variable-length attention, compiled layers, captured graphs,
Triton kernels.
"""

from dataclasses import replace

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from core.base_model.agreement import find_way
from core.base_model.load import make_resident
from core.base_model.one_token_attention import attend_one_token
from core.base_model.quantisation import FP8, NF4
from core.base_model.quantised_load import packed
from core.events import Notice, RunFailed, StepDone, TrainingDone
from core.generate.config import GenerationConfig
from core.generate.decode import Decoder, RowRequest
from core.generate.running import RunningBatch
from core.generate.state_pool import StatePool
from core.lora.adapter import AdapterWeights, LayerFactors
from core.lora.bank import AdapterBank
from core.lora.config import LoraConfig
from core.lora.fp8 import CAPABILITY, quantised_rows
from core.lora.ops import adapted
from core.lora.quantised import QuantisedLinear, frozen_product
from core.lora.tiles import in_tiles, tiles_of
from core.train import step
from core.train.config import TrainConfig
from core.train.group import TrainingGroup
from core.train.memory import Tier
from core.train.run import RunRequest
from core.train.training_options import TrainingOptions
from tests.benchmarks.shapes import NoTokenizer, RandomRows

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:TensorFloat32"),  # which float32 is tested without, on purpose
]


@pytest.fixture(autouse=True)
def small_matrices_in_float32():
    torch.backends.cuda.matmul.allow_tf32 = False


def _base(device="cuda", dtype=torch.float32):
    from pathlib import Path

    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config).to(device=device, dtype=dtype)
    model.generation_config.eos_token_id = None
    return make_resident(model, NoTokenizer(), folder=Path("."), name="tiny")


_USUAL = ("Compiling the model", "To fit the memory")


class _Uneven(RandomRows):
    """Rows of many lengths."""

    def __init__(self, count, length, vocabulary, seed):
        super().__init__(count, length, vocabulary, seed)
        self.lengths = self.lengths // (1 + torch.arange(count).numpy() % 5)
        self.supervised = self.lengths - 1

    def __getitem__(self, index):
        part = self._ids[index][: self.lengths[index]]
        return part, part


def _train(base, runs=2, dropout=0.0, **options):
    requests = [
        RunRequest(
            seed,
            _Uneven(24, 128, 512, seed),
            TrainingOptions(
                LoraConfig(rank=4 + seed, dropout=dropout),
                TrainConfig(
                    max_length=128,
                    micro_batch_size=2,
                    gradient_accumulation_steps=2,
                    max_steps=8,
                    seed=seed,
                    learning_rate=1e-3,
                    **options,
                ),
            ),
        )
        for seed in range(runs)
    ]
    group, losses, notices, adapters = TrainingGroup(base, requests), {}, [], {}
    for key, event in group.run():
        if isinstance(event, RunFailed):
            raise event.error
        if isinstance(event, StepDone):
            losses.setdefault(key, []).append(event.loss)
        if isinstance(event, Notice) and not event.text.startswith(_USUAL):
            notices.append(event.text)
        if isinstance(event, TrainingDone):
            adapters[key] = group.adapter(key)
            graphs = group.graphs
    return losses, adapters, notices, graphs


@pytest.mark.parametrize(("packing", "dropout"), [("on", 0.0), ("on", 0.2), ("off", 0.0)])
def test_bfloat16_on_the_device_learns_as_float32_does_on_the_cpu(packing, dropout):
    """Variable-length attention, fixed shapes and lagging figures against the plain path; bf16 has 8 bits."""
    expected, *_ = _train(_base("cpu"), packing=packing, dropout=dropout)
    for how in ("off", "on"):
        found, _, notices, graphs = _train(
            _base(dtype=torch.bfloat16), packing=packing, compile=how, dropout=dropout
        )
        assert not notices, notices
        for key, losses in expected.items():
            assert found[key] == pytest.approx(losses, rel=0.01), how
    assert graphs


@pytest.mark.parametrize("compile", ["off", "on"])
@pytest.mark.parametrize("how", ["full", "offloading", "slicing"])
def test_what_is_kept_for_backward_changes_nothing_that_is_learnt(how, compile, monkeypatch):
    expected, *_ = _train(_base(), packing="on", compile=compile, dropout=0.2)

    def plan(*about, **more):
        full = replace(about[3], tier=Tier.FULL)
        plans = {"full": full, "offloading": full.offloading(), "slicing": full.offloading().slicing()}
        return plans[how]

    monkeypatch.setattr("core.train.executing.first_plan", plan)
    monkeypatch.setattr("core.train.slicing.SLICE", 64)
    monkeypatch.setattr("core.train.offloading._BLOCK", 1 << 16)  # an input is several blocks
    found, _, notices, _ = _train(_base(), packing="on", compile=compile, dropout=0.2)
    assert not notices, notices
    for key, losses in expected.items():
        assert found[key] == pytest.approx(losses, rel=1e-5)


def _in_fp8(base):
    """The same base with its frozen products in FP8."""
    for path, layer in base.layers.items():
        if path != base.head:
            layer.base = QuantisedLinear(packed(layer.base.weight.detach(), FP8), layer.base.bias)
    base.quantisation = FP8
    return base


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < CAPABILITY, reason="needs FP8"
)
@pytest.mark.parametrize("rows", [1, 7, 128, 300])
def test_fp8_products_are_those_of_rounded_rows(rows):
    """Also for numbers of rows that fill no tile."""
    weight = torch.randn(96, 256, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(rows, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    dy = torch.randn(rows, 96, device="cuda", dtype=torch.bfloat16)
    held = packed(weight, FP8)
    y = frozen_product(x, held, None)
    y.backward(dy)
    numbers, scale = quantised_rows(x.detach())
    used = held.tensors[0].float() * held.tensors[1][:, None]
    assert torch.allclose(y.float(), (numbers.float() * scale) @ used.T, rtol=0.02, atol=0.1)
    numbers, scale = quantised_rows(dy * held.tensors[1])
    wanted = (numbers.float() * scale) @ held.tensors[0].float()
    assert torch.allclose(x.grad.float(), wanted, rtol=0.02, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(512, 128), (257, 1024), (3, 8), (100, 72), (2048, 2048), (5, 9)])
def test_weights_in_nf4_are_what_bitsandbytes_makes_of_them(shape, dtype):
    functional = pytest.importorskip("bitsandbytes").functional
    torch.manual_seed(0)
    weight = torch.randn(shape, device="cuda", dtype=dtype) * 0.3
    numbers, state = functional.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    assert torch.equal(packed(weight, NF4).dense(), functional.dequantize_4bit(numbers, state))


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < CAPABILITY, reason="needs FP8"
)
@pytest.mark.parametrize("compile", ["off", "on"])
def test_a_base_in_fp8_learns_nearly_as_in_bfloat16(compile):
    expected, *_ = _train(_base(dtype=torch.bfloat16), packing="on")
    found, _, notices, _ = _train(_in_fp8(_base(dtype=torch.bfloat16)), packing="on", compile=compile)
    assert not notices, notices
    for key, losses in expected.items():
        assert found[key] == pytest.approx(losses, rel=0.02)


def test_a_captured_step_is_the_step(monkeypatch):
    eager, adapters, _, _ = _train(_base(dtype=torch.bfloat16), packing="on")
    monkeypatch.setattr(step, "_LAUNCH_BOUND", -1.0)
    captured, others, notices, graphs = _train(_base(dtype=torch.bfloat16), packing="on")
    assert (notices, graphs) == ([], 1)
    for key in eager:
        assert captured[key] == pytest.approx(eager[key], rel=1e-3)
        for path, layer in adapters[key].layers.items():
            torch.testing.assert_close(others[key].layers[path].B, layer.B, atol=2e-4, rtol=0.05)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize(
    ("kind", "runs", "dropout"), [("lora", 3, 0.0), ("lora", 2, 0.1), ("dora", 2, 0.0), ("full", 1, 0.0)]
)
def test_a_step_waits_for_no_number_of_the_device(kind, runs, dropout):
    base = _base(dtype=torch.bfloat16)
    train = {"max_length": 128, "micro_batch_size": 2, "max_steps": 12, "packing": "on"}
    requests = [
        RunRequest(
            seed,
            _Uneven(24, 128, 512, seed),
            TrainingOptions(LoraConfig(kind, rank=4, dropout=dropout), TrainConfig(**train)),
        )
        for seed in range(runs)
    ]
    try:
        for _, event in TrainingGroup(base, requests).run():
            if isinstance(event, RunFailed):
                raise event.error
            if isinstance(event, StepDone) and event.step in (6, 10):
                torch.cuda.set_sync_debug_mode("error" if event.step == 6 else "default")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _general(family, **values):
    from pathlib import Path

    config = CONFIG_MAPPING[family](
        **{
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 256,
            **values,
        }
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).cuda().eval()
    model.generation_config.eos_token_id = None
    base = make_resident(model, NoTokenizer(), folder=Path("."), name=family, way=find_way(config))
    assert not base.way.quick
    return base


LAYERS_OF_MANY_KINDS = {
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_next": {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
    },
    "gemma2": {},
}


@pytest.mark.parametrize("family", LAYERS_OF_MANY_KINDS)
def test_a_captured_step_of_the_general_way_is_the_step(family, monkeypatch):
    values = LAYERS_OF_MANY_KINDS[family]
    monkeypatch.setattr(step, "_LAUNCH_BOUND", 2.0)
    eager, adapters, _, none = _train(_general(family, **values))
    monkeypatch.setattr(step, "_LAUNCH_BOUND", -1.0)
    captured, others, notices, graphs = _train(_general(family, **values))
    assert (notices, none) == ([], 0)
    assert graphs >= 1
    for key in eager:
        assert captured[key] == pytest.approx(eager[key], rel=2e-3)
        for path, layer in adapters[key].layers.items():
            torch.testing.assert_close(others[key].layers[path].B, layer.B, atol=4e-4, rtol=0.05)


def test_a_step_that_cannot_be_captured_is_launched_and_said(monkeypatch):
    """The host waits for the longest position where the rotary embedding changes with it."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    values = {"rope_parameters": rope, "max_position_embeddings": 64}
    monkeypatch.setattr(step, "_LAUNCH_BOUND", 2.0)
    eager, *_ = _train(_general("gemma2", **values))
    monkeypatch.setattr(step, "_LAUNCH_BOUND", -1.0)
    stream = torch.cuda.current_stream()
    found, _, notices, graphs = _train(_general("gemma2", **values))
    assert graphs == 0
    assert len(set(notices)) == 1
    assert "could not be captured" in notices[0]
    assert torch.cuda.current_stream() == stream
    for key in eager:
        assert found[key] == pytest.approx(eager[key], rel=2e-3)


def _adapter(base, seed, rank):
    generator = torch.Generator().manual_seed(seed)
    return AdapterWeights(
        rank,
        8,
        0.0,
        {
            path: LayerFactors(
                torch.randn(rank, n_in, generator=generator) * 0.05,
                torch.randn(n_out, rank, generator=generator) * 0.05,
                8 / rank,
            )
            for path, (n_in, n_out) in base.layer_shapes.items()
            if path != base.head
        },
    )


def _decoded(base, prompts, adapters, compiled=False, greedy=True):
    bank = AdapterBank(base.layers, list(base.layers), len(adapters) + 1, 8, dtype=base.dtype)
    for slot, adapter in enumerate(adapters, start=1):
        bank.load(slot, adapter)
    config = [
        GenerationConfig(max_tokens=12 + 3 * i, temperature=0.0 if greedy else 0.9, seed=i)
        for i in range(len(prompts))
    ]
    rows = [RowRequest(prompt, at % (len(adapters) + 1), config[at]) for at, prompt in enumerate(prompts)]
    decoder = Decoder(base, bank, rows, StatePool(base, compiled=compiled))
    kept = {row.index: row for row in decoder._rows}
    list(decoder.steps())
    return [kept[index].ids for index in range(len(prompts))]


@pytest.mark.parametrize("compiled", [False, True])
def test_decoding_with_graphs_and_kernels_equals_the_plain_path(compiled):
    prompts = [list(range(5 + i, 20 + 3 * i)) for i in range(8)]
    cpu = _base("cpu")
    adapters = [_adapter(cpu, seed, rank=3 + seed) for seed in range(5)]
    expected = _decoded(cpu, prompts, adapters)
    base = _base()
    assert _decoded(base, prompts, adapters, compiled) == expected
    assert len({tuple(ids) for ids in expected}) == 8


def test_prompts_read_by_graphs_give_the_same_answers():
    prompts = [list(range(3 + at, 25 + 4 * at)) for at in range(8)]
    cpu = _base("cpu")
    adapters = [_adapter(cpu, seed, rank=3 + seed) for seed in range(3)]
    expected = _decoded(cpu, prompts, adapters)
    base = _base()
    bank = AdapterBank(base.layers, list(base.layers), len(adapters) + 1, 8, dtype=base.dtype)
    for slot, adapter in enumerate(adapters, start=1):
        bank.load(slot, adapter)
    batch = RunningBatch(base, lambda: bank, pool := StatePool(base))
    for _ in range(3):  # a shape is captured when it comes again
        requests = [
            RowRequest(prompt, at % 4, GenerationConfig(max_tokens=12 + 3 * at, temperature=0.0))
            for at, prompt in enumerate(prompts)
        ]
        decoder = Decoder(base, bank, requests, batch=batch)
        kept = {row.index: row for row in decoder._rows}
        list(decoder.steps())
        assert [kept[at].ids for at in range(len(prompts))] == expected
    assert pool.reading._states
    assert not pool.notice


@pytest.mark.parametrize("window", [0, 37])
@pytest.mark.parametrize(
    ("rows", "groups", "capacity", "width"), [(1, 4, 512, 64), (3, 3, 100, 40), (64, 1, 300, 128)]
)
@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_one_token_attends_as_torch_does(rows, groups, capacity, width, window, dtype, off):
    torch.manual_seed(0)
    query = torch.randn(rows, 2 * groups, width, device="cuda").to(dtype)
    keys, values = torch.randn(2, rows, 2, capacity, width, device="cuda").to(dtype)
    positions = torch.randint(capacity, (rows,), device="cuda")
    places = torch.arange(capacity, device="cuda")
    seen = places <= positions[:, None]
    if window:
        seen &= places > positions[:, None] - window
    keys[(places > positions[:, None])[:, None].expand(-1, 2, -1)] = torch.nan  # what lies behind is not read
    folded = query.view(rows, 2, groups, width).double()
    clean = keys.double().nan_to_num()
    expected = torch.nn.functional.scaled_dot_product_attention(
        folded, clean, values.double(), attn_mask=seen[:, None, None], scale=0.2
    )
    found = attend_one_token(query, keys, values, positions, 0.2, window)
    torch.testing.assert_close(found.double(), expected.flatten(1, 2), atol=off, rtol=off)


@pytest.mark.parametrize(("rows", "tokens"), [(5, 1), (5, 7), (5, 130), (70, 1)])
@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_each_row_computes_with_its_own_factors_for_layers_behind_each_other(rows, tokens, dtype, off):
    """Of many rows those with one adapter are computed together; a place without a row is left as it is."""
    torch.manual_seed(0)
    outputs, rank, inputs = [192, 64, 128], 8, 200
    A = torch.randn(4, 3 * rank, inputs, device="cuda").to(dtype) / inputs**0.5
    B = torch.randn(4, sum(outputs), rank, device="cuda").to(dtype) / rank**0.5
    scale = torch.rand(3, 4, device="cuda") + 0.5
    weight = torch.randn(sum(outputs), inputs, device="cuda").to(dtype) / inputs**0.5
    bias = torch.randn(sum(outputs), device="cuda").to(dtype)
    x = torch.randn(rows, tokens, inputs, device="cuda").to(dtype)
    slots = torch.tensor([3, 0, 1, 1, 2] + [1] * 40 + [-1, 2, 3, 0, 1] * 5, device="cuda")[:rows]
    with in_tiles(slots, 4):
        assert (tiles_of(slots) is not None) == (rows == 70)
        found = torch.cat(adapted(x, weight, bias, A, B, scale, slots, outputs), -1)
    parts, first = [], 0
    for number, width in enumerate(outputs):
        down = A[slots, number * rank : (number + 1) * rank].double()
        up = B[slots, first : first + width].double()
        parts.append(x.double() @ down.mT @ up.mT * scale[number][slots][:, None, None])
        first += width
    expected = x.double() @ weight.double().T + bias.double() + torch.cat(parts, -1)
    here = slots >= 0
    torch.testing.assert_close(found.double()[here], expected[here], atol=3 * off, rtol=off)


def test_sampling_on_the_device_repeats_with_its_seed():
    base = _base()
    prompts = [[5, 6, 7], [8, 9]]
    adapters = [_adapter(base, 0, 4)]
    assert _decoded(base, prompts, adapters, greedy=False) == _decoded(base, prompts, adapters, greedy=False)


def _one(base, steps, resume=None, save_at=None):
    """A run to its end, or what it takes to go on from some step after `save_at`."""
    train = TrainConfig(
        max_length=128, micro_batch_size=2, gradient_accumulation_steps=2, max_steps=steps, learning_rate=1e-3
    )
    options = TrainingOptions(LoraConfig(rank=4, dropout=0.1), train)
    request = RunRequest("run", _Uneven(24, 128, 512, 0), options, resume)
    group, saved, adapter = TrainingGroup(base, [request]), None, None
    for _, event in group.run():
        if isinstance(event, RunFailed):
            raise event.error
        wanted = (
            isinstance(event, StepDone) and saved is None and save_at is not None and event.step >= save_at
        )
        if wanted and group.told("run", event.step):
            saved = group.adapter("run"), group.state("run")
            group.stop("run")
        if isinstance(event, TrainingDone):
            adapter = group.adapter("run")
    return adapter, saved


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_goes_on_from_a_checkpoint_as_if_nothing_had_happened(dtype):
    """Graphs are captured anew and figures lag a step behind; the factors are the same bit for bit."""
    whole, _ = _one(_base(dtype=dtype), 12)
    _, saved = _one(_base(dtype=dtype), 12, save_at=5)
    assert 5 <= saved[1].position.steps < 12
    resumed, _ = _one(_base(dtype=dtype), 12, resume=saved)
    for path, layer in whole.layers.items():
        assert layer.A.equal(resumed.layers[path].A)
        assert layer.B.equal(resumed.layers[path].B)
