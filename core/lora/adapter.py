"""An adapter in memory: for each targeted layer the tensors of its kind and their scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from core.data.labels import LabelSet
from core.errors import InvalidAdapter
from core.lora.kinds import ADAPTER_KINDS
from core.lora.wholes import BIAS_ON_B, WEIGHT, module_of


@dataclass(frozen=True)
class LayerWeights:
    """One layer's part of an adapter: tensors by the names that its kind gives them, and the scale."""

    tensors: Mapping[str, Tensor]
    scale: float

    def equals(self, other: LayerWeights) -> bool:
        """Whether both hold the same numbers, the scale not compared."""
        return set(self.tensors) == set(other.tensors) and all(
            torch.equal(one, other.tensors[name]) for name, one in self.tensors.items()
        )


class LayerFactors(LayerWeights):
    """One layer of a low-rank adapter: A [r, in], B [out, r] and the scale α/r. Of a fused parameter of
    experts one of each for every expert: A [E, r, in], B [E, out, r].
    """

    def __init__(self, A: Tensor, B: Tensor, scale: float) -> None:
        super().__init__({"A": A, "B": B}, scale)

    @property
    def A(self) -> Tensor:
        """[r, in]."""
        return self.tensors["A"]

    @property
    def B(self) -> Tensor:
        """[out, r]."""
        return self.tensors["B"]

    @property
    def of_experts(self) -> bool:
        """Whether these are the factors of experts."""
        return self.A.dim() == 3

    def of_expert(self, number: int) -> LayerFactors:
        """Those of one expert."""
        return LayerFactors(self.A[number], self.B[number], self.scale)

    @property
    def rank(self) -> int:
        """r."""
        return int(self.A.shape[-2])

    def delta_weight(self) -> Tensor:
        """ΔW = scale·B·A in float32, [out, in], of experts [E, out, in] (arXiv 2106.09685, equation 3)."""
        return self.scale * (self.B.float() @ self.A.float())


