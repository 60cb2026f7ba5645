"""Adapters that are trained on top of others: from the options to what is kept, shown and exported."""

import pytest
import torch

from app.jobs.adapters import load_row
from app.service.lineage import lineage
from app.web.sections.adapters.adapter_facts import overview_html
from core.errors import InvalidConfig, WrongBase
from core.train.training_options import TrainingOptions
from storage.errors import NotFound
from storage.tables import Adapter, Base, Run
from tests.workbenches import STEADY, finish

CHILD = {"dropout": 0.0, "rank": 3, "target_modules": "q_proj,v_proj", "on_top_of": "style"}


def test_the_other_is_in_what_is_kept_and_leads_to_it(workbench, session, trained):
    style = trained("style")
    run_id, begun = session("task", **CHILD)
    workbench.registry.adapters.change(style.id, name="manner")  # the run holds what it is, not its name
    finish(begun)
    run = workbench.registry.get(Run, run_id)
    assert run.state == "finished", run.reason
    child = workbench.registry.find(Adapter, "task")
    assert child.parents == [{"name": "manner", "digest": style.digest, "weight": 1.0}]
    assert run.details["start_change"] == 0.0
    base = workbench.registry.find(Base, "llama")
    found, below = (load_row(workbench.registry, one, base).low_rank() for one in (child, style))
    assert set(found) == set(below)
    for path, one in found.items():
        rank = 3 if path.endswith(("q_proj", "v_proj")) else 0
        assert one.rank == rank + 2
        kept, given = one.scale * one.B[:, rank:], below[path].scale * below[path].B
        assert one.A[rank:].equal(below[path].A)
        torch.testing.assert_close(kept, given, atol=1e-6, rtol=1e-6)
        assert not rank or one.B[:, :rank].any()
    assert "manner" in overview_html(workbench, child)
    named = [node.name for column in lineage(workbench.registry, child).before for node in column]
    assert {"llama", "data", "manner"} <= set(named)
    assert [node.name for node in lineage(workbench.registry, style).after] == ["task"]


def test_what_cannot_be_learnt_on_is_refused_before_it_is_queued(workbench, trained):
    def start(**options):
        wanted = TrainingOptions.parse({**STEADY, **CHILD, **options})
        workbench.training.start("llama", "data", wanted, "task")

    with pytest.raises(NotFound, match=r"on_top_of: .*style"):
        start()
    style = trained("style")
    with pytest.raises(InvalidConfig, match="dropout"):
        start(dropout=0.1)
    style.base_fingerprint, style.base_name = "0" * 64, "other"
    workbench.registry.save(style)
    with pytest.raises(WrongBase, match="style belongs to other"):
        start()
    assert workbench.registry.all(Run) == []
