"""The chunked loss against torch's own, with the gradient it brings along."""

import pytest
import torch
from torch import nn

from core.data.formats import Example
from core.data.rendering import IGNORE
from core.lora.config import LoraConfig
from core.train import loss as losses
from core.train.config import TrainConfig
from core.train.loss import token_losses
from tests.core.helpers import load, train_alone


@pytest.mark.parametrize("head", ["plain", "with bias", "differentiated"])
@pytest.mark.parametrize("chunk", [7, 1000])
def test_loss_and_gradient_are_torchs(head, chunk, monkeypatch):
    monkeypatch.setattr(losses, "_chunk", lambda *about: chunk)
    torch.manual_seed(0)
    linear = nn.Linear(16, 50, bias=head == "with bias").requires_grad_(head == "differentiated")
    module = nn.Sequential(linear) if head == "differentiated" else linear
    hidden, targets, weights = (
        torch.randn(30, 16, requires_grad=True),
        torch.randint(0, 50, (30,)),
        torch.rand(30),
    )
    targets[::4] = IGNORE
    expected = torch.nn.functional.cross_entropy(
        linear(hidden), targets, ignore_index=IGNORE, reduction="none"
    )
    (gradient,) = torch.autograd.grad(3 * (expected * weights).sum(), hidden)
    total, each = token_losses(module, hidden, targets, weights)
    (found,) = torch.autograd.grad(3 * total, hidden)
    torch.testing.assert_close(each, expected.detach())
    torch.testing.assert_close(total, (expected * weights).sum())
    torch.testing.assert_close(found, gradient)


def test_no_logits_outlive_their_chunk(monkeypatch):
    """What backward holds is as large as the hidden states, whatever the vocabulary."""
    monkeypatch.setattr(losses, "_chunk", lambda *about: 8)
    held = []
    head, hidden = (
        nn.Linear(4, 10_000, bias=False).requires_grad_(False),
        torch.randn(64, 4, requires_grad=True),
    )
    with torch.autograd.graph.saved_tensors_hooks(lambda x: held.append(x.numel()) or x, lambda x: x):
        token_losses(head, hidden, torch.zeros(64, dtype=torch.long), torch.ones(64))
    assert max(held, default=0) <= 64 * 4


def test_a_head_can_be_trained(tiny_qwen):
    """The output head as the only target: its loss cannot take the short way."""
    rows = [
        Example(1, ({"role": "user", "content": "hello"}, {"role": "assistant", "content": "fine thanks"}))
    ]
    base = load(tiny_qwen)
    lora = LoraConfig(rank=2, target_modules="lm_head")
    adapter, events = train_alone(base, rows, lora, TrainConfig(max_steps=3, learning_rate=0.05))
    assert list(adapter.layers) == ["lm_head"]
    assert adapter.is_trained()
    assert events[-1].train_loss < next(event.loss for event in events if hasattr(event, "loss"))
