"""What should be looked at before a training starts: each point with its state and the reason, computed from
what will be trained. Works on shapes and figures and needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from core.base_model.quantisation import NONE
from core.lora.config import LoraConfig
from core.lora.expert_shapes import experts_among
from core.lora.kinds import ADAPTER_KINDS, AdapterKind
from core.lora.targets import LayerShapes, select_targets
from core.lora.whole_names import chosen_parameters, module_of
from core.lora.wholes import Wholes
from core.train.config import TrainConfig
from core.train.estimate import Estimate
from core.train.sharding import FSDP, CardsHold
from core.train.training_options import TrainingOptions

GOOD, MIND, BAD, OPEN = "good", "mind", "bad", "open"
"""As it should be; something to mind; refused unless somebody insists; not known yet."""
_QUERIES = ("q_proj", "query", "q", "wq", "q_lin", "query_proj")
_VALUES = ("v_proj", "value", "v", "wv", "v_lin", "value_proj")
_FUSED = ("c_attn", "qkv_proj", "query_key_value", "Wqkv", "qkv", "in_proj")
_RANKS = (8, 64)
_ALPHAS = (1.0, 2.0)  # times the rank
_ROWS_A_RANK = 10  # training rows for each unit of rank, below which it is said
_FLOAT32 = 4


@dataclass(frozen=True)
class Check:
    """One point of the list."""

    name: str
    label: str
    state: str
    """GOOD, MIND, BAD or OPEN."""
    reason: str

    def record(self) -> dict[str, str]:
        """As one flat row."""
        return asdict(self)


@dataclass(frozen=True)
class Surroundings:
    """What the list needs to know beside the options."""

    layer_shapes: LayerShapes
    head: str | None
    tensors: Sequence[str]
    """The names of all parameters in the base's files; empty where they are not known."""
    base_parameters: int
    base_name: str
    fingerprint: str
    untouched: bool
    """Whether the base's files are as they were when the fingerprint was taken."""
    others: int
    """Adapters here that are for this base."""
    train_rows: int
    room: int | None
    """Bytes of memory that a run could have; None while nobody knows."""
    wholes: Wholes = field(default_factory=Wholes)
    """What of the base adapters can have of their own."""
    context_length: int = 0
    """Tokens that the base was built for; 0 if its files do not say."""
    row_characters: int = 0
    """Of the longest row that is known; no row has more tokens than characters."""


def checklist(around: Surroundings, options: TrainingOptions, plan: Estimate) -> list[Check]:
    """The list for one run. Raises InvalidConfig for targets that match nothing."""
    kind, lora = ADAPTER_KINDS.get(options.lora.kind), options.lora
    modules = _modules(around, options, kind)
    return [
        _base_kept(around, kind, plan),
        _fits(around.room, plan, options),
        *([_cards(plan.hold, options.train)] if plan.hold else []),
        *_length(around, options.train.max_length),
        _attention(modules, lora),
        *([] if kind.whole else [_rank(modules, lora), _alpha(modules, lora, kind)]),
        _starts_at_zero(None),
        _pinned(around),
        _leaves_as(kind, plan),
        *([] if kind.whole else [_rows(around.train_rows, lora.rank)]),
    ]


def _modules(around: Surroundings, options: TrainingOptions, kind: AdapterKind) -> list[str]:
    """The paths of the modules that are trained."""
    lora = options.lora
    if kind.whole:
        names = around.tensors or [f"{path}.weight" for path in around.layer_shapes]
        return list(dict.fromkeys(module_of(path) for path in chosen_parameters(names, lora)))
    shapes = around.wholes.targetable(around.layer_shapes, lora, options.kind)
    return select_targets(list(shapes), lora, around.head, experts_among(shapes))


def _base_kept(around: Surroundings, kind: AdapterKind, plan: Estimate) -> Check:
    share = plan.trainable_parameters / max(1, around.base_parameters)
    used = f"; {around.others:,} other adapters here are for it" if around.others else ""
    if kind.whole:
        said = (
            f"{share:.0%} of the weights get values of their own, so what {around.base_name} can do beside "
            f"this task may be lost with them, though its own files stay{used}. LoRA keeps the base."
        )
        return Check("base", "Base kept", MIND, said)
    said = (
        f"The {around.base_parameters:,} weights of {around.base_name} stay as they are; {share:.2%} as many "
        f"are trained beside them{used}."
    )
    return Check("base", "Base kept", GOOD, said)


