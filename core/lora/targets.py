"""Which layers an adapter targets, and what that costs. Works on shapes alone and needs no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from core.errors import InvalidConfig
from core.lora.config import ALL_LINEAR, LoraConfig
from core.lora.expert_shapes import experts_among, experts_of_shape
from core.lora.fused import FUSED_ATTENTION, Rows
from core.lora.kinds import ADAPTER_KINDS
from core.lora.module_names import ends_with, is_among
from core.options import Config

LayerShapes = Mapping[str, tuple[int, int]]
"""(in_features, out_features) by module path."""

_FLOAT32 = 4  # bytes
_ATTENTION = ("attn", "attention")  # parts of the names of modules that attend
ATTENTION, FEED_FORWARD, QUERY_AND_VALUE = "attention", "feed-forward", "query-value"
"""Words that target_modules takes in the place of names, whatever these are in a model."""
CHOICE_WORDS = {"Attention": ATTENTION, "Feed-forward": FEED_FORWARD, "Query and value": QUERY_AND_VALUE}
"""By what target_choices() calls the same."""
WORDS = frozenset({ALL_LINEAR, *CHOICE_WORDS.values()})
_QUERY_AND_VALUE = (("q_proj", "v_proj"), ("query", "value"), ("q", "v"), ("wq", "wv"))


@dataclass(frozen=True)
class LayerKind:
    """The linear layers of a model that are called alike."""

    name: str
    """As it stands in target_modules."""
    layers: int
    parameters: int
    """That an adapter trains on them."""
    attends: bool
    """Whether they are parts of an attention module."""
    is_head: bool = False


def select_targets(
    paths: Sequence[str], config: LoraConfig, head: str | None, experts: Collection[str] = ()
) -> list[str]:
    """The module paths that an adapter of this configuration has: by name, in the chosen decoder layers.
    experts: those of the paths that are fused parameters, see Wholes.targetable(); they are chosen already.

    Raises InvalidConfig for a name, a pattern or a layer number that matches nothing, with what there is.
    """
    named = _named([path for path in paths if path not in experts], config.target_names, head)
    chosen = [path for path in paths if path in experts or path in named] if experts else named
    for name in config.pattern_names:
        if not any(ends_with(path, name) for path in chosen):
            raise InvalidConfig(
                f"A pattern speaks of {name!r}, which is none of the targeted modules: {_names(chosen)}."
            )
    return on_layers(chosen, config)


def on_layers(chosen: list[str], config: LoraConfig) -> list[str]:
    """Those of these paths that stand in the layers that layers_to_transform names; all if it names none.

    Raises InvalidConfig for a layer that none of them is in.
    """
    if config.layer_numbers is None:
        return chosen
    there = {number for path in chosen if (number := layer_number(path)) is not None}
    if unknown := sorted(config.layer_numbers - there):
        raise InvalidConfig(
            f"layers_to_transform names layer {unknown[0]}; this model's layers are 0 to {max(there)}."
            if there
            else f"layers_to_transform names layer {unknown[0]}, and no chosen module is in a layer."
        )
    return [path for path in chosen if layer_number(path) in config.layer_numbers]


def _named(paths: Sequence[str], names: Sequence[str], head: str | None) -> list[str]:
    if ALL_LINEAR in names:
        if len(names) > 1:
            raise InvalidConfig("all-linear already targets every linear layer; give it alone.")
        return [path for path in paths if path != head]
    chosen: set[str] = set()
    for name in names:
        found = [path for path in paths if ends_with(path, name)] or _by_word(name, paths, head)
        if not found:
            raise InvalidConfig(
                f"No layer of this model is called {name!r}. It has: {_names(paths)} (or all-linear)."
            )
        chosen.update(found)
    return [path for path in paths if path in chosen]


def _by_word(word: str, paths: Sequence[str], head: str | None) -> list[str]:
    """The layers that a usual choice means in this model; none for what is no such word."""
    inner = [path for path in paths if path != head]
    if word == QUERY_AND_VALUE:
        return [path for path in inner if is_among(path, _query_and_value(inner))]
    attending = {path for path in inner if _attends(path)}
    meant = {ATTENTION: attending, FEED_FORWARD: {*inner} - attending}.get(word, ())
    return [path for path in inner if path in meant]


def _query_and_value(paths: Sequence[str]) -> tuple[str, str]:
    """The names of the two. Raises InvalidConfig where one layer holds both, or they have other names."""
    there = {path.rpartition(".")[2] for path in paths}
    if pair := next((pair for pair in _QUERY_AND_VALUE if there.issuperset(pair)), None):
        return pair
    if fused := sorted(there & FUSED_ATTENTION):
        raise InvalidConfig(
            f"This model keeps query and value in one layer ({fused[0]}). For LoRA on these two parts of it "
            f"set target_modules={fused[0]} and enable_lora={fused[0]}=q+v."
        )
    raise InvalidConfig(
        f"Which layers of this model are query and value is not known; name them. It has: {_names(paths)}."
    )


def _attends(path: str) -> bool:
    return any(part in path.rpartition(".")[0] for part in _ATTENTION)


def _names(paths: Sequence[str]) -> str:
    return ", ".join(sorted({path.rpartition(".")[2] for path in paths}))


def layer_number(path: str) -> int | None:
    """The decoder layer a module path lies in, counted from 0; None outside of them."""
    return next((int(part) for part in path.split(".") if part.isdigit()), None)


def trainable_parameter_count(
    shapes: LayerShapes,
    targets: Sequence[str],
    config: LoraConfig,
    own: Config | None = None,
    parts: Mapping[str, Sequence[Rows]] | None = None,
) -> int:
    """Numbers that an adapter of this configuration trains: of LoRA r·(in + out), summed over the targeted
    layers (arXiv 2106.09685, section 4.2). `own`: its kind's options, by default their defaults; `parts`: the
    rows of those parts of fused layers that it is on, by path.
    """
    kind, parts = ADAPTER_KINDS.get(config.kind), parts or {}
    sizes = _sizes(shapes, [path for path in targets if path not in parts], config)
    for path, chosen in parts.items():
        rank = config.rank_of(path) // len(chosen)
        sizes += [(shapes[path][0], sum(end - first for first, end in rows), rank) for rows in chosen]
    return kind.parameter_count(sizes, kind.options() if own is None else own)


def training_bytes(
    shapes: LayerShapes, targets: Sequence[str], config: LoraConfig, own: Config, work_bytes: float
) -> float:
    """Memory that such an adapter takes while it is trained beside a base whose numbers take `work_bytes`."""
    kind = ADAPTER_KINDS.get(config.kind)
    return kind.training_bytes(_sizes(shapes, targets, config), own, work_bytes)


def whole_bytes(numbers: int, work_bytes: float) -> float:
    """The same of numbers that are trained whole: float32 or wider with a gradient and two moments, and where
    the base is narrower the copy that computes.
    """
    stored = max(_FLOAT32, work_bytes)
    return numbers * (4 * stored + (work_bytes if work_bytes < stored else 0))


def bytes_beside(numbers: int, work_bytes: float) -> float:
    """whole_bytes() of numbers beside factors: there is also, for a while, the gradient of one pass, and
    where the base is narrower what computes in a micro-batch and its gradients.
    """
    stored = max(_FLOAT32, work_bytes)
    passing = stored + (3 * work_bytes if work_bytes < stored else 0)
    return whole_bytes(numbers, work_bytes) + numbers * passing


def _sizes(shapes: LayerShapes, targets: Sequence[str], config: LoraConfig) -> list[tuple[int, int, int]]:
    """Inputs, outputs and rank of each targeted layer, and of each expert."""
    return [
        (*shapes[path], config.rank_of(path))
        for path in targets
        for _ in range(experts_of_shape(shapes[path]))
    ]


def layer_kinds(
    shapes: LayerShapes, head: str | None, config: LoraConfig, own: Config | None = None
) -> list[LayerKind]:
    """What target_modules can name in this model, in the order of the model, and what each would cost."""
    paths: dict[str, list[str]] = {}
    for path, name in _kind_names(shapes).items():
        paths.setdefault(name, []).append(path)
    return [
        LayerKind(
            name,
            len(found),
            trainable_parameter_count(shapes, found, config, own),
            all(map(_attends, found)),
            head in found,
        )
        for name, found in paths.items()
    ]


@dataclass(frozen=True)
class Targeted:
    """Which layers of a model a choice of target modules hits, and what that trains."""

    target_modules: str
    layers: Mapping[str, int]
    """How many of each name, in the order of the model."""
    parameters: int

    @property
    def sentence(self) -> str:
        """q_proj × 30, v_proj × 30 · 921,600 trainable."""
        return f"{counted(self.layers)} · {self.parameters:,} trainable"


def counted(layers: Mapping[str, int]) -> str:
    """How many layers of each name, in words."""
    return ", ".join(f"{name} × {count}" for name, count in layers.items())


def usual_targets(
    shapes: LayerShapes, head: str | None, config: LoraConfig, own: Config | None = None
) -> dict[str, Targeted]:
    """What each of target_choices() hits in this model, at the rank and with the kind of `config`, whatever
    that targets itself.
    """
    found = {}
    for label, names in target_choices(layer_kinds(shapes, head, config, own)).items():
        targets = _named(list(shapes), [name.strip() for name in names.split(",")], head)
        kinds = targeted_kinds(shapes, targets, config, own)
        layers = {name: count for name, (count, _) in kinds.items()}
        found[label] = Targeted(names, layers, sum(count for _, count in kinds.values()))
    return found


def targeted_kinds(
    shapes: LayerShapes,
    targets: Sequence[str],
    config: LoraConfig,
    own: Config | None = None,
    parts: Mapping[str, Sequence[Rows]] | None = None,
) -> dict[str, tuple[int, int]]:
    """Which layers an adapter on `targets` has factors on: how many of each name, and how many numbers it
    trains on them, in the order of the model.
    """
    chosen, parts = set(targets), parts or {}
    paths: dict[str, list[str]] = {}
    experts = experts_among(shapes)
    for path, name in _kind_names(shapes).items():
        if path in chosen:
            called = ".".join(path.split(".")[-2:]) if path in experts else name
            paths.setdefault(called, []).append(path)
    return {
        name: (
            len(found),
            trainable_parameter_count(
                shapes, found, config, own, {path: parts[path] for path in found if path in parts}
            ),
        )
        for name, found in paths.items()
    }


def _kind_names(paths: Iterable[str]) -> dict[str, str]:
    """The last part of each path, with its module's name where layers of several modules are called so."""
    parts = {path: ("", *path.split("."))[-2:] for path in paths}
    modules: dict[str, set[str]] = {}
    for module, last in parts.values():
        modules.setdefault(last, set()).add(module)
    apart = {last for last, found in modules.items() if len(found) > 1 and not any(map(_numbered, found))}
    return {path: f"{module}.{last}" if last in apart else last for path, (module, last) in parts.items()}


def _numbered(module: str) -> bool:
    """Whether a module is one of a list, or none."""
    return not module or module.isdigit()


def target_choices(kinds: Sequence[LayerKind]) -> dict[str, str]:
    """Usual choices of target modules for a model with these kinds of layers, by what they are called."""
    inner = [kind for kind in kinds if not kind.is_head]
    there = {kind.name for kind in inner}
    pairs = [pair for pair in _QUERY_AND_VALUE if there.issuperset(pair)]
    found = {
        "All linear": ALL_LINEAR,
        "Attention": ",".join(kind.name for kind in inner if kind.attends),
        "Feed-forward": ",".join(kind.name for kind in inner if not kind.attends),
        "Query and value": ",".join(pairs[0]) if pairs else "",
    }
    return {label: names for label, names in found.items() if names}
