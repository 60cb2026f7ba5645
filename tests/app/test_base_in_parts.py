"""Runs for which the base lies in parts on several cards: trained, asked, measured and let go of by the
engine.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from app.engine.measuring import Measuring
from app.web.sections.train.form_values import FormValues
from app.web.sections.train.measure_button import measured_html
from app.web.sections.train.planning import shown_plan
from core.base_model.source import BaseSource
from core.engine import AnswerRequest
from core.errors import InvalidConfig
from core.generate.config import GenerationConfig
from core.train.checklist import GOOD, MIND
from core.train.config import TrainConfig
from core.train.sharding import DDP, FSDP, cards_hold
from core.train.step_count import smaller_plans
from core.train.training_options import TrainingOptions
from storage.tables import FINISHED, INTERRUPTED, PAUSED, RUNNING, STOPPED, Adapter, Base, Run
from tests.app.test_workers import TWO, _factors, _go
from tests.core.test_base_apart import GIVES_UP
from tests.workbenches import QUICK, finish, wait_for

PARTS = TWO | {"sharding": "fsdp", "max_steps": 8, "eval_steps": 4}
HELLO = [{"role": "user", "content": "hello 3"}]
GREEDY = GenerationConfig(temperature=0.0, max_tokens=6)


@pytest.fixture
def quantising(zygote):
    """Processes that quantise need not import what does it, each by itself."""
    zygote.import_too("bitsandbytes")


def _source(session, workbench, run_id):
    from app.engine.preparing import base_source

    return base_source(workbench.registry, workbench.registry.get(Run, run_id))


def _answer(engine, source: BaseSource, between=lambda: None) -> str:
    decoder, text = engine.answer(source, [AnswerRequest(HELLO, None, GREEDY)]), ""
    for events in decoder.steps():
        text += "".join(event.text for event in events)
        between()
    return text


def _notes(workbench, run_id):
    return [note.text for note in workbench.registry.measurements.notes(run_id)]


@pytest.mark.parametrize(("packing", "how"), [("off", "none"), ("on", "nf4")])
@pytest.mark.usefixtures("quantising")
def test_the_adapter_is_the_one_of_a_single_process(workbench, session, packing, how):
    options = PARTS | {"packing": packing, "quantisation": how}
    _, begun = session("alone", **options | {"devices": 1, "sharding": "auto"})
    _go(begun)
    run_id, begun = session("parts", **options, sample_prompts="hello")
    _go(begun)
    assert workbench.registry.get(Run, run_id).state == FINISHED
    assert any(text.startswith("Held in parts on 2 cards") for text in _notes(workbench, run_id))
    assert workbench.registry.measurements.samples(run_id)
    torch.testing.assert_close(_factors(workbench, "parts"), _factors(workbench, "alone"), atol=1e-5, rtol=0)


def test_answers_beside_the_training_are_those_of_the_whole_base(workbench, session):
    run_id, begun = session("run", **PARTS | {"max_steps": 40})
    source = _source(session, workbench, run_id)
    expected = _answer(session.engine, source)
    assert expected
    while begun._group is None:
        assert begun.advance()
    assert session.engine.in_parts
    answered = [_answer(session.engine, source, begun.advance) for _ in range(2)]
    assert answered == [expected, expected]
    assert len(session.engine.score(source, [None], HELLO, "fine thanks")) == 1
    _go(begun)
    assert workbench.registry.get(Run, run_id).state == FINISHED
    session.engine.end_training()
    assert not session.engine.in_parts
    assert _answer(session.engine, source) == expected
    assert session.engine.base.parts == 1


LONGER = QUICK | PARTS | {"max_steps": 60, "eval_steps": 30, "save_steps": 30, "quantisation": "nf4"}


def _losses(workbench, run):
    points = workbench.registry.measurements.points(run.id)
    return [(one.step, one.loss) for one in points if one.loss is not None]


@pytest.mark.usefixtures("quantising")
def test_the_engine_pauses_and_stops_a_run_in_parts_which_goes_on_to_the_same_bits(workbench):
    whole = workbench.training.start("llama", "data", TrainingOptions.parse(LONGER), "whole")
    assert workbench.runs.wait(whole.id).state == FINISHED
    run = workbench.training.start("llama", "data", TrainingOptions.parse(LONGER), "mine")
    wait_for(lambda: _losses(workbench, run))
    workbench.runs.pause(run.id)
    left = workbench.runs.wait(run.id)
    assert left.state == PAUSED, left.reason
    paused_at = _losses(workbench, run)[-1][0]
    workbench.runs.resume(run.id)
    wait_for(lambda: workbench.registry.get(Run, run.id).state == RUNNING)
    workbench.runs.stop(run.id)
    ended = workbench.runs.wait(run.id)
    assert ended.state == STOPPED, ended.reason
    kept = workbench.registry.find(Adapter, "mine")
    assert paused_at <= kept.steps == _losses(workbench, run)[-1][0] < LONGER["max_steps"]
    answered = list(workbench.chats.answer("llama", ["mine"], [HELLO], GREEDY))
    assert answered[-1].finished, "the engine has the whole base again"
    workbench.runs.resume(run.id)
    assert workbench.runs.wait(run.id).state == FINISHED
    assert _losses(workbench, run) == _losses(workbench, whole)
    digests = {one.name: one.digest for one in workbench.registry.all(Adapter)}
    assert digests["mine-2"] == digests["whole"] != digests["mine"]


def test_a_lost_worker_interrupts_the_run_which_goes_on_on_its_cards(workbench, session):
    _go(session("whole", **PARTS)[1])
    session.engine.end_training()
    run_id, begun = session("run", **PARTS)
    assert _go(begun, 20)
    session.engine.end_training()
    run = workbench.registry.get(Run, run_id)
    assert run.state == INTERRUPTED
    assert "Worker 1 of 1 was killed (SIGKILL" in run.reason
    workbench.runs.resume(run_id)
    _go(session.next())
    session.engine.end_training()
    assert workbench.registry.get(Run, run_id).state == FINISHED
    assert len({one.digest for one in workbench.registry.all(Adapter)}) == 1


def test_an_answer_that_breaks_off_in_a_pass_ends_the_run_and_nothing_wrong_is_computed(
    workbench, session, monkeypatch
):
    run_id, begun = session("run", **PARTS | {"max_steps": 40})
    while begun._group is None:
        assert begun.advance()
    layer = session.engine.base.decoder_layers[1]
    hook = layer.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _answer(session.engine, _source(session, workbench, run_id))
    hook.remove()
    _go(begun)
    run = workbench.registry.get(Run, run_id)
    assert run.state == INTERRUPTED
    assert "An answer broke off in the middle of a pass" in run.reason


def _run_short(engine, times):
    """Have the first card's memory not hold so many passes of the training."""
    left = [times]

    def fail(*_):
        if torch.is_grad_enabled() and left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    engine.base.decoder_layers[1].register_forward_pre_hook(fail)


