"""Who sits where: the runs of a group, the slots of the bank that holds their factors, and who may join."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from core.base_model.load import ResidentBase
from core.errors import CannotShare
from core.lora.adapter import AdapterWeights
from core.lora.bank import AdapterBank
from core.train.group_objective import GroupObjective
from core.train.run import TrainingRun
from core.train.run_state import RunState


class Seating:
    """The runs under way and the bank they are trained in, one slot each."""

    def __init__(self, base: ResidentBase) -> None:
        self._base = base
        self._bank: AdapterBank | None = None
        self.slots: list[TrainingRun | None] = []
        """Who holds which slot; None where a run has ended."""

    @property
    def bank(self) -> AdapterBank:
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
        return run.adapter(self.bank, self.slots.index(run))

    def state(self, key: Hashable) -> RunState | None:
        """Where a run stands after its last finished step; None before the first."""
        run = self.run(key)
        return run.state(self.bank, self.slots.index(run)) if run.done else None

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

    def seat(self, joining: Sequence[TrainingRun]) -> list[int]:
        """Build the bank anew for the runs that stay and those that join behind them.

        Returns the slots that those that stay had before, in their new order.
        """
        old = self._bank
        staying = [(slot, run) for slot, run in enumerate(self.slots) if run is not None]
        members = [*(run for _, run in staying), *joining]
        self._bank = self._new_bank(members)
        for slot, (old_slot, run) in enumerate(staying):
            assert old is not None
            run.move(old, old_slot, self._bank, slot)
        for slot, run in enumerate(joining, start=len(staying)):
            run.start(self._bank, slot)
        self.slots = list(members)
        return [slot for slot, _ in staying]

    def _new_bank(self, members: Sequence[TrainingRun]) -> AdapterBank:
        ranks = self._ranks(members)
        return AdapterBank(
            self._base.layers,
            list(ranks),
            slots=len(members),
            rank=ranks,
            kind=members[0].kind,
            dropout=[run.lora.dropout for run in members],
            trainable=True,
            head=self._head_shapes(members),
        )

    def _head_shapes(self, members: Sequence[TrainingRun]) -> dict[str, tuple[int, ...]]:
        """The largest that a member's head has of each parameter, and never smaller than before, as with the
        ranks.
        """
        found = dict(self._bank.head_shapes) if self._bank is not None else {}
        for name, shape in (pair for run in members for pair in run.head_shapes.items()):
            before = found.get(name, shape)
            found[name] = tuple(map(max, before, shape))
        return found

    def _ranks(self, members: Sequence[TrainingRun]) -> dict[str, int]:
        """Of each layer's stacks, by module path: the highest that a member has, and never lower than before,
        since a moment that the optimiser holds must find its place.
        """
        before = self._bank.ranks if self._bank is not None else {}
        ranks: dict[str, int] = {}
        for path in self._base.layers:
            own = [run.ranks[path] for run in members if path in run.ranks]
            if own or path in before:
                ranks[path] = max([*own, before.get(path, 0)])
        return ranks


def require_fit(run: TrainingRun, others: Sequence[TrainingRun]) -> None:
    """Raise CannotShare unless `run` has in common with `others` what the runs of one batch must."""
    if others and (wanted := _commons(others[0])) != (found := _commons(run)):
        raise CannotShare(
            f"Runs that train together need the same adapter kind, block length, micro-batch size, packing "
            "and objective; "
            f"this one has {found}, the others {wanted}. Train it by itself."
        )


def _commons(run: TrainingRun) -> str:
    packing = "packed" if run.data.packed else "not packed"
    return (
        f"{run.kind.label}, {run.data.rows.max_length} tokens, {run.train.micro_batch_size} rows, {packing}, "
        f"{run.data.objective.label}"
    )
