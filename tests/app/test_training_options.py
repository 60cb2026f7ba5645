"""Training options on their whole way: parsed once where they are given, one object to the engine, and back;
with the own options of a kind and an objective, which come in as plug-ins.
"""

import json
from collections import Counter
from dataclasses import dataclass

import pytest
from typer.testing import CliRunner

from app.cli.main import app
from app.shared.engine_client import EngineClient
from app.web.page import build_page
from app.web.sections.train.form_values import FormValues
from app.web.sections.train.option_groups import groups
from core.errors import InvalidConfig
from core.lora.config import LoraConfig
from core.lora.kinds import AdapterKind
from core.lora.kinds.lora import Lora
from core.options import Config, Option, option
from core.seam import PLUGINS_VARIABLE
from core.train.objectives.supervised import Supervised
from core.train.sweep import combinations, parse_grid
from core.train.training_options import TrainingOptions, all_options
from storage.tables import Run
from tests.workbenches import QUICK, finish


@dataclass(frozen=True)
class GainOptions(Config):
    """Of the toy kind alone."""

    gain: float = option(1.0, "Gain", "How loud.", minimum=0.0, maximum=10.0)


@dataclass(frozen=True)
class HasteOptions(Config):
    """Of the toy objective alone."""

    haste: int = option(3, "Haste", "How soon.", minimum=1, maximum=9)


class Loud(Lora):
    """A kind with an option of its own."""

    name, label, help, order, options = "loud", "Loud LoRA", "LoRA with a gain.", 5, GainOptions


class Hasty(Supervised):
    """An objective with an option of its own."""

    name, label, help, order, options = "hasty", "Hasty tuning", "Tuning in haste.", 5, HasteOptions


KINDS = (Loud(), Hasty())


@pytest.fixture
def plugged(monkeypatch):
    """The kinds of this file are there."""
    monkeypatch.setenv(PLUGINS_VARIABLE, __name__)


# One object.


def test_own_options_count_where_their_kind_is_chosen(plugged):
    given = {"kind": "loud", "gain": "2.5", "objective": "hasty", "rank": "8"}
    options = TrainingOptions.parse(given)
    assert (options.kind, options.objective) == (GainOptions(2.5), HasteOptions(3))
    assert options.lora == LoraConfig(kind="loud", rank=8)
    stored = json.loads(json.dumps(options.to_dict()))
    assert (stored["kind"], stored["objective"]) == ({"gain": 2.5}, {"haste": 3})
    assert TrainingOptions.from_dict(stored) == options
    assert TrainingOptions.parse(options.flat()) == options
    assert TrainingOptions(LoraConfig(kind="loud")).kind == GainOptions(1.0)
    with pytest.raises(InvalidConfig, match="kind takes GainOptions, not HasteOptions"):
        TrainingOptions(LoraConfig(kind="loud"), kind=HasteOptions())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "lowd"}, "There is no adapter kind 'lowd'. Did you mean loud"),
        ({"gain": 2}, "gain is an option of the adapter kind loud, which is not chosen. Set kind=loud, or"),
        ({"haste": 2}, "haste is an option of the objective hasty, which is not chosen. Set objective=hasty"),
        ({"kind": "loud", "gian": 2}, "Did you mean gain"),
        ({"gian": 2}, "There is no option 'gian'. (?!Did you mean gain)"),
        ({"kind": "loud", "gain": 11}, "gain must be between 0 and 10"),
    ],
)
def test_options_that_do_not_go_together_are_refused(plugged, given, said):
    with pytest.raises(InvalidConfig, match=said):
        TrainingOptions.parse(given)


def test_a_row_of_an_earlier_version_means_plain_lora(plugged):
    config = TrainingOptions(LoraConfig(rank=3)).to_dict()
    del config["lora"]["kind"], config["train"]["objective"], config["kind"], config["objective"]
    assert TrainingOptions.from_dict(config) == TrainingOptions(LoraConfig(rank=3))
    with pytest.raises(InvalidConfig, match="no option 'gone'"):
        TrainingOptions.from_dict({**config, "train": {"gone": 1}})


def test_two_options_of_one_name_are_refused(plugged, monkeypatch):
    class Twin(AdapterKind):
        name, label, help, options = "twin", "Twin", "Has what another has.", HasteOptions

    monkeypatch.setattr(f"{__name__}.KINDS", (*KINDS, Twin()))
    monkeypatch.setenv(PLUGINS_VARIABLE, f"{__name__},")
    with pytest.raises(InvalidConfig, match="objective hasty has an option haste, and so has something else"):
        all_options()


def test_a_sweep_may_choose_among_kinds_and_their_options(plugged):
    loud = TrainingOptions.parse({"kind": "loud", "gain": 2})
    found = combinations(loud, parse_grid(["kind=lora,loud"]))
    assert [one for _, one in found] == [TrainingOptions(), loud]
    gains = combinations(loud, parse_grid(["gain=1,3"]))
    assert [(label, one.kind) for label, one in gains] == [
        ("gain=1", GainOptions(1)),
        ("gain=3", GainOptions(3)),
    ]
    with pytest.raises(InvalidConfig, match="gain is an option of the adapter kind loud"):
        combinations(TrainingOptions(), parse_grid(["gain=1,3"]))


# The way there and back.


@pytest.fixture
def parses(monkeypatch):
    """How often each option was parsed."""
    counted, parse = Counter(), Option.parse

    def counting(self, value):
        counted[self.name] += 1
        return parse(self, value)

    monkeypatch.setattr(Option, "parse", counting)
    return counted


