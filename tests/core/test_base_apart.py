"""A base of which each process holds a part trains what one process trains on the whole of it."""

import math
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.reductions import StorageWeakRef
from torch.testing._internal.distributed.fake_pg import FakeStore

from core.base_model.files import stored_tensors
from core.base_model.quantisation import INT8, NF4, NONE
from core.base_model.sharded import GatheredLayers, load_sharded, shard
from core.base_model.skeleton import skeleton
from core.lora.config import LoraConfig
from core.train.base_shape import BaseShape
from core.train.checklist import GOOD, MIND, checklist
from core.train.config import TrainConfig
from core.train.estimate import DataShape, estimate
from core.train.sharding import DDP, FSDP
from core.train.step_count import smaller_plans
from core.train.training_options import TrainingOptions
from tests.core.helpers import CPU, load
from tests.core.test_checklist import AROUND
from tests.core.test_data_apart import CASES, _alone, _case, _factors, _run, one_process, together  # noqa: F401
from tests.core.training_worker import _held_bytes


@pytest.mark.parametrize(
    ("case", "how", "processes"),
    [
        ("plain", NONE, 2),
        ("plain", NF4, 4),
        ("plain", INT8, 2),
        ("packed with dropout", NONE, 4),
        ("packed with dropout", NF4, 2),
        ("packed with dropout", INT8, 4),
    ],
)
def test_base_apart_gives_the_adapters_of_one_process(
    tiny_llama,
    together,  # noqa: F811
    one_process,  # noqa: F811
    processes,
    case,
    how,
):
    runs, (alone, expected) = _case(CASES[case]), one_process(case, how)
    found, out = together(processes, tiny_llama, runs, base_apart=True, quantisation=how)
    base = load(tiny_llama)
    held = [int((out / f"held-{rank}").read_text()) for rank in range(processes)]
    assert max(held) == _shape(tiny_llama, base).part_bytes(how, 4, processes)
    for name in runs:
        torch.testing.assert_close(
            _factors(base, out / name), _factors(base, expected / name), atol=1e-5, rtol=0
        )
        assert [loss for *_, loss in found[name]["losses"]] == pytest.approx(
            [loss for *_, loss in alone[name]["losses"]], abs=1e-5
        )


def test_each_layer_is_computed_again_and_a_process_has_no_rows_left(tiny_llama, together, tmp_path):  # noqa: F811
    runs = {"run": _run(rows=9, gradient_checkpointing="on", packing="off", micro_batch_size=3)}
    _, expected = _alone(tmp_path, tiny_llama, runs, quantisation=NF4)
    _, out = together(4, tiny_llama, runs, base_apart=True, quantisation=NF4)
    base = load(tiny_llama)
    torch.testing.assert_close(
        _factors(base, out / "run"), _factors(base, expected / "run"), atol=1e-5, rtol=0
    )


def test_layers_are_compiled_between_being_gathered_and_let_go(tiny_llama, together, tmp_path):  # noqa: F811
    options = {"packing": "on", "gradient_checkpointing": "on", "lora": {"dropout": 0.2}, "max_steps": 3}
    _, expected = _alone(tmp_path, tiny_llama, {"run": _run(compile="off", **options)}, quantisation=NF4)
    runs, job = {"run": _run(compile="on", **options)}, {"base_apart": True, "compiler": "aot_eager"}
    found, out = together(2, tiny_llama, runs, quantisation=NF4, **job)
    assert any("Compiling" in text for text in found["run"]["notices"])
    base = load(tiny_llama)
    torch.testing.assert_close(
        _factors(base, out / "run"), _factors(base, expected / "run"), atol=1e-5, rtol=0
    )


def test_a_kind_that_reads_the_weights_is_refused(tiny_llama, together):  # noqa: F811
    found, _ = together(2, tiny_llama, {"run": _run(lora={"kind": "dora"})}, base_apart=True)
    assert "not trained on a base of which each process holds a part" in found["run"]["error"]


