"""AdamW (arXiv 1711.05101) over one adapter's trained numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core.sending import sent

MOMENTS = ("exp_avg", "exp_avg_sq")  # as torch's AdamW calls its mean and its mean of squares
_SMALLEST = 1e-6  # as torch's clip_grad_norm_


def clipping(norms: Tensor, limits: Sequence[float]) -> tuple[Tensor, Tensor]:
    """What the gradients of K runs are divided by so that none is longer than its limit (0: any length), and
    1 for each that is not finite and 0 for the others; norms [K], both float32 [K].
    """
    most = sent([limit or math.inf for limit in limits], norms.device, torch.float32)
    divisors = ((norms + _SMALLEST) / most).clamp(min=1.0)
    return divisors.float(), (~norms.isfinite()).float()


class RunOptimiser:
    """torch's fused AdamW. Tensors with the same rate and decay are one group, which is one kernel."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], ratios: Mapping[str, float], decays: Mapping[str, float]
    ) -> None:
        """By the tensors' names: the parameters, flat and with gradients; how many times the run's rate each
        learns with; and its weight decay.
        """
        self._parameters = dict(parameters)
        alike: dict[tuple[float, float], list[str]] = {}
        for name in parameters:
            alike.setdefault((ratios[name], decays[name]), []).append(name)
        self._names = list(alike.values())
        self._ratios = [ratio for ratio, _ in alike]
        groups = [
            {"params": [parameters[name] for name in names], "weight_decay": decay}
            for (_, decay), names in alike.items()
        ]
        self._adamw = torch.optim.AdamW(groups, fused=True)

    def step(self, rate: float, divisor: Tensor, missing: Tensor) -> None:
        """Do a step with this rate, on the gradients over `divisor`; where `missing` is 1, which is
        for gradients that are not finite, parameters and moments stay as they are.

        Both are of clipping(), and go where torch.amp.GradScaler puts them: the kernel that reads the
        gradient anyway sees to them.
        """
        for group, ratio in zip(self._adamw.param_groups, self._ratios, strict=True):
            group["lr"] = rate * ratio
        about: Any = self._adamw
        about.grad_scale, about.found_inf = divisor, missing
        self._adamw.step()
        # a step that is left out counts, too, so that a resumed run goes on alike
        steps = [state["step"] for state in self._adamw.state.values()]
        # a list of tensors: one without dimensions is taken for a number, which the host waits for
        torch._foreach_add_(steps, [missing] * len(steps))

    def moment(self, which: str) -> dict[str, Tensor]:
        """One of MOMENTS by the tensors' names, flat; empty before a step."""
        states = {name: self._adamw.state.get(one) for name, one in self._parameters.items()}
        return {name: state[which] for name, state in states.items() if state}

    def restore(self, mean: Mapping[str, Tensor], square: Mapping[str, Tensor], steps: int) -> None:
        """Go on behind so many steps with these moments."""
        for name, parameter in self._parameters.items():
            self._adamw.state[parameter] = {
                "step": torch.tensor(float(steps), device=mean[name].device),
                "exp_avg": mean[name],
                "exp_avg_sq": square[name],
            }

    def move(
        self, parameters: Mapping[str, nn.Parameter], moments: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        """Go on with other parameters of the same names, and the moments laid out as these are."""
        for group, names in zip(self._adamw.param_groups, self._names, strict=True):
            group["params"] = [parameters[name] for name in names]
        for name, before in self._parameters.items():
            state = self._adamw.state.pop(before, None)
            if state:
                state.update({which: moments[which][name] for which in MOMENTS})
                self._adamw.state[parameters[name]] = state
        self._parameters = dict(parameters)
