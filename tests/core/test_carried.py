"""Runs that go to another process as files: they are the same there, and nothing else is taken for them."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from core.data.labelled_rows import LabelledRows
from core.data.labels import LabelSet
from core.data.tokens import TokenRows
from core.errors import CannotShare, WorkerLost
from core.events import EvalDone, StepDone
from core.lora.config import LoraConfig
from core.train.batches import RunData
from core.train.carried import read_requests, write_requests
from core.train.changes import Change
from core.train.config import TrainConfig
from core.train.group import TrainingGroup
from core.train.handing_out import hand_out, take_in
from core.train.share import FirstOf
from core.train.shared_facts import shared_facts
from tests.core.helpers import load, random_adapter, request
from tests.core.training_worker import rows

SECRET = "ab" * 32


def _begun(base):
    """A run, and itself a few steps later."""
    lora, train = LoraConfig(rank=2, alpha=8), TrainConfig(max_steps=4, micro_batch_size=2, max_length=64)
    fresh = request(base, rows("hello", 12), lora, train, key=7, validation_rows=3)
    group = TrainingGroup(base, [fresh])
    for key, event in group.run():
        if isinstance(event, (StepDone, EvalDone)) and event.step == 2 and group.told(key, 2):
            return replace(
                fresh, resume=(group.adapter(key), group.state(key)), changes=[Change(2, {"max_steps": 9})]
            )
    raise AssertionError


def _labelled(base):
    found = request(base, rows("hello", 6), LoraConfig(), TrainConfig(max_length=32))
    targets = np.arange(6, dtype=np.float32)[:, None] % 2
    masks = {"keep": np.arange(6) != 1, "validation": np.arange(6) == 4}
    labels = LabelSet("single_label_classification", ("no", "yes"))
    own = LabelledRows(found.rows.file, 32, targets, labels, closing=1, goes_on=True, **masks)
    return replace(found, rows=own, key="labels", below=random_adapter(base, rank=2))


def _tried(base):
    found = request(base, rows("hello", 6), LoraConfig(), TrainConfig(max_length=32), key=2)
    steps = RunData(found.rows, found.options.train).steps()
    return replace(found, trial=[next(steps), next(steps)])


def _laid_out(step):
    return step.supervised, step.tokens, step.units, [(one.blocks, one.weight) for one in step.micro_batches]


def _carried(files, folder):
    for name, path in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / name)
    return folder


def test_runs_are_the_same_when_they_have_been_carried(tiny_llama, tmp_path):
    base = load(tiny_llama)
    sent = [_begun(base), _labelled(base), _tried(base)]
    (tmp_path / "sent").mkdir()
    files = write_requests(sent, base, tmp_path / "sent")
    found = read_requests(_carried(files, tmp_path / "found"), base)
    for one, other in zip(found, sent, strict=True):
        assert (one.key, one.options, list(one.changes)) == (other.key, other.options, list(other.changes))
        assert shared_facts(base, one) == shared_facts(base, other)
        assert (type(one.rows), one.rows.max_length) == (type(other.rows), other.rows.max_length)
        np.testing.assert_array_equal(one.rows.sources, other.rows.sources)
    assert [_laid_out(one) for one in found[2].trial] == [_laid_out(one) for one in sent[2].trial]
    (weights, state), (theirs, other) = found[0].resume, sent[0].resume
    assert state.position == other.position
    for path, layer in theirs.layers.items():
        assert torch.equal(weights.layers[path].A, layer.A.float())
        assert torch.equal(state.mean[path]["A"], other.mean[path]["A"])
    labels = found[1].rows
    assert (labels.labels, labels.closing, labels.goes_on) == (sent[1].rows.labels, 1, True)
    assert found[1].below.layers.keys() == sent[1].below.layers.keys()
    assert isinstance(found[0].rows, TokenRows)


class Wire:
    """What the first process gives, kept for one that takes it."""

    def __init__(self):
        self.told, self.sent = [], []

    def meet(self):
        """All are here."""

    def tell(self, said):
        if said:
            self.told.append(said)
        return self.told[-1]

    def send(self, piece):
        if len(self.told) == 1:
            self.sent.append(piece.clone())
        else:
            piece.copy_(self.sent.pop(0))


@pytest.fixture
def wire(tmp_path):
    """Two files under way."""
    (tmp_path / "one").write_bytes(b"one")
    (tmp_path / "two").write_bytes(b"")
    found = Wire()
    hand_out(found, {"0/one": tmp_path / "one", "two": tmp_path / "two"}, SECRET)
    found.told.append(found.told[0])  # from now on they are taken
    return found


def test_files_come_as_they_were_sent(wire, tmp_path):
    take_in(wire, tmp_path / "new", SECRET)
    assert (tmp_path / "new/0/one").read_bytes() == b"one"
    assert (tmp_path / "new/two").read_bytes() == b""


def test_files_of_who_has_not_the_secret_are_not_taken_nor_damaged_ones(wire, tmp_path):
    with pytest.raises(WorkerLost, match="not of a process that has this group's key"):
        take_in(wire, tmp_path / "new", "cd" * 32)
    assert not (tmp_path / "new").exists()
    wire.sent[0][0] = 0
    with pytest.raises(WorkerLost, match="0/one of the runs came damaged"):
        take_in(wire, tmp_path / "new", SECRET)


def test_a_file_stays_within_the_folder(tmp_path):
    found = Wire()
    (tmp_path / "one").write_bytes(b"one")
    hand_out(found, {"../one": tmp_path / "one"}, SECRET)
    with pytest.raises(WorkerLost, match="is no name of a file of a run"):
        take_in(found, tmp_path / "new", SECRET)


def test_no_run_joins_a_group_of_several_processes(loaded_llama):
    run = request(loaded_llama, rows("hello", 6), LoraConfig(), TrainConfig())
    with pytest.raises(CannotShare, match="No run joins others that several processes train"):
        TrainingGroup(loaded_llama, [run], share=FirstOf(2)).add(run)