GIVES_UP = pytest.mark.skipif(
    not GatheredLayers.can_give_up, reason="this torch cannot go on after a pass that was broken off"
)


@GIVES_UP
@pytest.mark.parametrize(
    ("where", "processes", "how"),
    [
        ("forward", [1], NONE),
        ("backward", [0], NF4),
        ("backward", [0, 1], NONE),
        ("evaluating", [0], NONE),
    ],
)
def test_processes_that_run_out_of_memory_go_on_together_in_smaller_pieces(
    tiny_llama,
    together,  # noqa: F811
    tmp_path,
    where,
    processes,
    how,
):
    runs = {
        "run": _run(
            rows=64,
            packing="off",
            gradient_accumulation_steps=2,
            max_steps=3,
            learning_rate=1e-3,  # float32's rounding moves a factor by a share of it, see load_float64()
            lora={"dropout": 0.2},
        )
    }
    _, expected = _alone(tmp_path, tiny_llama, runs, quantisation=how)
    short = {"processes": processes, "rows": 1, "where": where}
    found, out = together(2, tiny_llama, runs, base_apart=True, short=short, quantisation=how)
    base = load(tiny_llama)
    torch.testing.assert_close(
        _factors(base, out / "run"), _factors(base, expected / "run"), atol=1e-5, rtol=0
    )
    told = found["run"]["notices"]
    assert "The memory did not hold" in told[0]
    assert "each micro-batch in 2 pieces" in told[-1]


@GIVES_UP
def test_where_no_smaller_plan_helps_all_processes_end_with_the_reason(tiny_llama, together):  # noqa: F811
    runs = {"run": _run(packing="off")}
    short = {"processes": [1], "rows": 0, "where": "forward"}
    found, _ = together(2, tiny_llama, runs, base_apart=True, short=short)
    assert found["error"].startswith("process 1 of 2: CUDA out of memory")


@pytest.fixture
def three_processes():
    """This is the first of three; nothing is sent."""
    dist.init_process_group("fake", rank=0, world_size=3, store=FakeStore())
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("how", [NONE, NF4, INT8])
def test_what_a_process_has_of_any_base_is_known_to_the_byte(any_model, three_processes, how):
    base = load(any_model, quantisation=how)
    shape = _shape(any_model, base)
    assert _held_bytes(base) + shape.made_bytes(how, 4) == shape.held_bytes(how, 4)
    shard(base, CPU)
    assert _held_bytes(base) == shape.part_bytes(how, 4, 3)


def test_a_process_never_has_more_of_a_base_in_few_bits_than_its_part_and_a_layer(
    tiny_llama, three_processes, monkeypatch
):
    import bitsandbytes.functional

    quantise, whole, most = bitsandbytes.functional.quantize_4bit, [], []

    def watched(*given, **options):
        numbers, state = quantise(*given, **options)
        whole.append(StorageWeakRef(numbers.untyped_storage()))
        most.append(sum(not one.expired() for one in whole))
        return numbers, state

    monkeypatch.setattr(bitsandbytes.functional, "quantize_4bit", watched)
    told = {"fingerprint": "f" * 64, "name": "tiny", "template": "", "quantisation": NF4}
    base = load_sharded(tiny_llama, device=CPU, dtype=torch.float32, **told)
    assert (base.parts, base.quantisation, len(most)) == (3, NF4, 14)
    assert max(most) == 7, "the linear layers of one decoder layer"
    assert _held_bytes(base) == _shape(tiny_llama, base).part_bytes(NF4, 4, 3)


_WIDTHS = {"q": (8192, 8192), "k": (8192, 1024), "v": (8192, 1024), "o": (8192, 8192)}
_MLP = {"gate": (8192, 28_672), "up": (8192, 28_672), "down": (28_672, 8192)}
SHAPES_OF_70B = {
    f"model.layers.{number}.{place}.{name}_proj": shape
    for number in range(80)
    for place, shapes in (("self_attn", _WIDTHS), ("mlp", _MLP))
    for name, shape in shapes.items()
} | {"lm_head": (8192, 32_000)}


