"""The engine: owns the one resident base model and gives its time to training and to chat."""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
import transformers

from core.adapter_slots import ADAPTER_SLOTS, AdapterSlots, require_lora_in_parts
from core.adapter_source import AdapterSource, require_same_base, weights_told
from core.base_model.held_bytes import held_bytes
from core.base_model.load import ResidentBase, best_device, best_dtype, load_base
from core.base_model.quantisation import FP8, LABELS, NF4, NONE, bitsandbytes_version
from core.base_model.source import BaseSource, ResidentKey, check_unchanged, resident_key
from core.data.chat_options import AS_THEY_ARE, ChatOptions
from core.data.formats import Message
from core.data.tool_calls import Tool
from core.echoes import Echo
from core.echoing import echo, known_ids
from core.errors import BaseTooLarge, WorkbenchError
from core.generate.config import GenerationConfig
from core.generate.decode import Decoder, RowRequest, room_to_answer
from core.generate.grammar import require_possible
from core.generate.labelling import Classified, classify
from core.generate.running import RunningBatch, rows_are_apart
from core.generate.scores import Scored
from core.generate.scoring import Speakers, answer_ids, score
from core.generate.several import SeveralDecoders
from core.generate.state_pool import StatePool
from core.lora.adapter import AdapterWeights
from core.lora.mixed_bank import loaded_bank
from core.lora.peft.files import load_adapter
from core.lora.whole import WholeBank, whole_bank
from core.train.accelerators import card_names
from core.train.group import TrainingGroup
from core.train.hardware import device_name, matmul_rate, memory_to_train
from core.train.memory import (
    memory_figures,
    ran_out_of_memory,
    require_full_precision,
    require_room_to_answer,
)
from core.train.preflight import Preflight, Trying, measure
from core.train.run import RunRequest
from core.train.share import ALL, Share
from core.train.trial import Save

_ANSWERS_SHARE = 0.25  # of the memory that this process can have, for the keys and values of answers


@dataclass(frozen=True)
class AnswerRequest:
    """One answer to generate: the conversation so far, with an adapter or the plain base."""

    messages: Sequence[Message]
    adapter: AdapterSource | None
    config: GenerationConfig
    text: str = ""
    """Plain text to go on with, in place of a conversation."""
    asked_at: float = field(default_factory=time.monotonic)
    """When it came to the engine's process, of time.monotonic()."""
    likeliest: int | None = None
    """How many tokens are told with each of the answer, with their log-probabilities; None tells none."""
    tools: Sequence[Tool] = ()
    """Those that the model is told of, in a conversation."""
    ids: Sequence[int] = ()
    """Token ids to go on with, in place of a conversation."""


