"""Who answers, by one text: adapters, checkpoints and blends, over an engine of its own."""

from collections import Counter

import pytest

from app.service.chats import MAX_SIDE_BY_SIDE, answer_told
from app.shared.speakers import checkpoint_name, speaker_parts
from core.errors import InvalidConfig, InvalidInput, WrongBase
from core.generate.config import GenerationConfig
from core.train.training_options import TrainingOptions
from storage.errors import NotFound
from storage.tables import Adapter, Base, Run
from tests.workbenches import STEADY, wait_for

HELLO = [{"role": "user", "content": "hello"}]
GREEDY = GenerationConfig(max_tokens=6, temperature=0.0)


def _texts(workbench, speakers):
    texts = [""] * len(speakers)
    for token in workbench.chats.answer("llama", speakers, [HELLO] * len(speakers), GREEDY):
        texts[token.row] += token.text
    return texts


@pytest.fixture
def named(workbench, trained):
    """Adapters with names that a careless reader would take apart."""
    for name in ("a", "b-1.5", "grid rank=4 seed=1", "x+y"):
        trained(name)
    return workbench


@pytest.mark.parametrize(
    ("speaker", "parts"),
    [
        (None, []),
        (" ", []),
        ("a", [("a", 1)]),
        ("a=0.7", [("a", 0.7)]),
        ("a=0.7+b-1.5=-.3", [("a", 0.7), ("b-1.5", -0.3)]),
        ("a=1e+0+x+y=+2", [("a", 1), ("x+y", 2)]),
        ("grid rank=4 seed=1", [("grid rank=4 seed=1", 1)]),
        ("grid rank=4 seed=1=0.5+a=0", [("grid rank=4 seed=1", 0.5), ("a", 0)]),
        ("x+y", [("x+y", 1)]),
    ],
)
def test_a_speaker_is_read_as_what_it_names(named, speaker, parts):
    found = [(part.adapter.name, part.weight) for part in speaker_parts(named.registry, speaker)]
    assert found == parts


@pytest.mark.parametrize(
    ("speaker", "error", "said"),
    [
        ("nobody", NotFound, r"no adapter called 'nobody'\. There are: x\+y, grid"),
        ("a=0.5+nobody=0.5", NotFound, r"no adapter called 'nobody'\. There are: x\+y"),
        ("nobody=half", NotFound, r"no adapter called 'nobody=half'.*A blend is written as name=weight"),
        ("a=half", InvalidConfig, "The weight of a is 'half', which is no number"),
        ("a=nan", InvalidConfig, "The weight of a is 'nan', which is no number"),
        ("a=", InvalidConfig, "The weight of a is '', which is no number"),
        ("a=1e999", InvalidConfig, "weight of an adapter must be from"),
        ("a=0.5+b-1.5", InvalidConfig, r"'b-1\.5' has no weight\. A blend is written as name=weight"),
        ("a=0.5+", InvalidConfig, r"Nothing stands behind the last \+"),
        ("a=0.5+a=0.25", InvalidConfig, "a is in the blend twice; give it one weight"),
        ("run-7@3", NotFound, "There is no run 7"),
        ("run-7@3=0.5+a=1", NotFound, "There is no run 7"),
    ],
)
def test_what_names_nobody_is_refused_with_a_sentence(named, speaker, error, said):
    with pytest.raises(error, match=said):
        speaker_parts(named.registry, speaker)


def test_the_exact_name_of_an_adapter_wins_over_the_syntax(workbench, trained):
    for name in ("a", "a=0.5"):
        trained(name)
    before = trained("as one could be called once")
    with workbench.registry.database.writing() as session:
        session.get(Adapter, before.id).name = "run-1@2"
    for name in ("a=0.5", "run-1@2"):
        assert [part.adapter.name for part in speaker_parts(workbench.registry, name)] == [name]


