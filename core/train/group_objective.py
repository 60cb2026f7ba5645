"""A group's objective: what the token losses of a batch amount to, for each run with its own options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.data.rendering import IGNORE
from core.options import Config
from core.train.batches import Batch
from core.train.objectives import Objective, TokenLosses


@dataclass(frozen=True)
class GroupObjective:
    """One objective for all runs of a batch, with each slot's options.

    Figures are rows [1 + 2·metrics]: the loss's sum, then each metric's sum, then each metric's count. They
    can be added up.
    """

    objective: Objective
    options: Sequence[Config]

    @torch.no_grad()
    def figures(self, batch: Batch, losses: Tensor, base: Tensor | None) -> Tensor:
        """Each run's figures, [K, 1 + 2·metrics], from the token losses [K·C] of a batch."""
        if self.objective.is_weighted_sum and not self.objective.metrics:
            return losses.view(batch.runs, -1).sum(1, keepdim=True)
        return torch.stack(
            [
                self._row(part, self.objective.loss(part, options), options)
                for part, options in self._parts(batch, losses, base)
            ]
        )

    def figures_and_weights(self, batch: Batch, losses: Tensor, base: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same, and what each token's loss counts in the sum to differentiate, [K·C].

        That is the derivative of the run's objective by the token's loss, in the measure that a token or a
        row counts in its step.
        """
        with torch.enable_grad():
            leaf = losses.detach().requires_grad_()
            parts = list(self._parts(batch, leaf, base))
            sums = [self.objective.loss(part, options) for part, options in parts]
            (by_losses,) = torch.autograd.grad(torch.stack(sums).sum(), leaf)
        with torch.no_grad():
            rows = [self._row(part, loss, options) for (part, options), loss in zip(parts, sums, strict=True)]
            return torch.stack(rows), torch.where(batch.weights > 0, batch.weights * by_losses, 0.0)

    def _parts(
        self, batch: Batch, losses: Tensor, base: Tensor | None
    ) -> Iterator[tuple[TokenLosses, Config]]:
        """Each run's part of the batch, with its options."""
        counted = (batch.targets != IGNORE).view(batch.runs, -1)
        by_run = losses.view(batch.runs, -1)
        for run, options in enumerate(self.options):
            its_base = base.view(batch.runs, -1)[run] if base is not None else None
            sequence = batch.sequence.view(batch.runs, -1)[run] if batch.sequence is not None else None
            yield TokenLosses(by_run[run], its_base, counted[run], sequence, batch.sequences), options

    def _row(self, part: TokenLosses, loss: Tensor, options: Config) -> Tensor:
        found = self.objective.measure(part, options)
        pairs = [found[metric.name] for metric in self.objective.metrics]
        row = [loss, *(total for total, _ in pairs), *(count for _, count in pairs)]
        return torch.stack([one.detach().to(part.losses.dtype) for one in row])


def figures_width(objective: Objective) -> int:
    """Numbers in a row of figures."""
    return 1 + 2 * len(objective.metrics)


def metric_means(objective: Objective, figures: Sequence[float]) -> Mapping[str, float]:
    """A row of figures as means by metric; those that nothing was counted for are left out."""
    names = [metric.name for metric in objective.metrics]
    totals, counts = figures[1 : 1 + len(names)], figures[1 + len(names) :]
    return {name: total / count for name, total, count in zip(names, totals, counts, strict=True) if count}
