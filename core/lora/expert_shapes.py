"""Fused parameters of experts that adapters can be on: their shapes and names. Needs no torch.

transformers 5 keeps one linear layer of all experts of a mixture in one parameter, such as
mlp.experts.gate_up_proj. Its path here is that of its module and its own name, as PEFT's target_parameters
writes it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from core.lora.module_names import is_among

EXPERTS = "experts"
"""The word for all of them."""


class ExpertShape(tuple[int, int]):
    """(in_features, out_features) that each expert has of a fused parameter, and how many experts there
    are.
    """

    experts: int

    def __new__(cls, n_in: int, n_out: int, experts: int) -> ExpertShape:
        """Of one expert, and the number of experts."""
        made = super().__new__(cls, (n_in, n_out))
        made.experts = experts
        return made


def experts_of_shape(shape: Sequence[int]) -> int:
    """How many linear layers a shape stands for: 1 but for a fused parameter of experts."""
    return shape.experts if isinstance(shape, ExpertShape) else 1


def experts_among(shapes: Mapping[str, Sequence[int]]) -> set[str]:
    """The paths of the fused parameters of experts."""
    return {path for path, shape in shapes.items() if isinstance(shape, ExpertShape)}


def chosen_experts(paths: Iterable[str], names: Collection[str]) -> list[str]:
    """Of the paths of fused parameters those that target_parameters names."""
    return [path for path in paths if EXPERTS in names or is_among(path, names)]


def in_order(paths: Iterable[str]) -> list[str]:
    """Fused parameters of one module in the order in which it computes with them."""
    return sorted(paths, key=lambda path: path.endswith("down_proj"))
