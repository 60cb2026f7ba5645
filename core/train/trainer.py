"""Training one adapter on the resident base, as a generator of events.

The engine calls next() for each micro-batch and may decode tokens for a chat in between; nothing of a step stays
switched on in the base across a yield.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence

import psutil
import torch

from core.base_model.load import ResidentBase
from core.config import LoraConfig, TrainConfig
from core.data.formats import Example
from core.data.render import Rendered, prepare
from core.errors import InvalidData, TrainingDiverged
from core.events import EvalDone, MicroBatchDone, Prepared, StepDone, TrainingDone
from core.lora.adapter import AdapterWeights
from core.lora.inject import AdapterBank
from core.lora.targets import select_targets, trainable_parameter_count
from core.train.batches import Step, collate, plan_steps, split_rows
from core.train.loss import summed_loss, supervised_tokens
from core.train.plan import planned_steps, steps_per_epoch
from core.train.schedule import rate_factor, warmup_steps

Event = Prepared | MicroBatchDone | StepDone | EvalDone | TrainingDone
_RATE_WINDOW = 20  # steps over which speed and time left are averaged


class Trainer:
    """One training run. Iterate over run(); call stop() to end after the current micro-batch and keep what is learnt."""

    def __init__(self, base: ResidentBase, examples: Iterator[Example], lora: LoraConfig, train: TrainConfig) -> None:
        """Render the data and start the adapter. Raises InvalidConfig or InvalidData."""
        self.base, self.lora, self.train = base, lora, train
        self.targets = select_targets(list(base.layers), lora.target_names, base.head)
        self.max_length = min(train.max_length, base.context_length)
        self.data = prepare(examples, base.tokenizer, self.max_length)
        self.split = split_rows(self.data.rows, train.validation_share, train.seed)
        if not self.split.train:
            raise InvalidData("No row is left to train on after the validation rows; lower validation_share.")
        torch.manual_seed(train.seed)  # dropout
        self.bank = AdapterBank(base.layers, self.targets, slots=1, rank=lora.rank, dropout=lora.dropout)
        self.bank.initialise(0, lora, train.seed)
        parameters = self.bank.trainable_parameters()
        self.optimiser = torch.optim.AdamW(parameters, lr=train.learning_rate, weight_decay=train.weight_decay)
        self.total_steps = planned_steps(len(self.split.train), train)
        self.finished = False
        self._stopping = False
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RATE_WINDOW)  # (seconds, tokens)
        self._last_train_loss: float | None = None
        self._last_validation_loss: float | None = None

    def stop(self) -> None:
        """End after the current micro-batch; an unfinished step is thrown away."""
        self._stopping = True

    def adapter(self) -> AdapterWeights:
        """The factors as they are now."""
        return AdapterWeights(
            rank=self.lora.rank, alpha=self.lora.alpha, dropout=self.lora.dropout,
            layers=self.bank.export(0, self.lora.rank),
            base_fingerprint=self.base.fingerprint, base_name=self.base.name,
            fan_in_fan_out=any(self.base.layers[path].transposed for path in self.targets),
        )  # fmt: skip

    def run(self) -> Iterator[Event]:
        """Train to the end, or until stop(). Raises TrainingDiverged if the loss or a gradient is no longer finite."""
        try:
            yield from self._run()
        finally:
            self.finished = True

    def _run(self) -> Iterator[Event]:
        yield self._prepared()
        yield from self._evaluate(0)
        every = self.train.eval_steps or max(1, self.total_steps // 10)
        steps = plan_steps(self.split.train, self.train)
        done = 0
        while done < self.total_steps and not self._stopping:
            event = yield from self._step(done, next(steps))
            if event is None:
                break
            done += 1
            yield event
            if done % every == 0 or done == self.total_steps:
                yield from self._evaluate(done)
        yield TrainingDone(done, self._stopping, self._last_train_loss, self._last_validation_loss)

    def _prepared(self) -> Prepared:
        shapes = self.base.layer_shapes
        return Prepared(
            train_rows=len(self.split.train), validation_rows=len(self.split.validation),
            truncated_rows=self.data.truncated, skipped_rows=self.data.skipped, total_steps=self.total_steps,
            trainable_parameters=trainable_parameter_count(shapes, self.targets, self.lora.rank),
            max_length=self.max_length,
            dtype=str(self.base.dtype).removeprefix("torch."),
        )  # fmt: skip

    def _step(self, index: int, step: Step) -> Generator[MicroBatchDone, None, StepDone | None]:
        """One optimiser step over its micro-batches. Its value is the StepDone, or None if stopped in between."""
        busy, loss_sum = 0.0, 0.0
        supervised = sum(row.supervised for rows in step for row in rows)
        tokens = sum(len(row.ids) for rows in step for row in rows)
        self.optimiser.zero_grad(set_to_none=True)
        for rows in step:
            if self._stopping:
                return None
            start = time.perf_counter()
            loss_sum += self._backward(rows, supervised)
            busy += time.perf_counter() - start
            yield MicroBatchDone()
        start = time.perf_counter()
        rate, norm = self._update(index, loss_sum / supervised)
        self._recent.append((busy + time.perf_counter() - start, tokens))
        self._last_train_loss = loss_sum / supervised
        return self._step_done(index + 1, self._last_train_loss, rate, norm, tokens)

    def _backward(self, rows: Sequence[Rendered], supervised: int) -> float:
        """Forward and backward of one micro-batch; gradients of the step's mean. Returns the summed loss."""
        batch = collate(rows, self._pad_id, self.base.device)
        self.bank.train()
        with self.bank.use():
            loss = summed_loss(self.base.model, batch)
            (loss / supervised).backward()
        return float(loss.detach())

    def _update(self, index: int, mean_loss: float) -> tuple[float, float]:
        """Clip, set the rate, step the optimiser. Returns the rate and the gradient norm before clipping."""
        limit = self.train.max_grad_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.bank.trainable_parameters(), limit))
        if not (math.isfinite(mean_loss) and math.isfinite(norm)):
            raise TrainingDiverged(
                f"At step {index + 1} the loss is {mean_loss:.4g} and the gradient norm {norm:.4g}: training has diverged. "
                "Lower the learning rate or raise the warm-up."
            )
        warmup = warmup_steps(self.total_steps, self.train.warmup_ratio)
        # The first step of a warm-up would have rate 0 and learn nothing, so the ramp is shifted by one step.
        at = index + 1 if index < warmup else index
        rate = self.train.learning_rate * rate_factor(self.train.lr_scheduler, at, self.total_steps, warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        return rate, norm

    def _step_done(self, step: int, loss: float, rate: float, norm: float, tokens: int) -> StepDone:
        seconds = sum(one for one, _ in self._recent)
        return StepDone(
            step=step, epoch=step / steps_per_epoch(len(self.split.train), self.train), loss=loss,
            learning_rate=rate, grad_norm=norm, tokens=tokens,
            tokens_per_second=sum(count for _, count in self._recent) / seconds, memory_bytes=memory_in_use(self.base.device),
            seconds_left=(self.total_steps - step) * seconds / len(self._recent),
        )  # fmt: skip

    def _evaluate(self, step: int) -> Iterator[MicroBatchDone | EvalDone]:
        """Mean loss over the validation rows, one micro-batch at a time."""
        if not self.split.validation:
            return
        total, count = 0.0, 0
        size = self.train.micro_batch_size
        ordered = sorted(self.split.validation, key=lambda row: len(row.ids))
        for start in range(0, len(ordered), size):
            if self._stopping:
                return
            batch = collate(ordered[start : start + size], self._pad_id, self.base.device)
            self.bank.eval()
            with torch.no_grad(), self.bank.use():
                total += float(summed_loss(self.base.model, batch))
            count += supervised_tokens(batch)
            yield MicroBatchDone()
        self._last_validation_loss = total / count
        yield EvalDone(step, total / count)

    @property
    def _pad_id(self) -> int:
        """Any id will do: padded positions are masked and carry no loss."""
        return int(self.base.tokenizer.pad_token_id or 0)


def memory_in_use(device: torch.device) -> int:
    """Peak bytes on an accelerator since the run began, or this process's resident bytes on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss)