def _shape(folder, base):
    """As the registry knows it."""
    made, config = skeleton(folder), base.model.config
    tensors = {name: entry.shape for name, (_, entry) in stored_tensors(folder).items()}
    numbers = sum(math.prod(shape) for shape in tensors.values())
    layers, hidden = config.num_hidden_layers, config.hidden_size
    return BaseShape(
        made.shapes, made.head, numbers, layers, hidden, config.vocab_size, made.wholes, {}, tensors
    )


def test_the_plan_tells_of_one_of_several_cards(tiny_llama):
    shape = _shape(tiny_llama, load(tiny_llama))

    def planned(cards=(), **options):
        train = TrainConfig(**{"micro_batch_size": 4, "packing": "off"} | options)
        about = TrainingOptions(LoraConfig(), train)
        return estimate(
            shape,
            DataShape(100, 400.0),
            about,
            bytes_per_weight=4,
            tokens_per_second=None,
            card_bytes=cards,
        )

    one, both, parts = planned(), planned(devices=2), planned(devices=2, sharding="fsdp")
    half = planned(micro_batch_size=2)
    assert one.hold is None
    assert (both.hold.way, parts.hold.way) == (DDP, FSDP)
    assert both.memory_bytes == half.memory_bytes < one.memory_bytes, "each has its share of the batch"
    whole, part, gathered = (
        shape.held_bytes(NONE, 4),
        shape.part_bytes(NONE, 4, 2),
        shape.gathered_bytes(NONE, 4),
    )
    assert parts.memory_bytes - both.memory_bytes == part + gathered - whole
    assert planned(devices=2, cards=[1.1 * whole] * 2).hold.way == FSDP
    assert planned(devices=2, cards=[2.0 * whole] * 2).hold.way == DDP
    assert planned(devices=2, machines=2, cards=[1.1 * whole] * 2).hold.way == DDP, "of one machine alone"
    assert "4 cards of 2 machines" in planned(devices=2, machines=2).hold.sentence


def test_a_base_of_70b_in_4_bits_on_two_cards_of_24_gib_is_offered():
    """Llama 2 70B, as its files say, with LoRA of rank 16 on queries and values."""
    base = BaseShape(SHAPES_OF_70B, "lm_head", 68_976_648_192, 80, 8192, 32_000)
    room, lora = int(23.5 * 2**30), LoraConfig(rank=16, alpha=32, target_modules="q_proj,v_proj")
    around = replace(AROUND, layer_shapes=SHAPES_OF_70B, base_parameters=base.parameters, room=room)

    def planned(**chosen):
        train = {"micro_batch_size": 2, "max_length": 512, "gradient_checkpointing": "on"} | chosen
        options = TrainingOptions(lora, TrainConfig(**train))
        rows, width, cards = (
            DataShape(1000, 400.0, row_tokens=300),
            {"bytes_per_weight": 2},
            [24.0 * 2**30] * 2,
        )
        plan = estimate(base, rows, options, **width, tokens_per_second=None, card_bytes=cards)
        point = next(one for one in checklist(around, options, plan) if one.name == "memory")
        return plan, point, [change for _, change in smaller_plans(options.train, plan.hold, plan.cards)]

    _, point, offered = planned(quantisation="nf4")
    assert (point.state, {"devices": 2, "sharding": "fsdp"} in offered) == (MIND, True)
    assert "or a part of it on each of 2 cards (devices=2, sharding=fsdp)" in point.reason
    for sharding in ("auto", "fsdp"):
        _, point, offered = planned(devices=2, sharding=sharding)
        assert (point.state, {"quantisation": "nf4"} in offered) == (MIND, True)
        assert "quantisation=nf4" in point.reason
        plan, point, _ = planned(devices=2, sharding=sharding, quantisation="nf4")
        assert (plan.hold.way, point.state) == (FSDP, GOOD)
        assert plan.memory_bytes / 2**30 == pytest.approx(21.2, abs=0.1)