class Engine:
    """One base model on one device. Not thread-safe: one thread trains and decodes in turn."""

    def __init__(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        self.device, self._dtype = device or best_device(), dtype
        self.base: ResidentBase | None = None
        self._slots: AdapterSlots | None = None
        self._group: TrainingGroup | None = None
        self._pool: StatePool | None = None
        self._batch: RunningBatch | None = None
        self._key: ResidentKey | None = None
        self._rate: float | None = None
        self._measuring = False
        self.cards = "1"
        """How many cards train now, in words of what may change the last digits."""
        self.held_back = False
        """Whether who asks has to wait, since the base is about to be held otherwise."""
        self._whole: dict[str, WholeBank] = {}  # models of which whole parameters are replaced, by digest
        self._classifiers: dict[str, AdapterWeights] = {}  # by digest, oldest use first
        self._decoders: dict[
            Decoder | SeveralDecoders, set[str]
        ] = {}  # with the digests of the adapters each is using

    def surroundings(self) -> dict[str, str | int]:
        """What has to be the same for the same work to give the same bits."""
        cuda = self.device.type == "cuda"
        quantised = self.base is not None and self.base.quantisation != NONE
        return {
            **({"bitsandbytes": bitsandbytes_version()} if quantised else {}),
            "cards": self.cards,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(self.device)
            if cuda
            else f"{self.device.type}, {platform.machine()}",
        }

    @property
    def device_name(self) -> str:
        """The device in words, for people."""
        return device_name(self.device)

    def free_memory(self) -> None:
        """Give what nothing holds any more back to the device, so that work that failed leaves nothing
        behind.
        """
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def weight_bytes(self) -> int:
        """Of the number format in which bases compute here."""
        return (self._dtype or best_dtype(self.device)).itemsize

    @property
    def operations_a_second(self) -> float:
        """Floating-point operations a second of this device in a large matrix product; measured once."""
        if self._rate is None:
            dtype = self.base.dtype if self.base else torch.float32
            self._rate = matmul_rate(self.device, dtype)
        return self._rate

    def load_base(self, source: BaseSource) -> ResidentBase:
        """Make `source` resident, unless it already is. Its files are checked against its fingerprint if
        touched.

        Raises WrongBase if the files are no longer those the fingerprint was taken from, InvalidModel.
        """
        check_unchanged(source)
        key = resident_key(source)
        if self.base is None or not key.computes_as(self._key):
            self._require_idle(source)
            self._let_go()  # of the old one first
            self.base = self._loaded(source)
        elif key != self._key:
            self.base = self.base.beside(source.folder, source.name, source.template)
        self._key = key
        return self.base

    def _let_go(self) -> None:
        """Of the base, and of what is on it."""
        self.base, self._key, self._slots, self._pool = None, None, None, None
        self._whole, self._batch = {}, None

    def _loaded(self, source: BaseSource) -> ResidentBase:
        """Raises BaseTooLarge, with figures, where the memory does not hold it."""
        try:
            told = {
                name: getattr(source, name) for name in ("fingerprint", "name", "template", "quantisation")
            }
            if source.parts == 1:
                return load_base(source.folder, device=self.device, dtype=self._dtype, **told)
            from core.base_model.sharded import load_sharded  # torch.distributed is for those who are several

            dtype = self._dtype or best_dtype(self.device)
            return load_sharded(source.folder, device=self.device, dtype=dtype, **told)
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            raise BaseTooLarge(self._too_large(source)) from error

    def _too_large(self, source: BaseSource) -> str:
        width = self.weight_bytes
        needed = held_bytes(source.folder, source.quantisation, width, source.parts) / 2**30
        what = "its weights take" if source.parts == 1 else f"a {source.parts}th of its layers takes"
        said = (
            f"{source.name} has no room in the memory: in {LABELS[source.quantisation]} {what} "
            f"{needed:.1f} GiB, and {memory_figures(self.device)}. Free memory, or choose a smaller base."
        )
        if source.quantisation != NF4:
            small = held_bytes(source.folder, NF4, width, source.parts) / 2**30
            said += f" In 4 bits (quantisation=nf4) they take about {small:.1f} GiB."
        count = len(card_names())
        if source.parts == 1 < count and source.quantisation != FP8:
            part = held_bytes(source.folder, source.quantisation, width, count) / 2**30
            said += (
                f" To train LoRA the {count} cards here can hold a part each (devices={count}, "
                f"sharding=fsdp): about {part:.1f} GiB."
            )
        return said

    def _base_to_answer(self, source: BaseSource) -> ResidentBase:
        """As load_base(). While work is under way on the same weights, as they are held for that: one model
        is in memory, and answers tell how it is held.
        """
        if self._key is not None and self._in_use() and resident_key(source).has_weights_of(self._key):
            source = replace(source, quantisation=self._key.quantisation, parts=self._key.parts)
        return self.load_base(source)

    def train(self, source: BaseSource, requests: Sequence[RunRequest], share: Share = ALL) -> TrainingGroup:
        """Runs to train together on `source`; iterate the group's run(). share: as TrainingGroup has it."""
        base = self.load_base(source)
        self._forget_whole(keep=self._digests_in_use())
        self._group = TrainingGroup(base, requests, share=share)
        return self._group

    def measure(
        self,
        source: BaseSource,
        requests: Sequence[RunRequest],
        save: Save,
        share: Share | None = None,
        hand_out: Callable[[Sequence[RunRequest]], None] = lambda tried: None,
    ) -> Iterator[Preflight | Trying]:
        """What runs that train together on `source` would take; how far it is after each micro-batch, the
        result at the end. `save` writes a checkpoint for the time it takes. share, hand_out: as measure() has
        them.
        """
        base = self.load_base(source)
        self._forget_whole(keep=self._digests_in_use())
        self._measuring = True
        try:
            yield from measure(base, requests, save, share, hand_out)
        finally:
            self._measuring = False

    def classify(
        self, source: BaseSource, adapters: Sequence[AdapterSource | None], texts: Sequence[str]
    ) -> list[Classified]:
        """What each adapter tells of each text; None stands for the head that the base's files hold.

        Raises WrongBase for an adapter of another base, and what classify() raises.
        """
        for adapter in adapters:
            if adapter is not None:
                require_same_base(adapter, source)
        base = self._base_to_answer(source)
        if self.in_parts:
            raise WorkbenchError(
                f"{base.name} lies in parts on {base.parts} cards for a run now, and classifies no texts so. "
                "Ask again when the run has ended."
            )
        weights = [self._classifier(adapter, base) if adapter is not None else None for adapter in adapters]
        names = [adapter.name if adapter is not None else base.name for adapter in adapters]
        return classify(base, weights, texts, names)

    def _classifier(self, adapter: AdapterSource, base: ResidentBase) -> AdapterWeights:
        """Its factors and its head, read once as long as few others are asked."""
        found = self._classifiers.pop(adapter.digest, None) or load_adapter(
            adapter.folder(), base.layer_shapes, base.head, base.wholes
        )
        self._classifiers[adapter.digest] = found
        while len(self._classifiers) > ADAPTER_SLOTS:
            del self._classifiers[next(iter(self._classifiers))]
        return found

    def end_training(self) -> None:
        """Let go of the last group's factors and optimiser states, and of a base that lies in parts: others
        do no longer take part in its passes.
        """
        self._group, self.held_back = None, False
        if self.in_parts:
            self._decoders = {}
            self._let_go()
            gc.collect()  # layers that are laid out are held in circles
            self.free_memory()

    def answer(
        self, source: BaseSource, requests: Sequence[AnswerRequest], *, each: bool = False
    ) -> Decoder | SeveralDecoders:
        """Decode all `requests` on `source`, in the batch of all that answer now but for those with weights
        of their own. An adapter for which there is no slot waits for one. each: what cannot be asked, such as
        a prompt that is too long, is told of the one row, and the others are answered.

        Raises WrongBase for an adapter of another base; without `each` PromptTooLong, and what templates
        raise.
        """
        for request in requests:
            if request.adapter is not None:
                require_same_base(request.adapter, source)
        base = self._base_to_answer(source)
        base.require_writing()
        rows, refused = _rows(base, requests, each=each)
        whole = self._whole_models(base, [requests[at].adapter for at in rows])
        parts = []
        for digest, bank in whole.items():
            places = [at for at in rows if _is_of(requests[at], [digest])]
            parts.append((Decoder(base, bank, [rows[at] for at in places]), places))
        together = {at: row for at, row in rows.items() if not _is_of(requests[at], whole)}
        if together:  # the last that can be refused: its rows are in the batch of all from here on
            adapters = [requests[at].adapter for at in together]
            parts.append((self._side_by_side(base, list(together.values()), adapters), list(together)))
        alone = len(parts) == 1 and not refused
        decoder = parts[0][0] if alone else SeveralDecoders(parts, refused)
        self._decoders[decoder] = {one.adapter.digest for one in requests if one.adapter is not None}
        return decoder

    def score(
        self,
        source: BaseSource,
        speakers: Sequence[AdapterSource | None],
        messages: Sequence[Message],
        answer: str,
        *,
        ended: bool = True,
        chat: ChatOptions = AS_THEY_ARE,
    ) -> list[Scored]:
        """How likely `answer` is behind these messages to each speaker (None is the plain base), token by
        token, in one pass. ended: with the token that ends it. chat: as the conversation is fitted to the
        template.

        Raises WrongBase, InvalidInput, PromptTooLong, and what answer() raises.
        """
        for one in speakers:
            if one is not None:
                require_same_base(one, source)
        base = self._base_to_answer(source)
        base.require_writing()
        ids, start = answer_ids(base, messages, answer, ended=ended, chat=chat)
        found = score(base, self._scoring(base, [None, *speakers]), ids, start)[1:]
        told = [weights_told(one, base) for one in speakers]
        return [replace(one, weights=weights) for one, weights in zip(found, told, strict=True)]

    def echo(self, source: BaseSource, requests: Sequence[AnswerRequest]) -> list[Echo]:
        """The prompts of these requests, and how likely each token of them is to who is asked.

        Raises WrongBase, InvalidInput, PromptTooLong, and what answer() raises.
        """
        for request in requests:
            if request.adapter is not None:
                require_same_base(request.adapter, source)
        base = self._base_to_answer(source)
        base.require_writing()
        return [self._echo(base, request) for request in requests]

    def _echo(self, base: ResidentBase, request: AnswerRequest) -> Echo:
        one = request.adapter
        speakers = [None, one] if one is not None and one.whole else [one]
        return echo(base, self._scoring(base, speakers), _row(base, request).prompt, request.text)

    def _scoring(self, base: ResidentBase, rows: Sequence[AdapterSource | None]) -> list[Speakers]:
        """All that is added to the base in one bank, and each that replaces whole parameters in its own."""
        whole, slots = self._whole_models(base, rows), self._slots_on(base)
        together = [at for at, one in enumerate(rows) if one is None or not one.whole]
        weights = [slots.weights(one) if one else None for one in (rows[at] for at in together)]
        bank = loaded_bank(base.layers, weights).eval()
        alone = [
            Speakers(bank, [0], [at])
            for digest, bank in whole.items()
            for at, one in enumerate(rows)
            if one is not None and one.digest == digest
        ]
        return [Speakers(bank, range(len(together)), together), *alone]

    def _side_by_side(
        self, base: ResidentBase, rows: Sequence[RowRequest], adapters: Sequence[AdapterSource | None]
    ) -> Decoder:
        """All that is added to the base, in one batch with what others have asked."""
        batch, slots = self._running_batch(base), self._slots_on(base)
        slots.forget_blends(keep={one.digest for one in adapters if one})
        seats = [slots.seat(one) if one else 0 for one in adapters]
        seated = [replace(row, slot=seat) for row, seat in zip(rows, seats, strict=True)]
        return Decoder(base, None, seated, batch=batch)

    def _slots_on(self, base: ResidentBase) -> AdapterSlots:
        if self._slots is None:
            self._slots = AdapterSlots(base)
        return self._slots

    def _running_batch(self, base: ResidentBase) -> RunningBatch:
        """The one of all requests; of its own for each where a row's company changes what it computes."""
        slots = self._slots_on(base)
        most = int(_ANSWERS_SHARE * memory_to_train(self.device))
        if self._pool is None:
            compiled = self.device.type == "cuda"
            self._pool = StatePool(base, compiled=compiled, most=8, most_bytes=most // 2)
        if self._batch is None or not rows_are_apart(base):
            self._batch = RunningBatch(base, lambda: slots.bank, self._pool, most)
            slots.batches.add(self._batch)
        return self._batch

    def _whole_models(
        self, base: ResidentBase, adapters: Sequence[AdapterSource | None]
    ) -> dict[str, WholeBank]:
        """The banks of those that replace whole parameters, by digest. Others that answer nobody make room.

        Raises WorkbenchError, with figures, if there is no room for one.
        """
        wanted = {one.digest: one for one in adapters if one is not None and one.whole}
        self._forget_whole(keep=self._digests_in_use() | set(wanted))
        for digest, adapter in wanted.items():
            require_lora_in_parts(adapter.name, None, base)
            if digest not in self._whole:
                weights = adapter.weights or load_adapter(adapter.folder(), base.layer_shapes, base.head)
                require_full_precision(base, adapter.name)
                require_room_to_answer(base, weights.parameter_count, adapter.name)
                self._whole[digest] = whole_bank(base.model, base.layers, weights)
        return {digest: self._whole[digest] for digest in wanted}

    def _forget_whole(self, keep: Collection[str]) -> None:
        self._whole = {digest: bank for digest, bank in self._whole.items() if digest in keep}

    def _digests_in_use(self) -> set[str]:
        return set().union(*self._working_decoders().values())

    @property
    def notice(self) -> str:
        """What a person should know of how answers are made: that something quicker failed.

        Empty if all is well.
        """
        return self._pool.notice if self._pool else ""

    def _working_decoders(self) -> dict[Decoder | SeveralDecoders, set[str]]:
        self._decoders = {
            decoder: digests for decoder, digests in self._decoders.items() if not decoder.finished
        }
        return self._decoders

    def free_for(self, source: BaseSource) -> bool:
        """Whether a base can be used now: its model is resident, or the resident one is not in use."""
        return self.base is None or not self._in_use() or resident_key(source).computes_as(self._key)

    @property
    def in_parts(self) -> bool:
        """Whether the resident base lies in parts on several processes, until end_training()."""
        return self._key is not None and self._key.parts > 1

    def _in_use(self) -> bool:
        if self.in_parts:
            return True
        training = self._group is not None and not self._group.finished
        return training or self._measuring or bool(self._working_decoders())

    def _require_idle(self, source: BaseSource) -> None:
        """One base is resident at a time, so it cannot change under a training or an answer."""
        if self.base is not None and self._in_use():
            doing = "answering" if self._working_decoders() else "trained on"
            how = (
                "" if source.quantisation == self.base.quantisation else f" in {LABELS[source.quantisation]}"
            )
            raise WorkbenchError(
                f"{self.base.name} is {doing} right now and only one base model is resident at a time; "
                f"{source.name}{how} can be used when that ends."
            )


def _is_of(request: AnswerRequest, digests: Collection[str]) -> bool:
    return request.adapter is not None and request.adapter.digest in digests


def _rows(
    base: ResidentBase, requests: Sequence[AnswerRequest], *, each: bool
) -> tuple[dict[int, RowRequest], dict[int, str]]:
    """What can be asked, by number, and of each of the others why not; without `each` that is raised."""
    rows, refused = {}, {}
    for at, request in enumerate(requests):
        try:
            rows[at] = _row(base, request)
        except WorkbenchError as error:
            if not each:
                raise
            refused[at] = str(error)
    return rows, refused


def _row(base: ResidentBase, request: AnswerRequest) -> RowRequest:
    """In the bank's first slot. Raises PromptTooLong, what the template raises, and require_possible()."""
    require_possible(request.config)
    renderer = base.renderer.with_options(request.config.chat)
    if request.ids:
        ids = known_ids(base, request.ids)
    elif request.text:
        ids = renderer.encode_text(request.text)
    else:
        ids = renderer.encode_prompt(request.messages, request.tools)
    room_to_answer(base, ids)
    told = weights_told(request.adapter, base)
    return RowRequest(ids, 0, request.config, told, request.asked_at, request.likeliest)