@pytest.fixture
def no_engine(monkeypatch):
    """Nothing takes the runs but the test."""
    monkeypatch.setattr(EngineClient, "wake", lambda self: None)


def _train(settings, *arguments):
    begun = ["train", "--base", "llama", "--data", "data", "--detach", "--json", "--home", str(settings.home)]
    done = CliRunner().invoke(app, [*begun, *arguments])
    return done.exit_code, json.loads(done.stdout)


def _set(values):
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


def test_the_rank_of_a_run_is_parsed_once(workbench, settings, session, no_engine, parses):
    code, found = _train(settings, *_set(QUICK))
    assert (code, parses["rank"]) == (0, 1)
    finish(session.next())
    assert workbench.registry.get(Run, found["id"]).state == "finished"
    shown = FormValues("", workbench.runs.options(found["id"]))
    assert (shown.values["rank"], parses["rank"]) == (2, 1)
    shown.parsed()
    assert parses["rank"] == 2, "what the form then says is the start of another way"


@pytest.mark.parametrize(("swept", "times"), [("seed=1,2,3", 1), ("rank=1,2,3", 1 + 3)])
def test_a_value_of_a_sweep_is_parsed_once(workbench, settings, session, no_engine, parses, swept, times):
    code, found = _train(settings, *_set(QUICK), "--sweep", swept)
    assert (code, len(found["rows"]), parses["rank"]) == (0, 3, times)
    finish(session.next())
    assert {run.state for run in workbench.registry.all(Run)} == {"finished"}
    assert parses["rank"] == times


# The faces.


def _handler(page, name):
    """The function behind an event of the page."""
    return next(one.fn for one in page.fns.values() if getattr(one.fn, "__name__", "") == name)


def _fields():
    """What the page has fields for, by name."""
    return {option["name"]: option for group in groups() for option in group["options"]}


def test_the_form_has_a_choice_only_where_there_are_several(plugged, monkeypatch):
    fields = _fields()
    assert {"kind", "gain", "objective", "haste"} < set(fields)
    assert [words for _, words, _ in fields["kind"]["choices"]][:2] == ["LoRA", "Loud LoRA"]
    assert (fields["gain"]["label"], fields["gain"]["only"]) == ("Gain", ("kind", "loud"))
    under = {option["name"]: group["subject"] for group in groups() for option in group["options"]}
    assert (under["gain"], under["haste"]) == ("Adapter", "Objective")
    monkeypatch.delenv(PLUGINS_VARIABLE)
    chosen = {name for name, option in _fields().items() if len(option["choices"]) == 1}
    assert chosen == set(), "what is the only kind is not asked for"
    assert not {"gain", "haste"} & set(_fields())


def test_the_form_starts_a_run_with_the_options_of_the_chosen_kind(workbench, plugged, no_engine, parses):
    begin = _handler(build_page(workbench), "begin")
    parses.clear()
    begin("llama", "data", FormValues("", QUICK).write(), "mine", False, False)
    assert parses["rank"] == 1
    wanted = FormValues("quick", QUICK, {"kind": "loud", "gain": "4"}, {})
    begin("llama", "data", wanted.write(), "loud", False, False)
    loud, plain = workbench.registry.all(Run)
    assert (plain.config["lora"]["kind"], plain.config["kind"]) == (
        "lora",
        {"freeze_a": False, "lora_bias": False},
    )
    assert (loud.config["lora"]["kind"], loud.config["kind"]) == ("loud", {"gain": 4.0})
    back = FormValues("", workbench.runs.options(loud.id)).parsed()
    assert (back.lora.kind, back.kind.gain, back.lora.rank) == ("loud", 4.0, 2)


def test_the_command_line_takes_own_options_and_lists_them(workbench, settings, plugged, no_engine):
    code, found = _train(settings, *_set({**QUICK, "kind": "loud"}), "--sweep", "gain=2,3")
    assert (code, len(found["rows"])) == (0, 2)
    assert [run.config["kind"] for run in workbench.registry.all(Run)] == [{"gain": 3.0}, {"gain": 2.0}]
    code, refused = _train(settings, "--set", "gain=2")
    assert (code, "Set kind=loud" in refused["error"]) == (1, True)
    listed = CliRunner().invoke(app, ["kinds", "--json"])
    rows = {row["set"]: row for row in json.loads(listed.stdout)["rows"]}
    assert [name for name in rows if name in {"kind=lora", "kind=loud", "objective=hasty"}] == [
        "kind=lora",
        "kind=loud",
        "objective=hasty",
    ]
    assert rows["kind=loud"]["label"] == "Loud LoRA"
    assert rows["kind=loud"]["options"] == "gain=1.0 (between 0 and 10): How loud."


def test_a_preset_holds_own_options(workbench, plugged):
    loud = TrainingOptions.parse({"kind": "loud", "gain": 5, "objective": "hasty"})
    workbench.presets.save("Very loud", loud)
    found = workbench.presets.find("Very loud")
    assert TrainingOptions.parse(found.options) == loud


def test_a_run_whose_kind_is_gone_is_still_shown(workbench, plugged, no_engine, monkeypatch):
    options = TrainingOptions.parse({**QUICK, "kind": "loud"})
    run = workbench.training.start("llama", "data", options, "mine")
    monkeypatch.delenv(PLUGINS_VARIABLE)
    shown = workbench.runs.options(run.id)
    assert (shown["rank"], shown["kind"], "gain" in shown) == (2, "loud", False)
    with pytest.raises(InvalidConfig, match="no adapter kind 'loud'"):
        TrainingOptions.parse(shown)
