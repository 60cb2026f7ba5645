"""Causal language-model loss, summed over supervised tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.data.render import IGNORE
from core.train.batches import Batch


def summed_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Sum of the cross-entropy, in nats, over the batch's supervised tokens; the caller divides by their number.

    The output head is computed only at positions where some row's next token carries loss (transformers'
    logits_to_keep), since it is a fifth of a small model's work and most of its memory.
    """
    targets = batch.labels[:, 1:]  # [rows, length - 1]
    positions = (targets != IGNORE).any(dim=0).nonzero().squeeze(1)
    logits = model(
        input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, logits_to_keep=positions
    ).logits  # [rows, positions, vocabulary]
    return F.cross_entropy(logits.float().flatten(0, 1), targets[:, positions].flatten(), ignore_index=IGNORE, reduction="sum")


def supervised_tokens(batch: Batch) -> int:
    """How many tokens `summed_loss` adds up."""
    return int(torch.count_nonzero(batch.labels[:, 1:] != IGNORE))
