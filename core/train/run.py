"""One training run inside a group: its data, schedule and optimiser, and where it stands. No model in it."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from core.base_model.load import ResidentBase
from core.data.labelled_rows import LabelledRows
from core.data.tokens import TokenRows
from core.errors import TrainingDiverged
from core.events import EvalDone, Prepared, StepDone, TrainingDone
from core.lora.adapter import AdapterWeights
from core.lora.bank import AdapterBank
from core.lora.blocks import block_mask, keep_blocks
from core.lora.dropout import run_key
from core.lora.expert_shapes import experts_among
from core.lora.fused import fused_parts
from core.lora.kinds import ADAPTER_KINDS
from core.lora.layer import LoraLinear
from core.lora.on_top import factors_below, learning
from core.lora.scaling import alpha_of
from core.lora.targets import (
    bytes_beside,
    select_targets,
    trainable_parameter_count,
    training_bytes,
    whole_bytes,
)
from core.lora.whole import base_numbers, parameter_places
from core.lora.whole_names import chosen_parameters
from core.lora.wholes import Shapes, require_no_wholes
from core.lora.wrapping import text_prefixes
from core.train.batches import MicroBatch, RunData, Step
from core.train.changes import Change, ChangingConfig
from core.train.group_objective import figures_width, metric_means
from core.train.label_report import metrics_and_report
from core.train.run_optimiser import MOMENTS, RunOptimiser
from core.train.run_state import Position, RunState
from core.train.schedule import rate_factor, warmup_steps
from core.train.step_count import planned_steps, steps_between_evaluations, steps_per_epoch
from core.train.training_options import TrainingOptions
from core.train.way_options import require_way

_RATE_WINDOW = 20  # steps over which speed and time left are averaged


@dataclass(frozen=True)
class RunRequest:
    """What a run is made of. `key` names it in the group's events."""

    key: Hashable
    rows: TokenRows
    options: TrainingOptions
    resume: tuple[AdapterWeights, RunState] | None = None
    """Where to go on from: the factors and the rest of the state."""
    changes: Sequence[Change] = ()
    """What was changed while it ran before."""
    trial: Sequence[Step] = ()
    """Steps to do in place of its own, to find out what the run will take; evaluated after the last."""
    below: AdapterWeights | None = None
    """What it learns on top of; of no account where it goes on, since its factors hold that one's."""


