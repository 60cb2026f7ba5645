"""Runs for which the base lies in parts on several cards: trained, asked, measured and let go of by the
engine.
"""

from __future__ import annotations

import pytest
import torch

from core.base_model.source import BaseSource
from core.engine import AnswerRequest
from core.errors import InvalidConfig
from core.generate.config import GenerationConfig
from core.train.sharding import DDP, FSDP, cards_hold
from storage.tables import FINISHED, INTERRUPTED, Run
from tests.app.test_workers import TWO, _factors, _go

PARTS = TWO | {"sharding": "fsdp", "max_steps": 8, "eval_steps": 4}
HELLO = [{"role": "user", "content": "hello 3"}]


def _source(session, workbench, run_id):
    from app.engine.preparing import base_source

    return base_source(workbench.registry, workbench.registry.get(Run, run_id))


def _answer(engine, source: BaseSource, between=lambda: None) -> str:
    config = GenerationConfig(temperature=0.0, max_tokens=6)
    decoder, text = engine.answer(source, [AnswerRequest(HELLO, None, config)]), ""
    for events in decoder.steps():
        text += "".join(event.text for event in events)
        between()
    return text


def _notes(workbench, run_id):
    return [note.text for note in workbench.registry.measurements.notes(run_id)]


@pytest.mark.parametrize("packing", ["off", "on"])
def test_the_adapter_is_the_one_of_a_single_process(workbench, session, packing):
    _, begun = session("alone", **PARTS | {"devices": 1, "sharding": "auto", "packing": packing})
    _go(begun)
    run_id, begun = session("parts", **PARTS | {"packing": packing}, sample_prompts="hello")
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


def test_a_lost_worker_interrupts_the_run_which_goes_on_on_its_cards(workbench, session):
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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"devices": 1}, "devices is 1"),
        ({"kind": "dora"}, "only LoRA of bases that write text"),
        ({"quantisation": "int8"}, "only a base in full precision"),
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