def _fits(room: int | None, plan: Estimate, options: TrainingOptions) -> Check:
    each = " on each card" if plan.hold else ""
    needed = f"about {plan.memory_bytes / 2**30:.1f} GiB{each}"
    if room is None:
        return Check("memory", "Fits the memory", OPEN, f"{needed}; how much there is, the engine says.")
    state = GOOD if plan.memory_bytes <= room else MIND
    said = f"{needed} of {room / 2**30:.1f} GiB"
    can_shrink = options.train.quantisation == NONE and not ADAPTER_KINDS.get(options.lora.kind).whole
    less = ", or hold the base in 4 bits (quantisation=nf4)" if can_shrink else ""
    if plan.hold and plan.hold.may_part:
        less += ", or a part of it on each card (sharding=fsdp)"
    if plan.cards > 1:
        less += f", or a part of it on each of {plan.cards} cards (devices={plan.cards}, sharding=fsdp)"
    more = "" if state == GOOD else f"; measure first, or take less{less}"
    sliced = "" if plan.hold and plan.hold.way == FSDP else " and long rows are computed in slices"
    if plan.memory_bytes > room >= plan.least_bytes > 0:
        more = (
            ". Layers are computed again where that is too much, and on a GPU their inputs wait in the "
            f"host's memory{sliced}: down to about {plan.least_bytes / 2**30:.1f} GiB"
        )
    return Check("memory", "Fits the memory", state, f"{said}{more}.")