def test_what_does_not_add_up_is_named_with_the_reason(named, trained, monkeypatch):
    other = named.registry.find(Base, "llama").model_dump() | {"id": None, "name": "other"}
    named.registry.add(Base(**other | {"fingerprint": "e" * 64}))
    with pytest.raises(WrongBase, match=r"The adapter b-1\.5 was made for llama"):
        named.chats.answer("other", ["b-1.5=0.5+a=1"], [HELLO], GREEDY)
    with monkeypatch.context() as whole:
        whole.setattr("app.shared.speakers.has_own_weights", lambda registry, row: row.name == "a")
        with pytest.raises(InvalidConfig, match="a cannot be part of a blend: it is full fine-tuning"):
            named.chats.answer("llama", ["a=0.5"], [HELLO], GREEDY)
    speakers = [None] * (MAX_SIDE_BY_SIDE + 1)
    with pytest.raises(InvalidConfig, match="From one to 8 can answer side by side, not 9"):
        named.chats.answer("llama", speakers, [HELLO] * len(speakers), GREEDY)


def test_eight_answer_side_by_side_and_each_is_told_with_its_weights(named):
    registry = named.registry
    speakers = [None, "a", "b-1.5", "a=1+b-1.5=0", "a=0.5+b-1.5=0.5", "a=0.25", "x+y=-1+a=2", "x+y"]
    answers, told = [""] * len(speakers), [{} for _ in speakers]
    for token in named.chats.answer("llama", speakers, [HELLO] * len(speakers), GREEDY):
        answers[token.row] += token.text
        told[token.row] |= answer_told(token)
    assert answers == [_texts(named, [speaker])[0] for speaker in speakers]
    assert answers[3] == answers[1]
    assert len(Counter(answers)) >= 6
    base, digest = registry.find(Base, "llama"), registry.find(Adapter, "a").digest
    for one in told:
        assert (one["base"], one["base_name"]) == (base.fingerprint, "llama")
        assert one["finish"] in ("length", "end")
        assert 1 <= one["tokens"] <= 6
        assert one["seconds_to_first"] > 0
        assert one["tokens_per_second"] > 0
    parts = [[(part["name"], part["weight"]) for part in one["parts"]] for one in told]
    assert parts[:5] == [[], [("a", 1)], [("b-1.5", 1)], [("a", 1)], [("a", 0.5), ("b-1.5", 0.5)]]
    assert told[1]["parts"][0]["digest"] == digest


def test_an_answer_is_scored_by_several_through_the_engine(named):
    plain, one, half = named.chats.score("llama", [None, "a", "a=0.5+x+y=1"], HELLO, "fine thanks")
    assert "".join(token.text for token in one.tokens[:-1]) == "fine thanks"
    assert {token.kl for token in plain.tokens} == {0.0}
    assert len({plain.total, one.total, half.total}) == 3
    assert one.perplexity > 1
    assert [(part["name"], part["weight"]) for part in half.weights["parts"]] == [("a", 0.5), ("x+y", 1)]
    with pytest.raises(InvalidInput, match="There is no answer to score"):
        named.chats.score("llama", [None], HELLO, "")


def test_a_checkpoint_of_a_run_answers_while_it_trains_and_the_run_learns_the_same(workbench):
    options = TrainingOptions.parse({**STEADY, "max_steps": 120, "save_steps": 40, "eval_steps": 60})

    def begin(name):
        return workbench.training.start("llama", "data", options, name)

    def adapter_of(run):
        return workbench.registry.get(Adapter, workbench.runs.wait(run.id).adapter_id)

    alone, run = adapter_of(begin("alone")), begin("watched")
    wait_for(lambda: workbench.registry.checkpoints.of(run.id))
    speaker = checkpoint_name(run.id, 40)
    assert speaker in [one.id for one in workbench.serving.models()]
    speakers = [None, speaker, f"{speaker}=0.5+{alone.name}=0.5", alone.name]
    tokens = list(workbench.chats.answer("llama", speakers, [HELLO] * 4, GREEDY))
    assert workbench.registry.get(Run, run.id).state == "running"
    stored = next(one for one in workbench.registry.checkpoints.of(run.id) if one.step == 40)
    told = {token.row: token.weights["parts"] for token in tokens if token.finished}
    assert told[1] == [{"name": speaker, "digest": stored.adapter_digest, "weight": 1.0}]
    assert [part["digest"] for part in told[2]] == [stored.adapter_digest, alone.digest]
    assert adapter_of(run).digest == alone.digest
    with pytest.raises(NotFound, match=r"has no checkpoint at step 41; there are checkpoints at step \d+"):
        workbench.chats.answer("llama", [checkpoint_name(run.id, 41)], [HELLO], GREEDY)