@GIVES_UP
def test_measuring_tells_that_a_card_of_several_has_not_the_memory(workbench, session):
    options = TrainingOptions.parse(QUICK | PARTS).to_dict()
    asked, told = Measuring({"base": "llama", "dataset": "data", "configs": [options]}), []
    for _ in asked.work(workbench.registry, session.engine, workbench.settings):
        if session.engine.in_parts and not told:
            _run_short(session.engine, 1000)
            told.append("short")
    while not asked.out.empty():
        told.append(asked.out.get())
    assert (told[-1]["fits"], told[-1]["verdict"]) == (False, "does not fit")
    assert any("Even one block at a time is too much" in notice for notice in told[-1]["notices"])


@GIVES_UP
@pytest.mark.parametrize(("times", "state"), [(1, FINISHED), (1000, INTERRUPTED)])
def test_a_card_without_memory_has_all_go_on_in_smaller_pieces_or_end_with_the_reason(
    workbench, session, times, state
):
    run_id, begun = session("run", **PARTS | {"gradient_checkpointing": "auto"})
    while begun._group is None:
        assert begun.advance()
    _run_short(session.engine, times)
    _go(begun)
    run = workbench.registry.get(Run, run_id)
    assert run.state == state, run.reason
    notes = _notes(workbench, run_id)
    assert any("did not hold" in text and "computed again in backward" in text for text in notes)
    assert (
        "in the smallest pieces (process 0 of 2: CUDA out of memory. Tried to allocate 2.00 GiB)"
        in run.reason
    ) == (state == INTERRUPTED)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"devices": 1}, "devices is 1"),
        ({"kind": "dora"}, "only LoRA of bases that write text"),
        ({"quantisation": "fp8"}, r"8 bits for speed \(FP8\) is not laid out so"),
        ({"modules_to_save": "lm_head"}, "no embedding, head, bias"),
    ],
)
def test_what_cannot_be_trained_in_parts_is_refused_before_it_is_queued(workbench, session, options, said):
    with pytest.raises(InvalidConfig, match=said):
        session("run", **PARTS | options)


def test_auto_lays_out_what_takes_most_of_a_card():
    gib = float(1 << 30)
    assert cards_hold("auto", 2, 60 * gib, [80 * gib, 80 * gib]).way == DDP
    found = cards_hold("auto", 2, 70 * gib, [80 * gib, 80 * gib])
    assert found.way == FSDP
    assert found.sentence.startswith("Held in parts on 2 cards")
    assert "70.0 GiB, and a card has 80.0 GiB" in found.sentence
    assert cards_hold("auto", 2, 70 * gib, [80 * gib] * 2, refusal="so").way == DDP


def _with_cards(workbench, monkeypatch, totals, room):
    """As an engine on a machine with such cards would tell."""
    cards = {"names": ["H100"] * len(totals), "totals": totals, "host": 64 << 30}
    monkeypatch.setattr(workbench.engine, "status", lambda: {"memory_bytes": room, "cards": cards})


