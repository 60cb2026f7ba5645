"""A base is compared with transformers once for all processes, and again when what decides changes."""

import contextlib
import io
import json
import shutil
from types import SimpleNamespace

import pytest

from app.shared.bases import source_of
from app.shared.ways import StoredWays
from core.base_model import agreement, decisions
from core.engine import Engine
from core.export import check_process
from storage.tables import Base
from tests.core.helpers import CPU
from tests.workbenches import do_job


@pytest.fixture
def compared(workbench, monkeypatch):
    """Classes that this process has compared, which keeps its decisions in the registry as an engine does."""
    seen, compare = [], agreement._compared

    def noted(config):
        seen.append(type(config).__name__)
        return compare(config)

    monkeypatch.setattr(agreement, "_compared", noted)
    monkeypatch.setattr(decisions, "_place", StoredWays(workbench.registry))
    return seen


@pytest.fixture
def base(workbench, tiny_gpt2, tmp_path):
    """A base that a job has added, in a process of its own."""
    return added(workbench, shutil.copytree(tiny_gpt2, tmp_path / "gpt2"), "small")


def added(workbench, folder, name):
    workbench.jobs.wait(workbench.models.add(str(folder), name))
    return workbench.registry.find(Base, name)


def way_of(workbench, base):
    return Engine(device=CPU).load_base(source_of(workbench.registry, base)).way


def test_what_one_process_has_decided_is_used_by_another(workbench, base, compared):
    assert way_of(workbench, base).name == base.way
    assert compared == []


@pytest.mark.parametrize("changed", ["transformers", "torch", "comparison", "device"])
def test_it_is_compared_again_when_what_decides_changes(workbench, base, compared, monkeypatch, changed):
    if changed == "comparison":
        monkeypatch.setattr(decisions, "_own_code", lambda: "of another version")
    elif changed == "device":
        monkeypatch.setattr(agreement, "_kind_of_device", lambda: "tpu")
    else:
        real = decisions.version
        monkeypatch.setattr(decisions, "version", lambda name: "0.1" if name == changed else real(name))
    way = way_of(workbench, base)
    assert (compared, way_of(workbench, base)) == (["GPT2Config"], way)
    assert compared == ["GPT2Config"]


def test_it_is_compared_again_when_the_configuration_changes(workbench, base, compared, tmp_path):
    file = tmp_path / "gpt2" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"layer_norm_epsilon": 1e-3}))
    other = do_job(workbench, "add_model", {"origin": str(file.parent), "name": "other"})
    assert (other.state, compared) == ("finished", ["GPT2Config"]), other.message
    way_of(workbench, workbench.registry.find(Base, "other"))
    assert compared == ["GPT2Config"]


def test_the_process_that_checks_an_export_is_given_what_was_decided(monkeypatch):
    asked = io.StringIO()
    process = SimpleNamespace(stdin=asked, stdout=['{"result": {}}'])
    way = {"quick": True, "attention": "a", "together": True, "reread_at": 0}
    monkeypatch.setattr(decisions, "_place", decisions.InMemory({"k": way}))
    monkeypatch.setattr(check_process, "_started", lambda: contextlib.nullcontext(process))
    check_process.ask_process({}, lambda progress: None)
    assert json.loads(asked.getvalue())["ways"] == {"k": way}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"ways": {"k": way}})))
    monkeypatch.setattr(check_process, "check", lambda question, report: {})
    check_process.main()
    assert decisions.decisions().get("k") == way
