"""Shared by the tests of core: adapters with something in them, and PEFT as the oracle."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import AutoConfig

from core.base_model.load import ResidentBase, load_base
from core.base_model.model_config import model_class
from core.data.conversations import rendered_rows
from core.data.formats import Example
from core.data.tokens import TokenRows
from core.lora.adapter import AdapterWeights, LayerFactors, LayerWeights
from core.lora.config import LoraConfig
from core.lora.kinds import ADAPTER_KINDS
from core.train.batches import Batch, MicroBatch
from core.train.config import TrainConfig
from core.train.group import Event, TrainingGroup, alone
from core.train.run import RunRequest
from core.train.step import MicroBatchStep
from core.train.training_options import TrainingOptions

if TYPE_CHECKING:
    import pytest
    from peft import PeftModel

CPU = torch.device("cpu")
PROBE = torch.arange(3, 23).reshape(2, 10)


def load(folder: Path, fingerprint: str = "f" * 64, quantisation: str = "none") -> ResidentBase:
    """The base in float32 on the CPU."""
    about = {"fingerprint": fingerprint, "name": folder.name, "quantisation": quantisation}
    return load_base(folder, device=CPU, dtype=torch.float32, **about)


def load_float64(folder: Path) -> ResidentBase:
    """The base in float64 on the CPU, to compare factors that were trained in two ways.

    AdamW divides a gradient by its own size. So the rounding error of one that is nearly zero moves a factor
    by up to the learning rate in each step, however small the error is, and whether two ways of training
    agree to 1e-5 in float32 is up to the processor. Float64's errors are 1e-16, and gradients that small are
    rare: there they agree to 1e-10 (CLOSE). Losses need none of this: what is nearly zero is their slope.
    """
    base = load_base(folder, fingerprint="f" * 64, name=folder.name, device=CPU, dtype=torch.float64)
    for module in base.model.modules():
        if hasattr(module, "variance_epsilon"):  # transformers' RMS norms compute in float32 whatever comes
            module.forward = functools.partial(
                torch.nn.functional.rms_norm,
                normalized_shape=module.weight.shape,
                weight=module.weight,
                eps=module.variance_epsilon,
            )
    return base


CLOSE = {"atol": 1e-10, "rtol": 1e-10}
"""How near two ways of training the same come in float64."""


def random_adapter(
    base: ResidentBase, rank: int = 4, alpha: float = 8.0, seed: int = 0, size: float = 0.2
) -> AdapterWeights:
    """An adapter on every linear layer with factors that are all different from zero."""
    generator = torch.Generator().manual_seed(seed)
    layers = {
        path: LayerFactors(
            A=torch.randn(rank, n_in, generator=generator) * size,
            B=torch.randn(n_out, rank, generator=generator) * size,
            scale=alpha / rank,
        )
        for path, (n_in, n_out) in base.layer_shapes.items()
        if path != base.head
    }
    transposed = any(layer.transposed for layer in base.layers.values())
    return AdapterWeights(rank, alpha, 0.0, layers, base.fingerprint, base.name, fan_in_fan_out=transposed)


def as_shards(adapter: AdapterWeights) -> AdapterWeights:
    """A MiSS adapter on the layers of a LoRA, of its rank, with blocks that are all different from zero."""
    miss, r = ADAPTER_KINDS.get("miss"), adapter.rank
    layers = {
        path: LayerWeights({"D": one.B.T.contiguous(), **miss.derived(one.A.shape[1], len(one.B), r)}, 1.0)
        for path, one in adapter.low_rank().items()
    }
    return replace(adapter, kind="miss", alpha=float(r), layers=layers)


def plain_model(folder: Path) -> torch.nn.Module:
    """The model as transformers loads it, in float32."""
    cls = model_class(AutoConfig.from_pretrained(folder))
    return cls.from_pretrained(folder, dtype=torch.float32).eval()


def peft_from(folder: Path, adapter: Path) -> PeftModel:
    """The model with an adapter that PEFT loads from disk."""
    from peft import PeftModel

    return PeftModel.from_pretrained(plain_model(folder), adapter).eval()


def new_peft(folder: Path, rank: int = 4, alpha: float = 8.0, **options: object) -> PeftModel:
    """A fresh PEFT adapter on all linear layers, with B filled so that it does something."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    options = {"target_modules": "all-linear", **options}
    model = get_peft_model(
        plain_model(folder), PeftConfig(r=rank, lora_alpha=alpha, task_type="CAUSAL_LM", **options)
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    """Logits on a fixed probe."""
    return model(input_ids=PROBE).logits


def token_rows(
    base: ResidentBase,
    examples: Sequence[Example],
    max_length: int = 2048,
    validation_rows: int | None = None,
) -> TokenRows:
    """Rendered rows; the first few for validation, by default one in twenty."""
    if validation_rows is None:
        validation_rows = max(1, round(len(examples) / 20)) if len(examples) >= 10 else 0
    length = min(max_length, base.context_length)
    return rendered_rows(examples, base.renderer, length, validation_rows=validation_rows)


def request(
    base: ResidentBase,
    examples: Sequence[Example],
    lora: LoraConfig,
    train: TrainConfig,
    key: object = "run",
    validation_rows: int | None = None,
) -> RunRequest:
    """A run to train."""
    rows = token_rows(base, examples, train.max_length, validation_rows)
    return RunRequest(key, rows, TrainingOptions(lora, train))


def train_alone(
    base: ResidentBase,
    examples: Sequence[Example],
    lora: LoraConfig,
    train: TrainConfig,
    validation_rows: int | None = None,
) -> tuple[AdapterWeights, list[Event]]:
    """Train one adapter to its end; raises what made it fail."""
    group = TrainingGroup(base, [request(base, examples, lora, train, validation_rows=validation_rows)])
    events, adapter = [], None
    for event in alone(group):
        events.append(event)
        if group.runs:
            adapter = group.adapter("run")
    assert adapter is not None
    return adapter, events


def peft_loss(model: torch.nn.Module, part: MicroBatch) -> torch.Tensor:
    """The summed loss of a micro-batch by transformers' own means: padded rows, a mask, all logits."""
    rows = [part.rows[row] for block in part.blocks for row in block]
    length = max(len(ids) for ids, _ in rows)
    ids, labels = torch.full((len(rows), length), 2), torch.full((len(rows), length), -100)
    mask = torch.zeros_like(ids)
    for at, (tokens, targets) in enumerate(rows):
        ids[at, : len(tokens)], labels[at, : len(tokens)] = (
            torch.tensor(tokens.copy()),
            torch.tensor(targets.copy()),
        )
        mask[at, : len(tokens)] = 1
    out = model(input_ids=ids, attention_mask=mask).logits[:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(out, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")


def poison(monkeypatch: pytest.MonkeyPatch, at_call: int, times: float = math.nan) -> None:
    """The loss of one micro-batch, and with it its gradients, is so many times what it is: no number."""
    real, calls = MicroBatchStep._plain, []

    def plain(step: MicroBatchStep, batch: Batch) -> Tensor:
        losses = real(step, batch)
        calls.append(1)
        if len(calls) == at_call:
            step.bank.grad.mul_(times)
            losses = losses * times
        return losses

    monkeypatch.setattr(MicroBatchStep, "_plain", plain)