def _point(workbench, name, **options):
    checks = workbench.training.checklist("llama", "data", TrainingOptions.parse(QUICK | options))
    return next((one for one in checks if one.name == name), None)


def test_plan_and_checklist_tell_of_each_card_and_how_they_hold_the_base(workbench, monkeypatch):
    assert _point(workbench, "cards") is None
    unknown = _point(workbench, "cards", devices=2)
    assert "auto lays it out in parts (FSDP) above 85%" in unknown.reason
    weights = 2 * workbench.registry.find(Base, "llama").parameters
    _with_cards(workbench, monkeypatch, [weights, weights], 3 << 30)
    shown, _ = shown_plan(workbench, "llama", "data", FormValues("", QUICK | {"devices": 2}).write())
    assert "free on each card<" in shown
    assert "<dt>Cards</dt><dd>Held in parts on 2 cards (fully sharded, FSDP): each has 1/2 of every" in shown
    alone, _ = shown_plan(workbench, "llama", "data", FormValues("", QUICK).write())
    assert "A part of the base on each of 2 cards" not in alone, "it fits"
    _with_cards(workbench, monkeypatch, [weights, weights], 1 << 20)
    for chosen in ({}, {"quantisation": "nf4"}):
        alone, _ = shown_plan(workbench, "llama", "data", FormValues("", QUICK | chosen).write())
        assert "A part of the base on each of 2 cards</button>" in alone
    _with_cards(workbench, monkeypatch, [80 << 30, 2 << 30], 70 << 30)
    assert _point(workbench, "memory", devices=2).reason.endswith("on each card of 2.0 GiB.")
    whole = _point(workbench, "cards", devices=2)
    assert (whole.state, "(data parallel, DDP)" in whole.reason) == (GOOD, True)
    assert whole.reason.endswith("Each computes 1 of the 2 rows of a micro-batch.")
    assert _point(workbench, "cards", devices=2, micro_batch_size=3).state == MIND
    idle = _point(workbench, "cards", devices=2, micro_batch_size=1)
    assert (idle.state, "1 of 2 cards have none" in idle.reason) == (MIND, True)
    with pytest.raises(InvalidConfig, match="devices = 3 asks for 3 cards, and this machine has 2"):
        workbench.training.start("llama", "data", TrainingOptions.parse(QUICK | {"devices": 3}))
    _with_cards(workbench, monkeypatch, [], 8 << 30)
    assert workbench.training.room(TrainConfig(devices=2)) == 4 << 30, "without cards they share the host's"


def test_what_is_offered_where_a_card_is_too_small_lowers_what_a_card_takes():
    train, whole = TrainConfig(devices=2, micro_batch_size=2), cards_hold("ddp", 2, 1.0, [])
    offered = [change for _, change in smaller_plans(train, whole)]
    assert {"sharding": "fsdp"} in offered
    assert not [change for change in offered if "micro_batch_size" in change], "each has one row already"
    parts = replace(train, sharding="fsdp")
    changes = [change for _, change in smaller_plans(parts, cards_hold("fsdp", 2, 1.0, []))]
    assert not [change for change in changes if "sharding" in change]
    assert {"quantisation": "nf4"} in changes


def test_the_plan_counts_weights_as_they_are_in_memory(workbench, session, monkeypatch):
    def planned(status):
        monkeypatch.setattr(workbench.engine, "status", lambda: status)
        return workbench.training.estimate("llama", "data", TrainingOptions.parse(QUICK)).memory_bytes

    narrow, parameters = planned(None), workbench.registry.find(Base, "llama").parameters
    assert planned({"weight_bytes": 4}) - narrow > 2 * parameters
    finish(session("one", max_steps=6, max_length=64)[1])
    assert session.engine.weight_bytes == session.engine.base.dtype.itemsize == 4
    assert planned(None) == planned({"weight_bytes": 4}), "the last run has shown it"


def test_the_speed_of_a_run_on_other_cards_is_not_taken_for_the_plan(workbench, session):
    finish(session("one", max_steps=6, max_length=64)[1])
    one = TrainingOptions.parse(QUICK | {"max_length": 64})
    two = TrainingOptions.parse(QUICK | {"max_length": 64, "devices": 2})
    alone, both = (workbench.training.estimate("llama", "data", options) for options in (one, two))
    assert alone.seconds is not None
    assert both.seconds is None
    assert both.tokens == alone.tokens, "what the rows are is the same"


def test_what_is_measured_tells_on_which_card_and_how_they_hold_the_base(workbench):
    found, _ = workbench.training.measure("llama", "data", [TrainingOptions.parse(QUICK | {"devices": 2})])
    assert (found["fits"], found["cards"]) == (True, 2)
    assert found["notices"][0].startswith(
        "Each of 2 cards holds the whole base (data parallel, DDP); it takes"
    )
    assert "on the first of 2 cards" in measured_html(found)
