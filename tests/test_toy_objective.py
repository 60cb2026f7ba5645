"""An objective in one file: supervised fine-tuning that is held near the base by a penalty.

Adding one touches nothing else. Here it joins by the name of this module in LORA_WORKBENCH_PLUGINS; one that
stays is a file in core/train/objectives/ that ends with KIND = ….
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

import pytest
import torch

from core.data.formats import Example
from core.data.sequences import Sequences
from core.errors import CannotShare, InvalidConfig
from core.events import EvalDone, RunFailed, StepDone, TrainingDone
from core.lora.config import LoraConfig
from core.options import Config, NoOptions, option
from core.seam import PLUGINS_VARIABLE
from core.train.config import TrainConfig
from core.train.objectives import OBJECTIVES, Metric, Objective
from core.train.training_options import TrainingOptions

# What somebody who adds an objective writes.


@dataclass(frozen=True)
class NearBaseOptions(Config):
    """Options of this objective alone."""

    penalty: float = option(0.5, "Penalty (β)", "What leaving the base costs.", minimum=0.0, maximum=100.0)


class NearBase(Objective):
    """Cross-entropy + β · (an estimate of the divergence from the base, at the trained tokens).

    The estimate is r - 1 - log r with r = p(base) / p(adapter) (Schulman 2020, "Approximating KL
    divergence", k3): never negative, and zero where both agree.
    """

    name, label, order = "near-base", "Near the base", 900
    help = "Learn the answers, but stay near the base."
    options = NearBaseOptions
    wants_base = True
    metrics = (
        Metric("cross_entropy", "Cross-entropy", "nats", lower_is_better=True),
        Metric("divergence", "Divergence from the base", "nats", digits=5, lower_is_better=True),
    )

    def loss(self, tokens, options):
        return tokens.losses.sum() + options.penalty * self._divergence(tokens).sum()

    def measure(self, tokens, options):
        count = tokens.counted.sum()
        return {
            "cross_entropy": (tokens.losses.sum(), count),
            "divergence": (self._divergence(tokens).sum(), count),
        }

    def _divergence(self, tokens):
        log_ratio = torch.where(tokens.counted, tokens.losses - tokens.base, 0.0)
        return log_ratio.exp() - 1 - log_ratio


class _BothWays(Sequences):
    """Each row twice: with its answer said again, and as it is, which is the worse of the two."""

    count, key = 2, ("toy-both-ways", 1)

    def render(self, renderer, examples):
        from core.errors import InvalidData

        doubled = (one for example in examples for one in (self._better(example), example))
        rendered = renderer.render_last(doubled)
        for better in rendered:
            pair = better, next(rendered)
            yield next((one for one in pair if isinstance(one, InvalidData)), pair)

    def _better(self, example):
        *before, last = example.messages
        return dataclasses.replace(example, messages=(*before, {**last, "content": last["content"] * 2}))


class Preferring(Objective):
    """-log σ(the better sequence's log-probability - the worse one's), a mean over rows."""

    name, label, order = "preferring", "Preferring", 901
    help = "Prefer the better of two answers."
    sequences = _BothWays()
    mean_over = "rows"
    wants_sequences = True
    metrics = (Metric("accuracy", "Preferred", "%", digits=1, lower_is_better=False),)

    def loss(self, tokens, options):
        return torch.nn.functional.softplus(-self._margins(tokens)).where(self._there(tokens), 0.0).sum()

    def measure(self, tokens, options):
        there = self._there(tokens)
        return {"accuracy": (100.0 * (there & (self._margins(tokens) > 0)).sum(), there.sum())}

    def _margins(self, tokens):
        better, worse = (-tokens.by_sequence(tokens.losses)).view(-1, 2).unbind(1)
        return better - worse

    def _there(self, tokens):
        return tokens.by_sequence(tokens.counted.float()).view(-1, 2)[:, 0] > 0


KINDS = (NearBase(), Preferring())

# What it then can do.

ROWS = [
    Example(
        number,
        (
            {"role": "user", "content": f"hello {number}"},
            {"role": "assistant", "content": "fine thanks " * (1 + number % 5)},
        ),
    )
    for number in range(23)
]
TRAIN = {"max_steps": 6, "micro_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-3}
LORA = LoraConfig(rank=4, alpha=8, dropout=0.1)


@pytest.fixture(autouse=True)
def plugged(monkeypatch):
    """Child processes inherit it."""
    monkeypatch.setenv(PLUGINS_VARIABLE, "tests.test_toy_objective")


def _request(base, key="run", train=None, penalty=0.5, validation_rows=4, **about):
    """A run of this objective, as the engine's process makes it of a row."""
    from tests.core.helpers import request

    train = train or _train()
    found = request(base, ROWS, LORA, train, key, validation_rows)
    own = NearBaseOptions(penalty=penalty) if train.objective == "near-base" else NoOptions()
    return dataclasses.replace(found, options=TrainingOptions(LORA, train, objective=own), **about)


def _train(**options):
    return TrainConfig(**{"objective": "near-base", **TRAIN, **options})


def _follow(group, at=lambda key, event: None):
    """Adapters and events by run."""
    adapters, events = {}, {}
    for key, event in group.run():
        events.setdefault(key, []).append(event)
        if isinstance(event, TrainingDone):
            adapters[key] = group.adapter(key)
        at(key, event)
    return adapters, events


def _flat(adapter):
    return torch.cat([factor.flatten() for layer in adapter.layers.values() for factor in (layer.A, layer.B)])


def _measured(events):
    return [
        (one.step, one.loss, dict(one.metrics)) for one in events if isinstance(one, (StepDone, EvalDone))
    ]


def test_it_is_listed_and_what_is_not_there_is_refused_with_the_nearest():
    assert OBJECTIVES.names == ("sft", "classification", "near-base", "preferring")
    assert TrainConfig().objective == "sft"
    assert TrainConfig.parse({}).objective == "sft"  # as configurations say that were stored before
    with pytest.raises(InvalidConfig, match="must be one of sft, classification, near-base"):
        TrainConfig(objective="near-bass")


def test_without_its_penalty_it_is_supervised_fine_tuning(tiny_llama):
    from core.train.group import TrainingGroup
    from tests.core.helpers import load

    base = load(tiny_llama)
    plain = _request(base, train=_train(objective="sft"))
    (expected,), events = _runs(TrainingGroup(base, [plain]))
    (found,), own_events = _runs(TrainingGroup(base, [_request(base, penalty=0.0)]))
    torch.testing.assert_close(_flat(found), _flat(expected), rtol=1e-5, atol=1e-7)
    for (step, loss, metrics), (_, plain_loss, none) in zip(
        _measured(own_events), _measured(events), strict=True
    ):
        assert none == {}
        assert loss == pytest.approx(plain_loss, rel=1e-5), step
        assert metrics["cross_entropy"] == pytest.approx(plain_loss, rel=1e-5)
        assert metrics["divergence"] >= 0


def _runs(group):
    adapters, events = _follow(group)
    return list(adapters.values()), [event for one in events.values() for event in one]


def test_its_gradient_is_that_of_the_formula(tiny_llama, tmp_path):
    """Against transformers and PEFT: the same sums by their own logits, differentiated by autograd."""
    from core.lora.bank import AdapterBank
    from core.lora.peft.files import save_adapter
    from core.train.batches import MicroBatch, Shape, collate
    from core.train.group_objective import GroupObjective
    from core.train.memory import ExecutionPlan, Tier
    from core.train.step import MicroBatchStep
    from tests.core.helpers import load, peft_from, random_adapter, token_rows

    base, options = load(tiny_llama), NearBaseOptions(penalty=0.7)
    adapter, rows = random_adapter(base), token_rows(base, ROWS[:3], 128)
    save_adapter(tmp_path, adapter)
    bank = AdapterBank(base.layers, list(adapter.layers), 1, adapter.rank, trainable=True)
    bank.load(0, adapter)
    shape = Shape(1, 3, 128, packed=False, supervised=256, segments=3, fixed=False)
    batch = collate([MicroBatch(rows, [(0,), (1,), (2,)], 1.0)], shape)
    goal = GroupObjective(KINDS[0], [options])
    (figures,) = MicroBatchStep(base, bank, ExecutionPlan(Tier.KEEP, False), goal).train(batch).tolist()

    model = peft_from(tiny_llama, tmp_path)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    losses = torch.cat([_token_losses(model, *rows[row]) for row in range(3)])
    with torch.no_grad(), model.disable_adapter():
        without = torch.cat([_token_losses(model, *rows[row]) for row in range(3)])
    log_ratio = losses - without
    divergence = (log_ratio.exp() - 1 - log_ratio).sum()
    loss = losses.sum() + options.penalty * divergence
    loss.backward()
    expected = [float(one.detach()) for one in (loss, losses.sum(), divergence)]
    assert figures == pytest.approx([*expected, len(losses), len(losses)], rel=1e-4)
    theirs = dict(model.named_parameters())
    for path, factors in bank.factors.items():
        for ours, letter in ((factors.A, "A"), (factors.B, "B")):
            wanted = theirs[f"base_model.model.{path}.lora_{letter}.default.weight"].grad
            torch.testing.assert_close(ours.grad[0], wanted, atol=1e-3, rtol=1e-3)


def _token_losses(model, ids, labels):
    logits = model(input_ids=torch.tensor(ids.copy())[None].long()).logits[0, :-1]
    targets = torch.tensor(labels.copy())[1:].long()
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")[targets != -100]


def test_runs_of_it_learn_together_what_each_learns_alone(tiny_llama):
    from core.train.group import TrainingGroup
    from tests.core.helpers import load

    base = load(tiny_llama)
    penalties = {"free": 0.0, "near": 1.0, "very near": 20.0}
    requests = [_request(base, key, penalty=penalty) for key, penalty in penalties.items()]
    together, events = _follow(TrainingGroup(base, requests))
    for request in requests:
        (alone,), its_events = _runs(TrainingGroup(base, [request]))
        torch.testing.assert_close(_flat(together[request.key]), _flat(alone), rtol=1e-4, atol=1e-5)
        for found, expected in zip(_measured(events[request.key]), _measured(its_events), strict=True):
            assert found[1] == pytest.approx(expected[1], rel=1e-4)
            assert found[2] == pytest.approx(expected[2], rel=1e-3, abs=1e-6)
    divergences = [
        next(one.metrics["divergence"] for one in reversed(events[key]) if isinstance(one, EvalDone))
        for key in penalties
    ]
    assert divergences == sorted(divergences, reverse=True)
    assert divergences[0] > 2 * divergences[2]


def test_a_run_of_another_objective_waits_for_its_own_turn(tiny_llama):
    from core.train.group import TrainingGroup
    from tests.core.helpers import load

    base = load(tiny_llama)
    other = _request(base, "other", _train(objective="sft"))
    adapters, events = _follow(TrainingGroup(base, [_request(base, "first"), other]))
    assert set(adapters) == {"first"}
    (refused,) = events["other"]
    assert isinstance(refused, RunFailed)
    assert isinstance(refused.error, CannotShare)
    assert "Supervised fine-tuning" in str(refused.error)
    assert "Near the base" in str(refused.error)


def test_its_metrics_are_the_same_in_pieces_and_after_a_resume(tiny_llama, monkeypatch):
    from core.train.group import TrainingGroup
    from core.train.step import MicroBatchStep
    from tests.core.helpers import load

    base, real, saved = load(tiny_llama), MicroBatchStep._plain, []
    (whole,), events = _runs(TrainingGroup(base, [_request(base)]))

    group = TrainingGroup(base, [_request(base)])

    def save(key, event):
        if isinstance(event, EvalDone) and event.step == 2 and group.told("run", 2):
            saved.append((group.adapter("run"), group.state("run")))
            group.stop("run")

    _, before = _follow(group, save)
    (resumed,), after = _runs(TrainingGroup(base, [_request(base, resume=saved[0])]))
    assert _flat(resumed).equal(_flat(whole))
    first = [one for one in _measured(before["run"]) if one[0] <= 2]
    assert [*first, *_measured(after)] == _measured(events)

    calls = []

    def plain(step, batch):
        calls.append(1)
        if len(calls) > 3 and batch.ids.shape[0] > 1:  # a step's second micro-batch, so its first is redone
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(step, batch)

    monkeypatch.setattr(MicroBatchStep, "_plain", plain)
    _, pieces = _runs(TrainingGroup(base, [_request(base)]))
    for found, expected in zip(_measured(pieces), _measured(events), strict=True):
        assert found[1] == pytest.approx(expected[1], rel=1e-4)
        assert found[2] == pytest.approx(expected[2], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("packing", ["off", "on"])
def test_one_row_may_become_several_sequences_that_stay_together(tiny_llama, tmp_path, packing):
    from core.data.dataset_file import StoredRow
    from core.data.tokens import TokenRows, tokenised
    from core.train.group import TrainingGroup
    from core.train.run import RunRequest
    from tests.core.helpers import load

    base, objective = load(tiny_llama), OBJECTIVES.get("preferring")
    stored = [StoredRow(one.row, 0, one) for one in ROWS]
    plain = tokenised(stored, "d", base.renderer, tmp_path)
    file = tokenised(stored, "d", base.renderer, tmp_path, sequences=objective.sequences)
    assert (len(plain), len(file)) == (23, 46)  # each has a file of its own
    with pytest.raises(InvalidConfig, match="truncate or drop"):
        TokenRows(file, 64, over_length="split", each=2)
    validation = torch.arange(23).numpy() < 4
    rows = TokenRows(file, 64, validation=validation, each=2)
    train = _train(objective="preferring", packing=packing, max_length=64, max_steps=12)
    (_,), events = _runs(TrainingGroup(base, [RunRequest("run", rows, TrainingOptions(LORA, train))]))
    judged = [one for one in events if isinstance(one, EvalDone)]
    assert judged[-1].loss < judged[0].loss
    assert all(one.metrics["accuracy"] % 25 == 0 for one in judged)  # of four rows


# In the service.


def test_a_run_of_it_shows_its_metrics_wherever_a_run_is_shown(session, workbench):
    from typer.testing import CliRunner

    from app.cli.main import app
    from app.web.parts.curve import COLUMNS, run_points
    from storage.tables import Run
    from tests.workbenches import finish

    run_id, running = session("near", max_steps=6, eval_steps=3, objective="near-base")
    finish(running)
    assert workbench.registry.get(Run, run_id).state == "finished"

    points = workbench.registry.measurements.points(run_id)
    assert len(points) == 6 + 3  # an evaluation before the first step, and two more
    for point in points:
        assert set(point.metrics) == {"cross_entropy", "divergence"}
        assert point.metrics["divergence"] >= 0

    news = run_points(workbench, run_id, 0)
    assert [one["label"] for one in news["metrics"]] == ["Cross-entropy", "Divergence from the base"]
    assert news["points"][-1][COLUMNS.index("metrics")] == points[-1].metrics

    command = ["runs", "show", str(run_id), "--home", str(workbench.settings.home), "--json"]
    shown = json.loads(CliRunner().invoke(app, command).stdout)
    assert shown["last"]["metrics"] == points[-2].metrics
    by_name = {one["name"]: one for one in shown["metrics"]}
    assert by_name["divergence"]["label"] == "Divergence from the base"
    assert by_name["divergence"]["lower_is_better"] is True
    assert by_name["divergence"]["train"] == points[-2].metrics["divergence"]
    assert by_name["divergence"]["validation"] == points[-1].metrics["divergence"]


def test_the_curve_in_the_terminal_draws_its_metrics(session, workbench):
    from app.cli.terminal_curve import picture
    from storage.tables import Run
    from tests.workbenches import finish

    run_id, running = session("near", max_steps=6, eval_steps=3, objective="near-base")
    finish(running)
    text = picture(
        workbench.registry.get(Run, run_id), workbench.registry.measurements.points(run_id), 100, 40
    )
    assert "train loss" in text
    assert "Divergence from the base (validation)" in text


def test_the_command_line_trains_it_in_an_engine_of_its_own(workbench):
    from typer.testing import CliRunner

    from app.cli.main import app
    from tests.workbenches import QUICK

    home = ["--home", str(workbench.settings.home), "--json"]
    options = {**QUICK, "objective": "near-base", "penalty": 0.25}
    given = [part for pair in options.items() for part in ("--set", f"{pair[0]}={pair[1]}")]
    done = CliRunner().invoke(app, ["train", "--base", "llama", "--data", "data", *given, *home])
    found = json.loads(done.stdout)
    assert (done.exit_code, found["state"], found["config"]["objective"]) == (
        0,
        "finished",
        {"penalty": 0.25},
    )
    assert workbench.registry.measurements.points(found["id"])[-1].metrics.keys() == {
        "cross_entropy",
        "divergence",
    }


def test_the_form_offers_it_with_its_options():
    from app.web.sections.train.option_groups import groups

    fields = {option["name"]: option for group in groups() for option in group["options"]}
    assert ("near-base", "Near the base") in [choice[:2] for choice in fields["objective"]["choices"]]
    assert fields["penalty"]["only"] == ("objective", "near-base")
