"""Adapter kinds: what is trained on a frozen layer. Each is one file here; see core/seam.py.

The page and the command line list the kinds, so neither this file nor a kind's may import torch at its head;
what computes gets its tensors, or imports torch where it needs it.

A kind says what tensors one layer has for one adapter. The bank (core/lora/bank.py) lays them out for K
adapters, trains the trained ones and hands them back; core/lora/peft writes and reads them. Where an adapter
has no part on a layer its numbers and its scale are zero. added() multiplies by the scale, so nothing is
added there and nothing learns: adapters with other targets, of other kinds and of none share the batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from core.errors import InvalidAdapter
from core.lora.expert_shapes import ExpertShape
from core.options import Config, NoOptions
from core.seam import Seam

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from core.lora.adapter import AdapterWeights, LayerFactors, LayerWeights
    from core.lora.bank import AdapterBank
    from core.lora.config import LoraConfig
    from core.lora.stack import AdapterStack

_FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class LayerTensor:
    """A tensor that one adapter has on one layer."""

    name: str
    shape: tuple[int, ...]
    """Of an adapter with lower rank each length is at most this one's, and its numbers lie in the corner."""
    trained: bool = True
    """False for what stays as it was at the start."""
    kept: bool = True
    """False for what only training needs: it is no part of the adapter that is stored."""

    @property
    def count(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


def largest(shapes: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape with the most numbers."""
    return max(shapes, key=math.prod)


class AdapterKind:
    """An adapter kind: its head, and its duties. Those with a default serve most kinds as they are."""

    name: str
    label: str
    help: str
    order: int = 100
    options: type[Config] = NoOptions
    """Options of this kind alone, beside LoraConfig's. Their names are unique among all training options."""

    whole = False
    """Whether it trains whole parameters of the model in the place of the base's, whatever modules they are
    of, instead of tensors of its own beside the linear layers. Such a run trains, and answers, by itself.
    """

    # On shapes alone.

    def check(self, config: LoraConfig) -> None:
        """Raise InvalidConfig for a setting that this kind cannot keep."""

    def tensors(self, n_in: int, n_out: int, rank: int) -> tuple[LayerTensor, ...]:
        """What one layer with n_in inputs and n_out outputs has."""
        raise NotImplementedError

    shared: frozenset[str] = frozenset()
    """Names of tensors that an adapter has once for all its layers, as large as the largest layer says; a
    smaller layer has the corner. start() gives the same numbers on each layer.
    """

    def frozen(self, own: Any) -> frozenset[str]:
        """Names of tensors that could be trained, and are not with these options of this kind."""
        return frozenset()

    def takes_embedding(self, own: Any) -> bool:
        """Whether it can be on an input embedding."""
        return False

    takes_parts = False
    """Whether it can be on some parts alone of a layer that holds several; see core/lora/fused.py."""

    takes_experts = False
    """Whether it can be on fused parameters of experts; see core/lora/expert_shapes.py. Each of its tensors
    has one for each expert there, with the experts in front.
    """

    def biases_on_b(self, own: Any) -> bool:
        """Whether a bias is trained beside B on each targeted layer, added before the scale (PEFT's
        lora_bias).
        """
        return False

    def parameter_count(self, layers: Iterable[tuple[int, int, int]], own: Any) -> int:
        """Numbers that are trained on layers with these inputs, outputs and ranks."""
        return self.count((one.name, one.shape) for one in self._tensors(layers) if self._learns(one, own))

    def layer_tensors(self, shape: Sequence[int], rank: int) -> tuple[LayerTensor, ...]:
        """tensors() of a layer of this (in, out) shape, and of experts with their number in front."""
        own = self.tensors(shape[0], shape[1], rank)
        if not isinstance(shape, ExpertShape):
            return own
        return tuple(replace(one, shape=(shape.experts, *one.shape)) for one in own)

    def _tensors(self, layers: Iterable[tuple[int, int, int]]) -> list[LayerTensor]:
        return [one for layer in layers for one in self.tensors(*layer)]

    def _learns(self, tensor: LayerTensor, own: Any) -> bool:
        return tensor.trained and tensor.name not in self.frozen(own)

    def count(self, tensors: Iterable[tuple[str, tuple[int, ...]]]) -> int:
        """Numbers in all layers' tensors, given by name and shape, the shared ones counted once."""
        shapes: dict[str, list[tuple[int, ...]]] = {}
        for name, shape in tensors:
            shapes.setdefault(name, []).append(shape)
        return sum(
            math.prod(largest(found)) if name in self.shared else sum(map(math.prod, found))
            for name, found in shapes.items()
        )

    def training_bytes(self, layers: Iterable[tuple[int, int, int]], own: Any, work_bytes: float) -> float:
        """Memory of an adapter on these layers while it is trained, beside a base whose numbers take
        `work_bytes`: its numbers in float32 or wider, and where the base is narrower the copy that computes;
        for each that is trained a gradient and AdamW's two moments, too.
        """
        tensors = self._tensors(layers)
        learning = self.count((one.name, one.shape) for one in tensors if self._learns(one, own))
        numbers = self.count((one.name, one.shape) for one in tensors)
        stored = max(_FLOAT32, work_bytes)
        copied = work_bytes if work_bytes < stored else 0
        return 3 * stored * learning + (stored + copied) * numbers

    # Training.

    starts_from_weight = True
    """Whether start() and start_embedding() look at W. That of a quantised base would have to be made first,
    and of a base in parts nobody holds it.
    """

    def start(
        self, n_in: int, n_out: int, rank: int, weight: Tensor, generator: Generator, own: Any
    ) -> Mapping[str, Tensor]:
        """The tensors of a fresh adapter, float32 on the CPU; `weight` is the frozen W [out, in], or an empty
        tensor where starts_from_weight is False, `own` this kind's options.

        Whatever is random comes from `generator`, so the same seed starts the same adapter on every device.
        """
        raise NotImplementedError

    def start_embedding(
        self, n_in: int, n_out: int, rank: int, weight: Tensor, generator: Generator, own: Any
    ) -> Mapping[str, Tensor]:
        """The same for an input embedding with n_in tokens."""
        raise NotImplementedError

    def start_experts(
        self, shape: ExpertShape, rank: int, generator: Generator, own: Any
    ) -> Mapping[str, Tensor]:
        """The same for a fused parameter of experts, with the experts in front."""
        raise NotImplementedError

    def started(self, tensors: Mapping[str, Tensor], scale: float) -> Mapping[str, Tensor]:
        """What start() gave, for a layer with this scale()."""
        return tensors

    def derived(self, n_in: int, n_out: int, rank: int) -> Mapping[str, Tensor]:
        """Tensors of a layer that no file holds, since they follow from its shape alone. start() gives them,
        too; peft_names does not name them.
        """
        return {}

    def scale(self, config: LoraConfig, path: str) -> float:
        """The factor that added() multiplies by on the layer at this module path; not 0."""
        return 1.0

    def rate_ratio(self, name: str, plus: float) -> float:
        """The learning rate of the trained tensors with this name, as a multiple of the run's; `plus` is
        LoRA+'s λ.
        """
        return 1.0

    def before_step(self, bank: AdapterBank, slot: int, own: Any) -> None:
        """Act on the gradients in bank.gradient(slot) before they are clipped and the optimiser steps; `own`
        are this kind's options.
        """

    def after_step(self, bank: AdapterBank, slot: int, done: int, planned: int, own: Any) -> None:
        """Act on the adapter in `slot` after each optimiser step: `done` of `planned` are behind it; `own`
        are this kind's options.

        bank.row(slot) has its numbers, to be changed in place; bank.grad[slot] still holds, clipped, the
        gradients that the step went by.
        """

    def ranks(self, bank: AdapterBank, slot: int, done: int, planned: int) -> Mapping[str, int] | None:
        """The rank of each layer by module path after step `done`, where ranks change while it trains and
        these should be kept in the run's record; else None. May wait for the device, so not after every step.
        """
        return None

    state_names: frozenset[str] = frozenset()
    """Tensors that going on from a checkpoint needs as they were, beside the adapter that it holds."""

    def finished(self, adapter: AdapterWeights) -> AdapterWeights:
        """What is kept of an adapter in training, and answers, as of now: another kind's, where that is what
        the numbers stand for.
        """
        return adapter

    # Computing.

    answers_as_lora = False
    """Whether answers and measurements are computed with low_rank(), which LoRA's kernels make quick."""

    def stack(self) -> type[AdapterStack]:
        """The module that computes one layer for K adapters. Another than the general one, where a kind has a
        quicker way.
        """
        from core.lora.stack import AdapterStack

        return AdapterStack

    reads_weight = True
    """Whether added() looks at W. Where it does not, it is given an empty one: that of a quantised base would
    have to be made first.
    """

    def added(
        self, x: Tensor, y: Tensor, weight: Tensor, tensors: Mapping[str, Tensor], scale: Tensor
    ) -> Tensor:
        """What K adapters add to the output of a layer, [K, T, out]; differentiable.

        x [K, T, in] is the layer's input after dropout, y [K, T, out] the base's output, weight [out, in] the
        frozen W. `tensors` holds this kind's tensors, each with K in front, and scale [K], all in x's dtype;
        the scale multiplies what is added, and is 0 for an adapter without a part on this layer.
        """
        raise NotImplementedError

    # What a layer stands for.

    def layer(self, tensors: Mapping[str, Tensor], scale: float) -> LayerWeights:
        """One layer of an adapter."""
        from core.lora.adapter import LayerWeights

        return LayerWeights(tensors, scale)

    def rank(self, layer: LayerWeights) -> int:
        """The rank that tensors() needs to be told for this layer."""
        return 1

    def is_trained(self, layer: LayerWeights) -> bool:
        """Whether the layer changes anything."""
        return any(bool(one.any()) for one in layer.tensors.values())

    not_low_rank = "its ΔW is no product of two low-rank factors"
    """Why low_rank() refuses."""

    def low_rank(self, layer: LayerWeights) -> LayerFactors:
        """ΔW as scale·B·A, if it can be written so whatever W is: what merging, combining, cutting to a rank
        and the anatomy work on. Raises InvalidAdapter with the reason.
        """
        raise InvalidAdapter(self.why_not_low_rank())

    def why_not_low_rank(self) -> str:
        """The sentence that refuses."""
        return f"This needs a low-rank adapter such as LoRA, and {self.label} is none: {self.not_low_rank}."

    def merge_parts(self, layer: LayerWeights) -> tuple[LayerFactors, Tensor | None]:
        """What a merge writes: W + scale·B·A, and where lengths [out] are given, each row of that brought to
        its length. Raises InvalidAdapter with the reason where a merge cannot be written so.
        """
        return self.low_rank(layer), None

    # PEFT's files: adapter_config.json and adapter_model.safetensors.

    plain_lora = False
    """Whether software that knows LoRA alone, such as vLLM, loads its files."""

    peft_type: str
    peft_names: Mapping[str, str]
    """How each tensor is called in the file, behind its module's path; a shared one behind base_model."""
    embedding_names: Mapping[str, str] = {}
    """As peft_names, of an input embedding."""
    peft_biases: tuple[str, ...] = ("all", "lora_only")
    """What its setting bias may be beside none."""
    takes_bias_on_b = False
    """Whether B may have a bias (lora_bias)."""
    peft_keys: frozenset[str] = frozenset()
    """Settings that belong to this kind and that check_peft() looks at."""
    peft_refused: Mapping[str, str] = {}
    """Settings that may only be off, each with the reason."""

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Whether a configuration is of this kind. Where several say so, the last in order is taken."""
        return config.get("peft_type") == self.peft_type

    def check_peft(self, config: Mapping[str, Any]) -> None:
        """Check the values of peft_keys. Raises InvalidAdapter naming the setting at fault."""

    def peft_settings(self, adapter: AdapterWeights) -> dict[str, Any]:
        """What the configuration holds beside peft_type, task_type, the base and the targeted modules."""
        return {}

    def stated(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of AdapterWeights that the configuration gives: rank, alpha, dropout and others."""
        return {"rank": 1, "alpha": 1.0, "dropout": 0.0}

    def stated_rank(self, config: Mapping[str, Any], path: str) -> int:
        """The rank of the layer at this module path by the configuration."""
        return 1

    def stated_scale(self, config: Mapping[str, Any], path: str) -> float:
        """The scale of the layer at this module path by the configuration."""
        return 1.0


ADAPTER_KINDS: Seam[AdapterKind] = Seam("core.lora.kinds", AdapterKind, "adapter kind")
