"""An adapter kind from elsewhere: this file alone adds it, and trains, saves, loads and answers with it.

Nothing heavy is imported at the head, since this module is the plug-in, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from core.combine.config import CombineConfig
from core.data.formats import Example
from core.errors import InvalidAdapter, InvalidConfig
from core.events import RunFailed, StepDone, TrainingDone
from core.generate.config import GenerationConfig
from core.lora.config import LoraConfig
from core.lora.kinds import ADAPTER_KINDS, AdapterKind, LayerTensor
from core.lora.peft.config_checks import check_number
from core.options import Config, option
from core.seam import PLUGINS_VARIABLE
from core.train.config import TrainConfig
from core.train.training_options import TrainingOptions

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from core.lora.adapter import AdapterWeights, LayerWeights
    from core.lora.bank import AdapterBank

LIMIT = 0.015


@dataclass(frozen=True)
class RescaleOptions(Config):
    """Of this kind alone."""

    limit: float = option(
        LIMIT, "Limit", "How far a factor may move from its start.", minimum=0.0, maximum=1.0
    )


class Rescale(AdapterKind):
    """y = W·x ⊙ (1 + c·(g − g₀)): the output side of (IA)³ (arXiv 2205.05638), counted from a random start
    g₀, with one strength c for all layers.
    """

    name, label, options = "rescale", "Rescaling", RescaleOptions
    help = "One factor for each output of a layer."

    def check(self, config: LoraConfig) -> None:
        if config.dropout:
            raise InvalidConfig("dropout is of no use to Rescaling; leave it at 0.")

    def tensors(self, n_in: int, n_out: int, rank: int) -> tuple[LayerTensor, ...]:
        return (
            LayerTensor("gain", (n_out,)),
            LayerTensor("strength", (1,)),
            LayerTensor("start", (n_out,), trained=False),
        )

    shared = frozenset({"strength"})

    def start(
        self, n_in: int, n_out: int, rank: int, weight: Tensor, generator: Generator, own: RescaleOptions
    ) -> Mapping[str, Tensor]:
        import torch

        start = torch.rand(n_out, generator=generator)
        return {"gain": start.clone(), "strength": torch.ones(1), "start": start}

    def rate_ratio(self, name: str, plus: float) -> float:
        return 10.0 if name == "gain" else 1.0

    def after_step(self, bank: AdapterBank, slot: int, done: int, planned: int, own: RescaleOptions) -> None:
        for mine in bank.row(slot).values():
            mine["gain"].clamp_(mine["start"] - own.limit, mine["start"] + own.limit)

    def added(
        self, x: Tensor, y: Tensor, weight: Tensor, tensors: Mapping[str, Tensor], scale: Tensor
    ) -> Tensor:
        change = scale[:, None] * tensors["strength"] * (tensors["gain"] - tensors["start"])
        return y * change[:, None]

    def is_trained(self, layer: LayerWeights) -> bool:
        return not layer.tensors["gain"].equal(layer.tensors["start"])

    not_low_rank = "it scales the outputs of W"

    peft_type = "RESCALE"
    peft_names: Mapping[str, str] = {
        "gain": "rescale.gain",
        "strength": "rescale.strength",
        "start": "rescale.start",
    }
    peft_keys = frozenset({"rescale_limit"})

    def peft_settings(self, adapter: AdapterWeights) -> dict[str, Any]:
        return {**super().peft_settings(adapter), "rescale_limit": LIMIT}

    def check_peft(self, config: Mapping[str, Any]) -> None:
        check_number(config, "rescale_limit", 0, 1)


KINDS = (Rescale(),)

ROWS = [
    Example(
        number,
        (
            {"role": "user", "content": f"hello {number}"},
            {"role": "assistant", "content": "fine thanks " * (1 + number % 4)},
        ),
    )
    for number in range(20)
]
SHARED = {"micro_batch_size": 2, "max_length": 96, "learning_rate": 1e-3}
RUNS = {
    "first": (ROWS, LoraConfig(kind="lora", rank=2), TrainConfig(max_steps=6, seed=1, **SHARED)),
    "second": (
        ROWS[:12],
        LoraConfig(kind="lora", rank=2, target_modules="q_proj,down_proj"),
        TrainConfig(max_steps=4, seed=2, gradient_accumulation_steps=2, **SHARED),
    ),
}
GREEDY = GenerationConfig(max_tokens=12, temperature=0)


@pytest.fixture(autouse=True)
def _plugged(monkeypatch):
    monkeypatch.setenv(PLUGINS_VARIABLE, __name__)


@pytest.fixture
def base(tiny_llama):
    from tests.core.helpers import load

    return load(tiny_llama)


@pytest.fixture
def adapter(base):
    """One that does something on every layer."""
    return _random(base)


def _rescaling(runs=RUNS):
    """The runs with the toy kind."""
    return {
        key: (rows, LoraConfig(**{**lora.to_dict(), "kind": "rescale"}), train)
        for key, (rows, lora, train) in runs.items()
    }


def _random(base, seed=0):
    import torch

    from core.lora.adapter import AdapterWeights, LayerWeights

    generator = torch.Generator().manual_seed(seed)
    layers = {
        path: LayerWeights(
            {
                "gain": torch.randn(n_out, generator=generator) * 0.3,
                "strength": torch.full((1,), 1.5),
                "start": torch.randn(n_out, generator=generator) * 0.3,
            },
            1.0,
        )
        for path, (_, n_out) in base.layer_shapes.items()
        if path != base.head
    }
    return AdapterWeights(1, 1.0, 0.0, layers, base.fingerprint, base.name, kind="rescale")


def _train(base, runs):
    from core.train.group import TrainingGroup
    from tests.core.helpers import request

    group = TrainingGroup(base, [request(base, *parts, key=key) for key, parts in runs.items()])
    adapters, losses = {}, {}
    for key, event in group.run():
        assert not isinstance(event, RunFailed), event.error
        if isinstance(event, StepDone):
            losses.setdefault(key, []).append(event.loss)
        if isinstance(event, TrainingDone):
            adapters[key] = group.adapter(key)
    return adapters, losses


def test_it_is_among_the_kinds_while_it_is_plugged_in(monkeypatch):
    assert (ADAPTER_KINDS.names[0], ADAPTER_KINDS.names[-1]) == ("lora", "rescale")
    assert LoraConfig(kind="rescale").kind == "rescale"
    with pytest.raises(InvalidConfig, match="of no use to Rescaling"):
        LoraConfig(kind="rescale", dropout=0.1)
    monkeypatch.delenv(PLUGINS_VARIABLE)
    with pytest.raises(InvalidConfig, match="kind must be one of lora"):
        LoraConfig(kind="rescale")


def test_its_parameters_are_counted_on_shapes(base):
    from core.lora.targets import trainable_parameter_count

    lora = LoraConfig(kind="rescale", target_modules="q_proj")
    targets = [path for path in base.layers if path.endswith("q_proj")]
    expected = sum(base.layer_shapes[path][1] for path in targets) + 1  # the strength is shared
    assert trainable_parameter_count(base.layer_shapes, targets, lora) == expected


def test_a_fresh_one_changes_nothing_and_a_trained_one_scales_each_output(base, adapter):
    import torch

    from core.lora.bank import AdapterBank
    from tests.core.helpers import logits

    before = logits(base.model)
    bank = AdapterBank(base.layers, list(adapter.layers), 1, 1, kind=KINDS[0], trainable=True)
    bank.initialise(0, LoraConfig(kind="rescale"), RescaleOptions(), list(adapter.layers), seed=3)
    with bank.use():
        assert torch.equal(logits(base.model), before)
    bank.load(0, adapter)
    path = next(iter(adapter.layers))
    layer, own = base.layers[path], adapter.layers[path].tensors
    x = torch.randn(2, 3, layer.in_features)
    expected = layer.base(x) * (1 + 1.5 * (own["gain"] - own["start"]))
    with bank.use():
        torch.testing.assert_close(layer(x), expected)


def test_two_train_together_as_each_does_alone(base):
    import torch

    from tests.core.helpers import logits

    before = logits(base.model)
    together, losses = _train(base, _rescaling())
    for key, run in _rescaling().items():
        alone, its_losses = _train(base, {key: run})
        assert losses[key] == pytest.approx(its_losses[key], rel=1e-4)
        assert list(alone[key].layers) == list(together[key].layers)
        for path, layer in alone[key].layers.items():
            found = together[key].layers[path].tensors
            torch.testing.assert_close(found["gain"], layer.tensors["gain"], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(found["strength"], layer.tensors["strength"], atol=1e-5, rtol=1e-5)
            assert found["start"].equal(layer.tensors["start"])
            moved = (found["gain"] - found["start"]).abs()
            assert 0 < moved.max() <= LIMIT + 1e-6  # as after_step() keeps it
        strengths = {layer.tensors["strength"].item() for layer in alone[key].layers.values()}
        assert len(strengths) == 1  # all layers have one, which has learnt
        assert strengths != {1.0}
    assert losses["first"][-1] < losses["first"][0]
    assert torch.equal(logits(base.model), before)


def test_it_goes_on_from_a_checkpoint_as_if_nothing_had_happened(base, tmp_path):
    from core.lora.peft.files import load_adapter, save_adapter
    from core.train.group import TrainingGroup
    from core.train.run import RunRequest
    from core.train.run_state import RunState
    from tests.core.helpers import request

    asked = request(base, *_rescaling()["first"])
    group = TrainingGroup(base, [asked])
    for _, event in group.run():
        if isinstance(event, StepDone) and event.step == 3:
            save_adapter(tmp_path, group.adapter("run"))
            group.state("run").save(tmp_path)
        if isinstance(event, TrainingDone):
            whole = group.adapter("run")
    resume = load_adapter(tmp_path, base.layer_shapes, base.head), RunState.load(tmp_path)
    group = TrainingGroup(base, [RunRequest("run", asked.rows, asked.options, resume)])
    for _, event in group.run():
        if isinstance(event, TrainingDone):
            resumed = group.adapter("run")
    assert all(resumed.layers[path].equals(layer) for path, layer in whole.layers.items())


def test_it_learns_beside_another_kind_what_it_learns_alone(base):
    mixed = {"first": _rescaling()["first"], "second": RUNS["second"]}
    together, losses = _train(base, mixed)
    assert {key: one.kind for key, one in together.items()} == {"first": "rescale", "second": "lora"}
    for key, run in mixed.items():
        alone, its_losses = _train(base, {key: run})
        assert losses[key] == pytest.approx(its_losses[key], rel=1e-5)
        assert list(alone[key].layers) == list(together[key].layers)


def test_it_is_written_and_read_in_pefts_folder(base, adapter, tmp_path):
    from core.lora.foreign.fit import fit
    from core.lora.foreign.look import look
    from core.lora.foreign.take import take
    from core.lora.peft.files import load_adapter, save_adapter

    save_adapter(tmp_path, adapter)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "RESCALE"
    (tmp_path / "staging").mkdir()
    looked_at = look(take(tmp_path, tmp_path / "staging"))
    assert looked_at.evidence.sentence().startswith("Rescaling in PEFT layout")
    for found in (
        load_adapter(tmp_path, base.layer_shapes, base.head),
        fit(looked_at, base.layer_shapes, base.head),
    ):
        assert found.kind == "rescale"
        assert found.is_trained()
        assert found.layers.keys() == adapter.layers.keys()
        assert all(found.layers[path].equals(layer) for path, layer in adapter.layers.items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rescale_limit": 3}, "rescale_limit is 3; expected a number from 0 to 1"),
        ({"lora_alpha": 8}, "'lora_alpha' is not known"),
        ({"peft_type": "LORA"}, "'rescale_limit' is not known"),
        ({"peft_type": "OTHER"}, "only .*LORA.* or RESCALE"),
        ({"target_modules": ["q_proj"]}, "target_modules does not name"),
    ],
)
def test_its_configuration_is_checked_as_strictly_as_loras(base, adapter, tmp_path, changes, said):
    from core.lora.peft.files import load_adapter, save_adapter

    save_adapter(tmp_path, adapter)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(InvalidAdapter, match=said):
        load_adapter(tmp_path, base.layer_shapes, base.head)


def _damaged(tensors, how):
    import torch

    name = next(iter(tensors))
    if how == "missing":
        del tensors[name]
    elif how == "shape":
        tensors[name] = torch.zeros(3)
    elif how == "nan":
        tensors[name] = torch.full_like(tensors[name], torch.nan)
    else:
        tensors[name.replace("rescale", "other")] = tensors.pop(name)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", "do not belong together"),
        ("shape", "this base needs"),
        ("nan", "NaN or infinite"),
        ("name", "no Rescaling factor"),
    ],
)
def test_its_tensors_are_checked_as_strictly_as_loras(base, adapter, tmp_path, how, said):
    from safetensors.torch import load_file, save_file

    from core.lora.peft.files import load_adapter, save_adapter

    save_adapter(tmp_path, adapter)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    _damaged(tensors, how)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InvalidAdapter, match=said):
        load_adapter(tmp_path, base.layer_shapes, base.head)


def _answers(base, bank, slots):
    from core.generate.decode import Decoder, RowRequest

    decoder = Decoder(base, bank, [RowRequest([5, 9, 30, 7], slot, GREEDY) for slot in slots])
    rows = {row.index: row for row in decoder._rows}
    for _ in decoder.steps():
        pass
    return [rows[index].ids for index in range(len(slots))]


def test_it_answers_beside_lora_and_the_plain_base_in_one_batch(base, adapter):
    from core.lora.mixed_bank import MixedBank, loaded_bank
    from tests.core.helpers import random_adapter

    lora = random_adapter(base)
    targets = sorted(lora.layers)
    alone = [_answers(base, loaded_bank(base.layers, [one]), [0])[0] for one in (lora, adapter)]
    plain = _answers(base, None, [0])[0]
    assert alone[0] != alone[1] != plain
    bank = MixedBank(base.layers, targets, 3, {"lora": 4, "rescale": 1})
    bank.load(1, lora)
    bank.load(2, adapter)
    assert _answers(base, bank, [2, 0, 1]) == [alone[1], plain, alone[0]]
    bank.load(1, adapter)  # a slot that changes its kind keeps nothing of what it held
    bank.load(2, lora)
    assert _answers(base, bank, [1, 2]) == [alone[1], alone[0]]


def test_the_engine_makes_room_for_a_kind_it_has_not_seen(base, adapter):
    from core.adapter_slots import AdapterSlots
    from core.adapter_source import AdapterSource
    from core.lora.mixed_bank import loaded_bank
    from tests.core.helpers import random_adapter

    slots = AdapterSlots(base)
    weights = {"lora": random_adapter(base), "toy": adapter}
    sources = [AdapterSource(key, None, key, "f" * 64, "", one) for key, one in weights.items()]
    placed = {one.digest: slots.seat(one)() for one in sources}
    alone = [_answers(base, loaded_bank(base.layers, [weights[key]]), [0])[0] for key in placed]
    assert _answers(base, slots.bank, list(placed.values())) == alone


def test_its_validation_loss_is_measured_beside_loras(base, adapter):
    from core.options import NoOptions
    from core.reporting import silent
    from core.train.batches import RunData
    from core.train.evaluation import validation_losses
    from tests.core.helpers import random_adapter, token_rows

    train = TrainConfig(**SHARED)
    data = RunData(token_rows(base, ROWS, 96, validation_rows=4), train)
    three = [random_adapter(base), adapter, random_adapter(base, size=0.0)]
    together = validation_losses(base, data, three, train, NoOptions(), silent)
    alone = [validation_losses(base, data, [one], train, NoOptions(), silent)[0] for one in three]
    assert together == pytest.approx(alone, rel=1e-5)
    assert len({round(loss, 3) for loss in together}) == 3  # the last is the plain base's


def test_what_needs_low_rank_factors_refuses_it_with_its_reason(base, adapter, tiny_llama):
    from core.combine.combining import Part, combine, compare_parents, resize
    from core.lora.anatomy import anatomy, compare_subspaces
    from core.merge.merge import sources
    from core.reporting import silent

    parts = [Part("one", adapter, 1.0)]
    for work in (
        lambda: combine(parts, CombineConfig(), silent),
        lambda: compare_parents(parts),
        lambda: resize(adapter, 2),
        lambda: anatomy(adapter),
        lambda: compare_subspaces(adapter, adapter),
        lambda: sources(tiny_llama, adapter, frozenset()),
    ):
        with pytest.raises(InvalidAdapter, match="Rescaling is none: it scales the outputs of W"):
            work()


# In the service, the command line and the form.

OWN = {"kind": "rescale", "limit": 0.01, "dropout": 0.0}


def test_the_engine_trains_it_and_answers_with_it_beside_lora(workbench, trained):
    from storage.tables import Adapter
    from tests.workbenches import QUICK

    run = workbench.training.start("llama", "data", TrainingOptions.parse({**QUICK, **OWN}), "scaled")
    assert workbench.runs.wait(run.id).state == "finished"
    row = workbench.registry.find(Adapter, "scaled")
    assert (row.config["lora"]["kind"], row.config["kind"]) == ("rescale", {"limit": 0.01})
    said = json.loads((workbench.registry.blobs.verify(row.digest) / "adapter_config.json").read_text())
    assert said["peft_type"] == KINDS[0].peft_type
    trained("plain")
    asked = [[{"role": "user", "content": "hello"}]] * 3
    greedy = GenerationConfig(max_tokens=4, temperature=0.0)
    rows = {token.row for token in workbench.chats.answer("llama", [None, "scaled", "plain"], asked, greedy)}
    assert rows == {0, 1, 2}


def test_the_command_line_trains_it_and_lists_its_options(workbench):
    from typer.testing import CliRunner

    from app.cli.main import app
    from tests.workbenches import QUICK

    home = ["--home", str(workbench.settings.home), "--json"]
    given = [part for pair in ({**QUICK, **OWN}).items() for part in ("--set", f"{pair[0]}={pair[1]}")]
    done = CliRunner().invoke(app, ["train", "--base", "llama", "--data", "data", *given, *home])
    found = json.loads(done.stdout)
    assert (done.exit_code, found["state"], found["config"]["kind"]) == (0, "finished", {"limit": 0.01})
    listed = json.loads(CliRunner().invoke(app, ["kinds", "--json"]).stdout)["rows"]
    assert next(row for row in listed if row["set"] == "kind=rescale")["options"].startswith("limit=0.015")


def test_the_form_offers_it_with_its_options():
    from app.web.sections.train.option_groups import groups

    fields = {option["name"]: option for group in groups() for option in group["options"]}
    assert ("rescale", "Rescaling") in [choice[:2] for choice in fields["kind"]["choices"]]
    assert fields["limit"]["default"] == LIMIT