def _cards(hold: CardsHold, train: TrainConfig) -> Check:
    """How they hold the base, and whether all of them have rows to compute."""
    label, rows, count = "Several cards", train.rows_a_process, train.processes
    each = f"{rows} of the {train.micro_batch_size} rows of a micro-batch"
    if train.micro_batch_size % count == 0:
        return Check("cards", label, GOOD, f"{hold.sentence} Each computes {each}.")
    busy = -(-train.micro_batch_size // rows)
    left = "the last has fewer" if busy == count else f"{count - busy} of {count} cards have none"
    said = (
        f"{hold.sentence} A card computes {each}, and {left}: choose a micro_batch_size that {count} divides."
    )
    return Check("cards", label, MIND, said)


def _length(around: Surroundings, max_length: int) -> list[Check]:
    """Said only where rows may be cut shorter than asked for."""
    if not 0 < around.context_length < min(max_length, around.row_characters):
        return []
    said = (
        f"Rows are cut at {around.context_length:,} tokens, for which {around.base_name} was built, not at "
        f"{max_length:,}."
    )
    return [Check("length", "Within the context", MIND, said)]


def _attention(modules: Sequence[str], lora: LoraConfig) -> Check:
    """Of a fused layer the parts count that are chosen, and without a choice all."""
    label, last = "Queries and values", {path.rpartition(".")[2] for path in modules}
    names = {part for name in last for part in lora.parts.get(name, (name,))}
    queries, values = names & {*_QUERIES, *_FUSED}, names & {*_VALUES, *_FUSED}
    if queries and values:
        return Check("attention", label, GOOD, f"{' and '.join(sorted(queries | values))} are trained.")
    if names and names <= set(_QUERIES):
        said = (
            f"Only {', '.join(sorted(names))} would be trained. Queries alone learn clearly less than "
            "queries and values with as many parameters (arXiv 2106.09685, Table 5: 70.4 against 73.7 on "
            "WikiSQL). Add the values, or all-linear."
        )
        return Check("attention", label, BAD, said)
    missing = "values" if queries else "queries" if values else "queries and values"
    return Check("attention", label, MIND, f"The {missing} of the attention are not trained.")


def _rank(modules: Sequence[str], lora: LoraConfig) -> Check:
    ranks = sorted({lora.rank_of(path) for path in modules})
    low, high = _RANKS
    words = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    if ranks[0] < low:
        said = f"{words}: below {low} an adapter may have too little room for what is new."
    elif ranks[-1] > high:
        said = f"{words}: above {high} costs more and seldom learns more; rsLoRA's scale is for such ranks."
    else:
        return Check("rank", "Rank", GOOD, f"{words}, within {low} to {high}.")
    return Check("rank", "Rank", MIND, said)


def _alpha(modules: Sequence[str], lora: LoraConfig, kind: AdapterKind) -> Check:
    """Of each layer, what its scale is; whether alpha counts is seen by changing it."""
    label = "Alpha"
    one, two = (replace(lora, alpha=alpha, alpha_pattern="") for alpha in (1.0, 2.0))
    if kind.scale(one, modules[0]) == kind.scale(two, modules[0]):
        return Check("alpha", label, GOOD, f"{kind.label} has none.")
    once = replace(lora, use_rslora=False)
    ratios = sorted({once.scaling_of(path) for path in modules})
    low, high = _ALPHAS
    words = f"{ratios[0]:g}" if len(ratios) == 1 else f"{ratios[0]:g} to {ratios[-1]:g}"
    said = f"alpha is {words} times the rank"
    if lora.use_rslora:
        said += f", scaled by alpha / √rank = {lora.scaling_of(modules[0]):.3g}"
    if low <= ratios[0] and ratios[-1] <= high:
        return Check("alpha", label, GOOD, f"{said}, within once to twice.")
    return Check("alpha", label, MIND, f"{said}; once to twice is usual, and the learning rate suits that.")


def _starts_at_zero(change: float | None) -> Check:
    label = "ΔW is 0 at the start"
    if change is None:
        said = "Tested on the device when the run is prepared, before its first step."
        return Check("start", label, OPEN, said)
    if change == 0:
        return Check("start", label, GOOD, "Tested on the device: nothing was added to any layer's output.")
    said = f"Tested on the device: up to {change:.2g} was added to a layer's output, by rounding."
    return Check("start", label, MIND, said)


def started(checks: Sequence[Check], change: float) -> list[Check]:
    """The list with what was found when the run was prepared: the most that was added to an output."""
    return [_starts_at_zero(change) if one.name == "start" else one for one in checks]


def _pinned(around: Surroundings) -> Check:
    label, short = "Base pinned", around.fingerprint[:12]
    if not around.fingerprint:
        return Check("base-pinned", label, MIND, f"{around.base_name} has no fingerprint; add it again.")
    if around.untouched:
        return Check("base-pinned", label, GOOD, f"By its fingerprint {short}; its files are untouched.")
    said = (
        f"Its files were touched since the fingerprint {short} was taken, and are hashed anew at the start."
    )
    return Check("base-pinned", label, MIND, said)


def _leaves_as(kind: AdapterKind, plan: Estimate) -> Check:
    label, bytes_ = "Adapter or merge", plan.trainable_parameters * _FLOAT32
    size = f"{bytes_ / 1e6:,.1f} MB"
    if kind.whole:
        said = f"{size} of weights, exported merged; beside adapters they answer in a pass of their own."
        return Check("use", label, GOOD, said)
    if type(kind).low_rank is AdapterKind.low_rank and type(kind).merge_parts is AdapterKind.merge_parts:
        return Check("use", label, MIND, f"{size}, as an adapter alone: {kind.label} cannot be merged.")
    said = f"{size}, switched answer by answer beside others, or merged exactly at the end."
    return Check("use", label, GOOD, said)


def _rows(rows: int, rank: int) -> Check:
    label, each = "Rows for the rank", rows / rank
    said = f"{rows:,} training rows for rank {rank}, {each:.3g} for each rank"
    if each >= _ROWS_A_RANK:
        return Check("rows", label, GOOD, f"{said}.")
    suited = max(1, rows // _ROWS_A_RANK)
    return Check(
        "rows",
        label,
        MIND,
        f"{said}: below {_ROWS_A_RANK} it may learn them by heart; take rank {suited}, or more rows.",
    )
