"""Who sits where: the runs of a group, the slots of the bank that holds their factors, and who may join."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from core.base_model.load import ResidentBase
from core.base_model.quantisation import LABELS
from core.errors import CannotShare
from core.lora.adapter import AdapterWeights
from core.lora.bank import AdapterBank
from core.lora.side_by_side import SideBySideBank, TrainedBank
from core.lora.whole import WholeBank
from core.train.group_objective import GroupObjective
from core.train.run import TrainingRun
from core.train.run_state import RunState

Seat = tuple[str, frozenset[str], frozenset[str]]
"""Runs with the same are computed in one way: their kind, what of it stays frozen, and the names of whole
parameters of their own."""


class Seating:
    """The runs under way and the bank they are trained in, one slot each."""

    def __init__(self, base: ResidentBase) -> None:
        self._base = base
        self._bank: TrainedBank | None = None
        self._ranks: dict[Seat, dict[str, int]] = {}  # of each seat's stacks, by module path
        self._heads: dict[Seat, dict[str, tuple[int, ...]]] = {}  # of each seat's whole parameters
        self.slots: list[TrainingRun | None] = []
        """Who holds which slot; None where a run has ended."""

    @property
    def bank(self) -> TrainedBank:
        """The factors that are being trained."""
        assert self._bank is not None
        return self._bank

    @property
    def runs(self) -> list[TrainingRun]:
        """The runs under way, by slot."""
        return [run for run in self.slots if run is not None]

    def run(self, key: Hashable) -> TrainingRun:
        """The run under way that is called `key`."""
        return next(run for run in self.runs if run.key == key)

    def adapter(self, key: Hashable) -> AdapterWeights:
        """The factors of a run as they are now."""
        run = self.run(key)
        return run.adapter(*self.bank.place(self.slots.index(run)))

    def state(self, key: Hashable) -> RunState | None:
        """Where a run stands after its last finished step; None before the first."""
        run = self.run(key)
        return run.state(*self.bank.place(self.slots.index(run))) if run.done else None

    @property
    def goal(self) -> GroupObjective:
        """What the runs minimise, with the options of each. They have one objective, see require_fit()."""
        return GroupObjective(self.runs[0].data.objective, [run.objective_options for run in self.runs])

    def leave(self, run: TrainingRun) -> None:
        """A run has ended; its slot stays empty until the bank is built anew."""
        self.slots[self.slots.index(run)] = None

    @property
    def has_shrunk(self) -> bool:
        """Whether enough runs have ended for a smaller batch to pay; compiled and captured work is not redone
        for one.
        """
        ended = self.slots.count(None)
        fixed = self._base.device.type == "cuda"
        return ended > 0 and (ended * 2 >= len(self.slots) if fixed else True) and bool(self.runs)

    def seat(self, joining: Sequence[TrainingRun]) -> list[int | None]:
        """Build the bank anew for the runs that stay and those that join, those of one kind beside each
        other.

        Returns for each new slot the one that its run had before, None for those that join.
        """
        old, before = self._bank, {run: slot for slot, run in enumerate(self.slots) if run is not None}
        seats = _by_seat([*before, *joining])
        banks = [self._new_bank(seat, members) for seat, members in seats.items()]
        self._bank = banks[0] if len(banks) == 1 else SideBySideBank(banks)
        order = [run for members in seats.values() for run in members]
        for slot, run in enumerate(order):
            place = self._bank.place(slot)
            if run not in before:
                run.start(*place)
            elif old is not None:
                run.move(*old.place(before[run]), *place)
        self.slots = list(order)
        return [before.get(run) for run in order]

    def _new_bank(self, seat: Seat, members: Sequence[TrainingRun]) -> AdapterBank:
        if members[0].kind.whole:
            (run,) = members
            return WholeBank(run.model, self._base.layers, run.head_shapes, trainable=True)
        ranks = self._ranks[seat] = self._laid_out(members, self._ranks.get(seat, {}))
        return AdapterBank(
            self._base.layers,
            list(ranks),
            slots=len(members),
            rank=ranks,
            kind=members[0].kind,
            dropout=[run.lora.dropout for run in members],
            trainable=True,
            frozen=members[0].frozen,
            head=self._head_shapes(seat, members),
            wholes=self._base.wholes if members[0].labels is None else None,
        )

    def _head_shapes(self, seat: Seat, members: Sequence[TrainingRun]) -> dict[str, tuple[int, ...]]:
        """The largest that a member has of each whole parameter, and never smaller than before, as with the
        ranks.
        """
        found = self._heads.setdefault(seat, {})
        for name, shape in (pair for run in members for pair in run.head_shapes.items()):
            before = found.get(name, shape)
            found[name] = tuple(map(max, before, shape))
        return found

    def _laid_out(self, members: Sequence[TrainingRun], before: Mapping[str, int]) -> dict[str, int]:
        """Of each layer's stacks, by module path: the highest rank that a member has, and never lower than
        before, since a moment that the optimiser holds must find its place.
        """
        ranks: dict[str, int] = {}
        wholes = self._base.wholes
        for path in [*self._base.layers, wholes.embedding, *wholes.experts]:
            own = [run.ranks[path] for run in members if path in run.ranks]
            if own or path in before:
                ranks[path] = max([*own, before.get(path, 0)])
        return ranks


def _by_seat(runs: Sequence[TrainingRun]) -> dict[Seat, list[TrainingRun]]:
    """Those of one seat together, in the order in which they came."""
    found: dict[Seat, list[TrainingRun]] = {}
    for run in runs:
        found.setdefault((run.kind.name, run.frozen, frozenset(run.head_shapes)), []).append(run)
    return found


def require_fit(run: TrainingRun, others: Sequence[TrainingRun]) -> None:
    """Raise CannotShare unless `run` has in common with `others` what the runs of one batch must."""
    if others and (run.kind.whole or others[0].kind.whole):
        raise CannotShare(
            "Full fine-tuning computes with weights of its own, so it shares no pass over the base's with "
            "others. Train it by itself."
        )
    if others and (wanted := _commons(others[0])) != (found := _commons(run)):
        raise CannotShare(
            "Runs that train together need the same block length, micro-batch size, packing, objective and "
            "quantisation of the base; "
            f"this one has {found}, the others {wanted}. Train it by itself."
        )


def _commons(run: TrainingRun) -> str:
    packing = "packed" if run.data.packed else "not packed"
    return (
        f"{run.data.rows.max_length} tokens, {run.train.micro_batch_size} rows, {packing}, "
        f"{run.data.objective.label}, base in {LABELS[run.train.quantisation]}"
    )
