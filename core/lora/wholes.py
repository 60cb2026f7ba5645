"""Whole parameters of a base that an adapter can have of its own beside its factors: the input embedding, the
output head, biases. What there is in a base, and which of it a configuration trains. Needs no torch.

PEFT calls the first two modules_to_save; biases follow from its settings bias and lora_bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from core.errors import InvalidConfig
from core.lora.config import ALL_BIASES, EMBEDDING, HEAD, LoraConfig
from core.lora.expert_shapes import EXPERTS, ExpertShape, chosen_experts
from core.lora.kinds import ADAPTER_KINDS
from core.lora.module_names import is_among
from core.options import Config

BIAS, WEIGHT = ".bias", ".weight"
BIAS_ON_B = ".lora_B.bias"
"""Behind the path of a layer: what lora_bias adds to B·A·x before the scale."""

_NO_EXPERTS = (
    "There are none, they are linear layers that target_modules names, or they are computed in a way on "
    "which adapters are not known here. A base that was added by an earlier release has to be added again."
)

V = TypeVar("V")
Shapes = dict[str, tuple[int, ...]]
"""Of whole parameters, by their paths in the model."""


@dataclass(frozen=True)
class Wholes:
    """What of a base an adapter can have of its own."""

    embedding: str = ""
    """The module path of the input embedding; empty for a base that takes no part in this."""
    head: str = ""
    """The module path of the output head."""
    tied: bool = False
    """Whether the head computes with the embedding's numbers."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Of both and of all biases, by the parameters' paths."""
    experts: Mapping[str, ExpertShape] = field(default_factory=dict)
    """Of the fused parameters of experts that can have factors, by their paths."""

    def targetable(
        self, shapes: Mapping[str, tuple[int, int]], config: LoraConfig, own: Config
    ) -> dict[str, tuple[int, int]]:
        """The (in, out) of the layers that an adapter can have factors on: the linear ones in `shapes`, the
        input embedding where target_modules names it, and of the experts what target_parameters names. `own`:
        the kind's options.

        Raises InvalidConfig, with the reason, for an embedding or experts that cannot have factors.
        """
        shapes = {**shapes, **self._chosen_experts(config, own)}
        path, kind = self.embedding, ADAPTER_KINDS.get(config.kind)
        if not (path and is_among(path, config.target_names)):
            return dict(shapes)
        if self.tied:
            raise InvalidConfig(
                f"{path} is the output head of this model, too (tied): LoRA on it alone would part the two, "
                f"and no merged model could keep both. Set modules_to_save to {EMBEDDING},{HEAD} to train "
                "both as one, or leave it out of target_modules."
            )
        if not kind.takes_embedding(own):
            raise InvalidConfig(
                f"{path} is an embedding, and on one there is only plain LoRA: no {kind.label} with these "
                "options. Leave it out of target_modules."
            )
        tokens, width = self.shapes[f"{path}{WEIGHT}"]
        return {**shapes, path: (tokens, width)}

    def _chosen_experts(self, config: LoraConfig, own: Config) -> dict[str, ExpertShape]:
        """The shapes of the fused parameters that target_parameters names."""
        names = config.parameter_names
        for name in names:
            if not chosen_experts(self.experts, [name]):
                there = sorted({path.rpartition(".")[2] for path in self.experts})
                has = f"It has: {', '.join(there)} (or {EXPERTS})." if there else _NO_EXPERTS
                raise InvalidConfig(f"No experts of this model have a parameter called {name!r}. {has}")
        if names and ADAPTER_KINDS.get(config.kind).biases_on_b(own):
            raise InvalidConfig(
                "lora_bias: there is no bias on B of experts, as in PEFT; leave it out, or target_parameters."
            )
        return {path: self.experts[path] for path in chosen_experts(self.experts, names)}

    def trained(self, config: LoraConfig, targets: Sequence[str], bias_on_b: Mapping[str, int]) -> Shapes:
        """What an adapter on `targets` trains whole; bias_on_b gives the outputs of the layers on which B has
        a bias. Of a tied embedding and head it is the embedding's weight, which both then compute with.

        Raises InvalidConfig, with the reason, for what the base has not or what could not be right.
        """
        modules = [self._module(name) for name in config.whole_names]
        if self.tied and len(modules) == 1:
            raise InvalidConfig(
                f"The output head of this model is its input embedding ({self.embedding}, tied): trained "
                "alone, the two would part, and no merged model could keep both. Set modules_to_save to "
                f"{EMBEDDING},{HEAD}, which trains them as one."
            )
        if both := sorted({*modules} & {*targets}):
            raise InvalidConfig(
                f"{both[0]} is trained whole (modules_to_save) and has LoRA as a target module, too; leave "
                "it out of one of them."
            )
        if bias_on_b and config.parts:
            raise InvalidConfig(
                "lora_bias is trained on all outputs of a layer, and enable_lora chooses parts of it; leave "
                "one of them out."
            )
        names = [f"{path}{WEIGHT}" for path in modules if not (self.tied and path == self.head)]
        names += self._biases(config, targets, modules)
        return {name: tuple(self.shapes[name]) for name in names} | {
            f"{path}{BIAS_ON_B}": (outputs,) for path, outputs in bias_on_b.items()
        }

    def _module(self, name: str) -> str:
        path = {EMBEDDING: self.embedding, HEAD: self.head}[name]
        if not path or (f"{path}{WEIGHT}" not in self.shapes and not self.tied):
            raise InvalidConfig(f"This model has no {name} that could be trained whole (modules_to_save).")
        return path

    def _biases(self, config: LoraConfig, targets: Sequence[str], modules: Sequence[str]) -> list[str]:
        """Those of the base that are trained. A module that is trained whole has its own in any case."""
        there = [name for name in self.shapes if name.endswith(BIAS)]
        whole = [name for name in there if name.removesuffix(BIAS) in modules]
        if config.bias == "none":
            return whole
        chosen = [name for name in there if config.bias == ALL_BIASES or name.removesuffix(BIAS) in targets]
        if not chosen:
            where = "This model" if config.bias == ALL_BIASES else "None of the targeted layers of this model"
            raise InvalidConfig(
                f"{where} has {'no' if config.bias == ALL_BIASES else 'a'} bias, so bias={config.bias} would "
                "train nothing; leave it at none."
            )
        return [*whole, *(name for name in chosen if name not in whole)]

    def with_tied(self, numbers: Mapping[str, V]) -> dict[str, V]:
        """The same with the head's weight beside the embedding's, where the base ties them."""
        found, weight = dict(numbers), f"{self.embedding}{WEIGHT}"
        if self.tied and weight in found:
            found[f"{self.head}{WEIGHT}"] = found[weight]
        return found


def require_no_wholes(config: LoraConfig, own: Config) -> None:
    """Raise InvalidConfig for what an adapter that classifies cannot train: it has a head of its own."""
    if config.trains_wholes or ADAPTER_KINDS.get(config.kind).biases_on_b(own):
        raise InvalidConfig(
            "An adapter that classifies trains the head that tells its labels, and no modules_to_save, bias "
            "or lora_bias beside it; leave them out."
        )
    if config.parameter_names:
        raise InvalidConfig(
            "An adapter that classifies is on linear layers alone; leave target_parameters empty."
        )


def module_of(name: str) -> str:
    """The module that a whole parameter belongs to."""
    return name.removesuffix(BIAS_ON_B) if name.endswith(BIAS_ON_B) else name.rpartition(".")[0]


def is_bias_of_base(name: str) -> bool:
    """Whether a whole parameter is a bias that the base has."""
    return name.endswith(BIAS) and not name.endswith(BIAS_ON_B)