class TrainingRun:
    """A run's own state. What it learns depends on nothing that other runs of its group do."""

    def __init__(self, base: ResidentBase, request: RunRequest) -> None:
        """Raises InvalidConfig or InvalidData."""
        self.key, self.lora, self.train = request.key, request.options.lora, request.options.train
        self.kind = ADAPTER_KINDS.get(self.lora.kind)
        self._base = base
        self._shapes, self._own = self._targeted(request.options)
        fresh = request.below if request.resume is None else None
        self._below = factors_below(fresh, self._shapes) if fresh is not None else {}
        self._below_ranks = self._ranks_below(request)
        self.targets = [path for path in self._shapes if path in self._own or path in self._below_ranks]
        own = {path: self.lora.rank_of(path) for path in self._own}
        self.ranks = {path: own.get(path, 0) + self._below_ranks.get(path, 0) for path in self.targets}
        self.kind_options, self.objective_options = request.options.kind, request.options.objective
        self.frozen = self.kind.frozen(self.kind_options)
        self._parts = fused_parts(
            base.config, {path: self._shapes[path] for path in self._own}, self.lora.parts
        )
        self._learning = self._masks(own)
        self.parameters = trainable_parameter_count(
            self._shapes, self._own, self.lora, self.kind_options, self._parts
        )
        """Numbers that it trains."""
        require_way(base.way.name, base.name, self.train)
        self.data = RunData(request.rows, self.train, may_pack=base.way.quick)
        self._labelled = request.rows if isinstance(request.rows, LabelledRows) else None
        self.labels = self._labelled.labels if self._labelled is not None else None
        """What it is to tell, if it classifies."""
        self._whole = self._base_numbers() if self.kind.whole else {}
        self.head_shapes = self._whole_shapes()
        """Of its whole parameters by path: a classifier's head, and what of the base it has of its own."""
        self.parameters += sum(map(math.prod, self.head_shapes.values()))
        self._config = ChangingConfig(self.train, request.changes)
        self._resume = request.resume
        at = request.resume[1].position if request.resume else Position(0, 0, None, None, -1)
        self.done = at.steps
        self.stopping = False
        self.train_loss, self.validation_loss = at.train_loss, at.validation_loss
        self.evaluated_at = at.evaluated_at
        self.micro_batches = at.micro_batches  # taken so far, also of unfinished steps
        self._whole_micro_batches = at.micro_batches  # those of finished steps
        self.tokens, self.seconds = at.tokens, at.seconds
        self._trial = bool(request.trial)
        self._steps = itertools.islice(request.trial or self.data.steps(), self.done, None)
        self._step: Step | None = None
        self._place = 0  # in the step's micro-batches
        self._optimiser: RunOptimiser | None = None
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RATE_WINDOW)  # (seconds, tokens)

    def _targeted(self, options: TrainingOptions) -> tuple[Mapping[str, tuple[int, int]], list[str]]:
        """(in, out) of what could have factors, and the paths of what has."""
        if self.kind.whole:
            return self._base.layer_shapes, []
        shapes = self._base.wholes.targetable(self._base.layer_shapes, self.lora, options.kind)
        return shapes, select_targets(list(shapes), self.lora, self._base.head, experts_among(shapes))

    def _ranks_below(self, request: RunRequest) -> dict[str, int]:
        """Of what it learns on top of, by module path: what the factors hold beside its own."""
        if request.resume is None or not self.lora.on_top_of:
            return {path: one.rank for path, one in self._below.items()}
        held = {path: self.kind.rank(layer) for path, layer in request.resume[0].layers.items()}
        own = {path: self.lora.rank_of(path) for path in self._own}
        return {path: rank - own.get(path, 0) for path, rank in held.items() if rank > own.get(path, 0)}

    def _masks(self, own: Mapping[str, int]) -> dict[str, dict[str, torch.Tensor]]:
        """Where the factors learn, by module path, of layers on which they do not everywhere."""
        blocks = {
            path: block_mask(parts, self._shapes[path][1], own[path]) for path, parts in self._parts.items()
        }
        found = {path: {"B": mask} for path, mask in blocks.items()}
        for path, below in self._below_ranks.items():
            found[path] = learning(self._shapes[path], own.get(path, 0), below, blocks.get(path))
        device = self._base.device
        return {path: {name: one.to(device) for name, one in masks.items()} for path, masks in found.items()}

    def _whole_shapes(self) -> Shapes:
        if self.kind.whole:
            head = self._base.classifier.shapes(len(self.labels)) if self.labels else {}
            return {**head, **{path: tuple(one.shape) for path, one in self._whole.items()}}
        if self.labels:
            require_no_wholes(self.lora, self.kind_options)
            return self._base.classifier.shapes(len(self.labels))
        biased = self.kind.biases_on_b(self.kind_options)
        outputs = {path: self._base.layers[path].out_features for path in self.targets} if biased else {}
        return self._base.wholes.trained(self.lora, self.targets, outputs)

    # Its place in a bank.

    def start(self, bank: AdapterBank, slot: int) -> None:
        """Take `slot` with fresh factors, or with those that the run goes on from."""
        if self._resume is None:
            head = {**self._first_head(), **self._whole}
            bank.initialise(slot, self.lora, self.kind_options, self._own, self.train.seed, head, self._below)
            self._below = {}  # the bank holds it
        else:
            bank.load(slot, self._as_it_was(*self._resume))
        parameters, plus = bank.parameters_of(slot), self.train.loraplus_lr_ratio
        ratios = {name: self.kind.rate_ratio(name, plus) for name in parameters}
        self._optimiser = RunOptimiser(parameters, ratios, {name: self._decay(name) for name in parameters})
        if self._resume is not None:
            self._restore_moments(bank, self._resume[1])
            self._resume = None  # it holds as much memory as the optimiser
        elif self.kind.whole:
            # as large as the weights, and to be there before it is looked how much activations may take
            self._restore_moments(bank, RunState(Position(0, 0, None, None, -1), {}, {}))

    @property
    def model(self) -> torch.nn.Module:
        """The one that computes."""
        return self._base.classifier.model if self.labels else self._base.model

    def _base_numbers(self) -> Mapping[str, torch.Tensor]:
        """The base's own of the parameters that are trained, by path. Raises InvalidConfig."""
        text = text_prefixes(self._base.model)
        places = [path for path in parameter_places(self.model) if path.startswith(text)]
        return base_numbers(self.model, chosen_parameters(places, self.lora))

    def _decay(self, name: str) -> float:
        """Of whole parameters, biases and what scales a norm are not drawn to zero, as in transformers'
        Trainer: to a scale of 1 that is no decay but another model.
        """
        whole = self.head_shapes.get(name)
        spared = whole is not None and (len(whole) < 2 or name.endswith("bias"))
        return 0.0 if spared else self.train.weight_decay

    def _first_head(self) -> Mapping[str, torch.Tensor]:
        """The base's own numbers; of a classifier the head that its files hold, where it tells the same
        labels, else a new one.
        """
        if self._labelled is None:
            names = [name for name in self.head_shapes if name not in self._whole]
            return {name: self._base.layers.stored(name).detach() for name in names}
        classifier = self._base.classifier
        if self._labelled.goes_on:
            return classifier.stored
        return classifier.fresh(len(self._labelled.labels), self.train.seed)

    def _as_it_was(self, adapter: AdapterWeights, state: RunState) -> AdapterWeights:
        """What a checkpoint holds, as this kind trains it."""
        if not self.kind.state_names:
            return adapter
        layers = {
            path: self.kind.layer(state.beside[path], self.kind.scale(self.lora, path))
            for path in self.targets
        }
        return replace(adapter, layers=layers, kind=self.kind.name)

    def _restore_moments(self, bank: AdapterBank, state: RunState) -> None:
        assert self._optimiser is not None
        moments = bank.flat_of(state.mean), bank.flat_of(state.square)
        self._optimiser.restore(*moments, state.position.steps)

    def state(self, bank: AdapterBank, slot: int) -> RunState:
        """Where the run stands after its last finished step; what was begun of the next is not part of it."""
        assert self._optimiser is not None
        flat = [self._optimiser.moment(which) for which in MOMENTS]
        mean, square = (bank.by_layer(one, self.ranks, slot) for one in flat)
        at = Position(
            self.done,
            self._whole_micro_batches,
            self.train_loss,
            self.validation_loss,
            self.evaluated_at,
            self.tokens,
            self.seconds,
        )
        return RunState(at, mean, square, self._beside(bank, slot))

    def _beside(self, bank: AdapterBank, slot: int) -> dict[str, dict[str, torch.Tensor]]:
        """What the adapter does not hold and going on needs, see AdapterKind.state_names."""
        names = self.kind.state_names
        if not names:
            return {}
        return {
            path: {name: tensor for name, tensor in layer.tensors.items() if name in names}
            for path, layer in bank.export(slot, self.ranks).items()
        }

    def move(self, old: AdapterBank, old_slot: int, new: AdapterBank, slot: int) -> None:
        """Go on in another bank: factors, gradients so far and the optimiser's moments, laid out as the new
        bank is.
        """
        assert self._optimiser is not None
        new.take(slot, old, old_slot)
        moments = {which: new.laid_out_like(old, self._optimiser.moment(which)) for which in MOMENTS}
        self._optimiser.move(new.parameters_of(slot), moments)

    def adapter(self, bank: AdapterBank, slot: int) -> AdapterWeights:
        """The factors as they are now."""
        own = bank.export_head(slot)
        whole = {path: own.pop(path) for path in self._whole}
        rank, alpha = self._stated()
        embedding = self._base.wholes.embedding
        adapter = AdapterWeights(
            rank=rank,
            alpha=alpha,
            dropout=self.lora.dropout,
            layers=bank.export(slot, self.ranks),
            base_fingerprint=self._base.fingerprint,
            base_name=self._base.name,
            fan_in_fan_out=any(
                layer.transposed
                for path in self.targets
                if path != embedding and isinstance(layer := self._base.layers[path], LoraLinear)
            ),
            embedding=embedding if embedding in self.targets else "",
            use_rslora=self.lora.use_rslora,
            kind=self.kind.name,
            head=own if whole else self._base.wholes.with_tied(own),
            whole=whole,
            labels=self.labels,
        )
        return self.kind.finished(adapter)

    def _stated(self) -> tuple[int, float]:
        """Rank and alpha that its configuration states: of parts of fused layers those of all parts together,
        on top of another those of both, where all layers have the same.
        """
        if self.kind.whole:
            return 0, 0.0
        ranks = set(self.ranks.values())
        if not (self._parts or self._below_ranks) or len(ranks) > 1:
            return self.lora.rank, self.lora.alpha
        (rank,) = ranks
        return rank, alpha_of(self.kind.scale(self.lora, self._own[0]), rank, self.lora.use_rslora)

    # Its micro-batches.

    def next_micro_batch(self) -> MicroBatch:
        """The part of the next batch that is this run's."""
        if self._step is None:
            self._step, self._place = next(self._steps), 0
        self._place += 1
        self.micro_batches += 1
        return self._step.micro_batches[self._place - 1]

    def earlier_micro_batch(self, back: int) -> MicroBatch | None:
        """The one taken `back` micro-batches ago (0: the last one), if it is of the step at hand."""
        return (
            self._step.micro_batches[self._place - 1 - back]
            if self._step is not None and back < self._place
            else None
        )

    def dropout_key(self, back: int = 0) -> int:
        """Keys the dropout of the micro-batch taken `back` micro-batches ago."""
        return run_key(self.train.seed, self.micro_batches - back)

    @property
    def place(self) -> int:
        """Micro-batches taken of the step at hand."""
        return self._place if self._step is not None else 0

    @property
    def step_is_complete(self) -> bool:
        """Whether all micro-batches of the step at hand have been taken."""
        return self._step is not None and self._place == len(self._step.micro_batches)

    def before_step(self, bank: AdapterBank, slot: int) -> None:
        """Act on the sum of gradients before it is clipped and the optimiser steps."""
        if self._learning:
            keep_blocks(bank, slot, self._learning)
        self.kind.before_step(bank, slot, self.kind_options)

    def update(self, divisor: torch.Tensor, missing: torch.Tensor) -> tuple[float, Step]:
        """Step the optimiser, see RunOptimiser.step(), without waiting for the device; rate and step."""
        assert self._optimiser is not None
        assert self._step is not None
        rate = self._rate(self.done)
        step, self._step = self._step, None
        self.done += 1
        self._optimiser.step(rate, divisor, missing)
        self._whole_micro_batches = self.micro_batches
        return rate, step

    def _rate(self, index: int) -> float:
        config, total = self._config.at(index), self._planned(index)
        warmup = warmup_steps(total, config.warmup_ratio)
        # The first step of a warm-up would have rate 0 and learn nothing, so the ramp is shifted by one step.
        at = index + 1 if index < warmup else index
        return config.learning_rate * rate_factor(config.lr_scheduler, at, total, warmup)

    # Changes on the way.

    def change(self, **values: object) -> Change:
        """Change learning_rate, epochs or max_steps from the next step on. Raises InvalidConfig."""
        return self._config.change(self.done, values)

    def announce(self, **values: object) -> Change:
        """As change(), which is to be called with the same before the next step. Raises InvalidConfig."""
        return self._config.announce(self.done, values)

    @property
    def total_steps(self) -> int:
        """Optimiser steps that are planned as things stand, all changes counted."""
        return planned_steps(len(self.data.blocks), self._config.last)

    @property
    def planned_then(self) -> int:
        """Optimiser steps that were planned when the last one was done: a change counts from the step after
        it.
        """
        return self._planned(self.done - 1)

    def _planned(self, index: int) -> int:
        return planned_steps(len(self.data.blocks), self._config.at(index))

    # What it tells.

    @property
    def needs_a_turn(self) -> bool:
        """Whether it cannot share a batch with others, whatever they are."""
        return self.kind.whole or (self.labels is not None and not self._base.classifier.takes_several)

    @property
    def state_bytes(self) -> float:
        """Memory that its adapter takes while it is trained."""
        width = self._base.dtype.itemsize
        factors = training_bytes(self._shapes, self._own, self.lora, self.kind_options, width)
        below = sum(rank * sum(self._shapes[path]) for path, rank in self._below_ranks.items())
        numbers = below + sum(map(math.prod, self.head_shapes.values()))
        return factors + (whole_bytes if self.kind.whole else bytes_beside)(numbers, width)

    @property
    def ended(self) -> bool:
        """Whether it has done all its steps or was asked to stop."""
        return self.stopping or self.done >= self._planned(self.done)  # as the plan is now

    @property
    def settled(self) -> bool:
        """Whether the evaluation that is due after the steps done so far has been made, if one is."""
        at_start = self.done == 0 and not self._trial
        due = self._validates and (at_start or self.evaluates())
        return not due or self.evaluated_at == self.done

    def evaluates(self) -> bool:
        """Whether an evaluation is due after the steps done so far."""
        every = steps_between_evaluations(self.planned_then, self.train)
        is_last = self.done >= min(self.planned_then, self._planned(self.done))
        return self._validates and (self.done % every == 0 or is_last)

    @property
    def _validates(self) -> bool:
        return bool(self.data.validation_blocks)

    def validation(self) -> list[MicroBatch]:
        """The validation rows in micro-batches; a few of them in a trial."""
        return self.data.trial_validation() if self._trial else self.data.validation()

    def _start_change(self, bank: AdapterBank, slot: int) -> float:
        """What it adds to what is there, see AdapterBank.change(); on top of another its own part of ΔW."""
        if not self._below_ranks:
            return bank.change(slot)
        own = {path: self.lora.rank_of(path) for path in self._own}
        parts = bank.export(slot, own).values()
        return max(float((one.scale * one.tensors["B"] @ one.tensors["A"]).abs().max()) for one in parts)

    def prepared(self, bank: AdapterBank, slot: int, *, tries: bool = True) -> Prepared:
        """The event that opens the run, which has its place. tries: what it adds to the base at the start."""
        return Prepared(
            train_rows=self.data.train_rows,
            validation_rows=self.data.validation_rows,
            train_sequences=self.data.train_sequences
            if self.data.train_sequences != self.data.train_rows
            else 0,
            truncated_rows=self.data.rows.truncated,
            skipped_rows=self.data.rows.skipped,
            total_steps=self.total_steps,
            trainable_parameters=self.parameters,
            max_length=self.data.rows.max_length,
            dtype=str(self._base.dtype).removeprefix("torch."),
            quantisation=self._base.quantisation,
            blocks=len(self.data.blocks) if self.data.packed else 0,
            start_change=None if self.done or not tries else self._start_change(bank, slot),
        )

    def step_done(
        self,
        number: int,
        step: Step,
        rate: float,
        figures: Sequence[float],
        norm: float,
        seconds: float,
        memory: int,
    ) -> StepDone:
        """The event of an optimiser step, once its figures are known (see core/train/group_objective.py).

        Raises TrainingDiverged if they are not finite.
        """
        loss = figures[0] / step.units
        if "nan" in self.train.stopping_alerts and not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingDiverged(
                f"At step {number} the loss is {loss:.4g} and the gradient norm {norm:.4g}: training "
                "has diverged. "
                "Lower the learning rate, or raise the warm-up."
            )
        self.train_loss = loss
        self.tokens, self.seconds = self.tokens + step.tokens, self.seconds + seconds
        self._recent.append((seconds, step.tokens))
        spent = sum(one for one, _ in self._recent) or 1e-9
        return StepDone(
            step=number,
            epoch=number / steps_per_epoch(len(self.data.blocks), self.train),
            loss=loss,
            learning_rate=rate,
            grad_norm=norm,
            tokens=step.tokens,
            tokens_per_second=sum(count for _, count in self._recent) / spent,
            memory_bytes=memory,
            seconds_left=max(0, self.total_steps - number) * spent / len(self._recent),
            total_tokens=self.tokens,
            total_seconds=self.seconds,
            metrics=metric_means(self.data.objective, figures),
        )

    def evaluation_done(self, figures: Sequence[float]) -> EvalDone:
        """The event of a pass over the validation rows, with the sums of its figures."""
        self.validation_loss, self.evaluated_at = figures[0] / self.data.validation_units, self.done
        own = figures[: figures_width(self.data.objective)]
        if self.labels is None:
            return EvalDone(self.done, self.validation_loss, metric_means(self.data.objective, own))
        found, report = metrics_and_report(
            self.labels, (own[1], self.data.validation_units), figures[len(own) :]
        )
        return EvalDone(self.done, self.validation_loss, found, report)

    def training_done(self) -> TrainingDone:
        """The event that closes the run."""
        return TrainingDone(self.done, self.stopping, self.train_loss, self.validation_loss)