@dataclass(frozen=True)
class AdapterWeights:
    """A whole adapter: its layers by module path, with the rank and alpha that its configuration states."""

    rank: int
    alpha: float
    dropout: float
    layers: Mapping[str, LayerWeights]
    base_fingerprint: str = ""
    base_name: str = ""
    base_revision: str = ""
    """The commit of a base that is named by its hub id."""
    embedding: str = ""
    """The module path of the input embedding, where it has factors; it is written by other names."""
    fan_in_fan_out: bool = False
    use_rslora: bool = False
    kind: str = "lora"
    """The name of its adapter kind."""
    head: Mapping[str, Tensor] = field(default_factory=dict)
    """Whole parameters of the model that are its own, by their paths there, float32: of a classifier its
    head's; of others what `wholes` says. Tied ones are one tensor."""
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    """Of full fine-tuning: the base's parameters that it replaces, by their paths in the model, float32."""
    labels: LabelSet | None = None
    """Of a classifier: what its scores stand for."""

    @property
    def target_names(self) -> list[str]:
        """The last names of the targeted modules, or of those whose parameters it replaces."""
        modules = [*self.layers, *(module_of(path) for path in self.whole)]
        return sorted({path.rpartition(".")[2] for path in modules})

    @property
    def experts(self) -> list[str]:
        """The fused parameters of experts that it has factors on, by path."""
        return [path for path, one in self.layers.items() if isinstance(one, LayerFactors) and one.of_experts]

    @property
    def highest_rank(self) -> int:
        """The largest rank of any layer; 0 where there is none."""
        kind = ADAPTER_KINDS.get(self.kind)
        return max((kind.rank(layer) for layer in self.layers.values()), default=0)

    @property
    def parameter_count(self) -> int:
        """Numbers in all layers, as far as they are stored."""
        kind = ADAPTER_KINDS.get(self.kind)
        tensors = [pair for layer in self.layers.values() for pair in layer.tensors.items()]
        own = kind.count((name, tuple(one.shape)) for name, one in tensors if name in kind.peft_names)
        wholes = (*self.head.values(), *self.whole.values())
        return own + sum({one.data_ptr(): one.numel() for one in wholes}.values())

    @property
    def file_count(self) -> int:
        """Numbers that its files hold: those that are tied twice."""
        kept = {one.data_ptr(): one.numel() for one in self.head.values()}
        return self.parameter_count + sum(one.numel() for one in self.head.values()) - sum(kept.values())

    @property
    def wholes(self) -> Mapping[str, Tensor]:
        """What an adapter that writes text has of its own beside its factors: weights of embedding and head,
        biases, biases on B.
        """
        return {} if self.labels is not None else self.head

    @property
    def is_tied(self) -> bool:
        """Whether two of its whole weights are one: those of an embedding and a head that its base ties."""
        weights = [one for name, one in self.wholes.items() if name.endswith(WEIGHT)]
        return len(weights) == 2 and torch.equal(*weights)

    def require_factors_alone(self, what: str) -> None:
        """Raise InvalidAdapter where `what` works on low-rank factors and there is more to this adapter."""
        if self.wholes:
            named = sorted({module_of(path).rpartition(".")[2] for path in self.wholes})
            raise InvalidAdapter(
                f"It has whole parameters of its own beside its factors ({', '.join(named)[:120]}), and "
                f"these are no low-rank ΔW: {what} would leave them out or add them up wrongly. Merging it "
                "into its base is exact: export it merged, or chat with several side by side."
            )

    def require_no_experts(self, what: str) -> None:
        """Raise InvalidAdapter where `what` has no place for adapters on experts."""
        if self.experts:
            raise InvalidAdapter(
                f"It has factors on experts ({self.experts[0]}, {len(self.experts)} such parameters), for "
                f"which {what} has no place here; export it merged, which is exact, or as PEFT's."
            )

    @property
    def head_modules(self) -> list[str]:
        """The modules that the head's parameters belong to, as PEFT's modules_to_save names them."""
        return sorted({_module_of(path) for path in self.head})

    def is_trained(self) -> bool:
        """Whether every number is finite and some layer changes something, or parameters are replaced."""
        kind, layers = ADAPTER_KINDS.get(self.kind), self.layers.values()
        of_layers = (one for layer in layers for one in layer.tensors.values())
        tensors = [*of_layers, *self.head.values(), *self.whole.values()]
        finite = all(bool(torch.isfinite(one).all()) for one in tensors)
        return finite and (bool(self.whole) or any(kind.is_trained(layer) for layer in layers))

    def merge_parts(self) -> dict[str, tuple[LayerFactors, Tensor | None]]:
        """What a merge writes for every layer, see AdapterKind.merge_parts(); nothing for parameters that are
        replaced. Raises InvalidAdapter.
        """
        kind = ADAPTER_KINDS.get(self.kind)
        return {path: kind.merge_parts(layer) for path, layer in self.layers.items()}

    def as_lora(self) -> AdapterWeights:
        """The same ΔW as an adapter of the kind lora, the scale folded into B. Raises InvalidAdapter."""
        layers = {path: LayerFactors(one.A, one.B * one.scale, 1.0) for path, one in self.low_rank().items()}
        rank, head = max(one.rank for one in layers.values()), self.head_at(layers)
        return replace(
            self, rank=rank, alpha=float(rank), layers=layers, kind="lora", use_rslora=False, head=head
        )

    def head_at(self, layers: Mapping[str, LayerWeights]) -> dict[str, Tensor]:
        """Its whole parameters for these layers, whose scales are others: a bias on B has the factor that its
        layer's B has.
        """
        return {
            name: one * (self.layers[path].scale / layers[path].scale)
            if name.endswith(BIAS_ON_B) and (path := module_of(name))
            else one
            for name, one in self.head.items()
        }

    def answering(self) -> AdapterWeights:
        """What computes the same, in the quickest way."""
        return self.as_lora() if ADAPTER_KINDS.get(self.kind).answers_as_lora else self

    def low_rank(self) -> dict[str, LayerFactors]:
        """Every layer's ΔW as scale·B·A, for what works on low-rank factors alone.

        Raises InvalidAdapter with the reason if the adapter's kind cannot be written so.
        """
        kind = ADAPTER_KINDS.get(self.kind)
        if self.whole:
            raise InvalidAdapter(kind.why_not_low_rank())
        return {path: kind.low_rank(layer) for path, layer in self.layers.items()}


def _module_of(path: str) -> str:
    """Of a parameter of a classifier's head: the model's own child, or the pooler inside its layers."""
    first, _, rest = path.partition(".")
    return f"{first}.pooler" if rest.startswith("pooler.") else first
