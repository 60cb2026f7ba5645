"""Supervised fine-tuning: cross-entropy of the assistant's tokens, or of all tokens of plain text."""

from __future__ import annotations

from core.train.objectives import Objective


class Supervised(Objective):
    """The mean cross-entropy of the trained tokens, in nats."""

    name, label, order = "sft", "Supervised fine-tuning", 0
    help = "Learn to give the answers that the rows show."


KIND = Supervised()
