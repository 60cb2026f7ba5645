"""What a fresh adapter adds to the base before its first step, tried on the device when a run is prepared."""

import torch

from core.events import Prepared
from core.lora.config import LoraConfig
from core.lora.kinds import ADAPTER_KINDS
from core.train.config import TrainConfig
from core.train.group import TrainingGroup
from core.train.run import RunRequest
from core.train.training_options import TrainingOptions
from tests.core.helpers import token_rows
from tests.core.test_variants import ROWS, TRAIN


def _found(base, *kinds: str) -> dict[str, float]:
    """By kind, of runs that are prepared at once."""
    requests = [
        RunRequest(
            kind,
            token_rows(base, ROWS, 96, 0),
            TrainingOptions(LoraConfig(kind=kind, rank=4), TrainConfig(**{**TRAIN, "max_steps": 4})),
        )
        for kind in kinds
    ]
    found = {}
    for key, event in TrainingGroup(base, requests).run():
        if isinstance(event, Prepared):
            found[key] = event.start_change
        if len(found) == len(kinds):
            return found
    return found


def test_every_kind_begins_as_the_base(loaded_llama):
    kinds = [name for name, kind in ADAPTER_KINDS.all().items() if not kind.whole]
    found = _found(loaded_llama, *kinds) | _found(loaded_llama, "full")
    assert found["lora"] == found["miss"] == found["full"] == 0.0
    assert all(change < 1e-5 for change in found.values()), found


def test_factors_that_do_not_are_seen(loaded_llama, monkeypatch):
    kind = type(ADAPTER_KINDS.get("lora"))
    before = kind.start

    def not_zero(self, n_in, n_out, rank, *rest):
        return {**before(self, n_in, n_out, rank, *rest), "B": torch.full((n_out, rank), 0.01)}

    monkeypatch.setattr(kind, "start", not_zero)
    assert _found(loaded_llama, "lora")["lora"] > 1e-3


def test_weights_that_do_not_are_seen(loaded_llama, monkeypatch):
    other = {"model.norm.weight": torch.zeros(32)}
    monkeypatch.setattr("core.train.run.base_numbers", lambda model, paths: other)
    assert _found(loaded_llama, "full")["full"] > 1e-3
