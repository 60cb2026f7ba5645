"""In the engine process: answers, decoded a slice at a time between two micro-batches of training."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from app.engine.faults import reason
from app.shared import wire
from app.shared.bases import source_told
from app.shared.errors import USER_ERRORS
from app.shared.refusals import refused
from core.adapter_source import AdapterSource, blend
from core.data.chat_options import ChatOptions
from core.engine import AnswerRequest, Engine
from core.events import TokenDone
from core.generate.config import GenerationConfig
from core.generate.decode import Decoder
from core.generate.several import SeveralDecoders
from core.panics import panics_as_errors
from storage.registry import Registry

log = logging.getLogger("engine")


@dataclass(eq=False)
class Answering:
    """One request for answers: its question, and the queue its events go out by."""

    question: wire.Message
    out: queue.SimpleQueue[wire.Message] = field(default_factory=queue.SimpleQueue)
    at: float = field(default_factory=time.monotonic)
    """When it came."""
    cancelled: set[int | None] = field(default_factory=set)
    """Rows that nobody waits for any more; None stands for all."""


@dataclass(eq=False)
class _UnderWay:
    """A request that is being decoded."""

    asked: Answering
    decoder: Decoder | SeveralDecoders
    steps: Iterator[list[TokenDone]]


class Answers:
    """Requests that wait and those under way. Any thread may ask and cancel; the engine's own decodes."""

    def __init__(self, registry: Registry, engine: Engine) -> None:
        self._registry, self._engine = registry, engine
        self._asked: queue.SimpleQueue[Answering] = queue.SimpleQueue()
        self._under_way: list[_UnderWay] = []
        self.classified_at = 0.0
        """When texts were last classified, or a text scored, which takes a turn of its own."""
        self.explained: Callable[[Exception], Exception] = lambda error: error
        """An error in words of what others have to do with it."""

    def __len__(self) -> int:
        """How many requests are being decoded."""
        return len(self._under_way)

    def ask(self, question: wire.Message) -> Answering:
        """Have a request decoded; its events come out of the queue of what is returned, the last without a
        token.
        """
        asked = Answering(question)
        self._asked.put(asked)
        return asked

    def cancel(self, name: str, row: int) -> None:
        """End one row of the request that its asker has given this name; it may have ended by now."""
        for one in list(self._under_way):
            if one.asked.question.get("name") == name:
                one.asked.cancelled.add(row)

    def decode_for(self, seconds: float) -> None:
        """Begin what was asked, then decode for all in turn: for about `seconds`, but at least one token
        each.
        """
        self._begin()
        end = time.monotonic() + seconds
        while self._under_way:
            for one in list(self._under_way):
                self._step(one)
            if time.monotonic() >= end or not self._asked.empty():
                return

    def break_off(self, why: Exception) -> None:
        """Refuse all that is being decoded."""
        for one in list(self._under_way):
            one.decoder.cancel()
            self._under_way.remove(one)
            self._refuse(one.asked, why)

    def _begin(self) -> None:
        while not (self._asked.empty() or self._engine.held_back):
            asked = self._asked.get()
            try:
                with panics_as_errors():
                    if at_once := self._at_once(asked):
                        asked.out.put(at_once)
                        self.classified_at = time.monotonic()
                        continue
                    decoder = self._decoder(asked)
                self._under_way.append(_UnderWay(asked, decoder, decoder.steps()))
            except Exception as error:  # noqa: BLE001  (the boundary: the reason goes to whoever asked)
                self._refuse(asked, error)

    def _decoder(self, asked: Answering) -> Decoder | SeveralDecoders:
        """The app has looked everything up: here nothing is read but what has to be loaded."""
        question = asked.question
        source = source_told(self._registry, question["base"])
        return self._engine.answer(source, self._requests(asked), each=question.get("each", False))

    def _requests(self, asked: Answering) -> list[AnswerRequest]:
        return [
            AnswerRequest(
                row["messages"],
                self._adapter_source(row["adapter"]),
                GenerationConfig.parse(row["config"]),
                row.get("text", ""),
                asked.at,
                row.get("likeliest"),
                row.get("tools", ()),
                row.get("ids", ()),
            )
            for row in asked.question["rows"]
        ]

    def _at_once(self, asked: Answering) -> wire.Message | None:
        """What is answered in one pass; None for what is decoded."""
        question = asked.question
        match question.get("command"):
            case "echo":
                source = source_told(self._registry, question["base"])
                return {"echoes": [asdict(one) for one in self._engine.echo(source, self._requests(asked))]}
            case "classify":
                return self._classified(question)
            case "score":
                return self._scored(question)
        return None

    def _scored(self, question: wire.Message) -> wire.Message:
        """How likely an answer is to each speaker, in one pass, between two micro-batches."""
        source = source_told(self._registry, question["base"])
        speakers = [self._adapter_source(told) for told in question["speakers"]]
        asked, ended = (question["messages"], question["answer"]), question["ended"]
        chat = ChatOptions.parse(question["chat"])
        found = self._engine.score(source, speakers, *asked, ended=ended, chat=chat)
        return {"scored": [asdict(one) for one in found]}

    def _classified(self, question: wire.Message) -> wire.Message:
        """What adapters tell of a few texts, in one pass, between two micro-batches."""
        adapters = [self._adapter_source(told) for told in question["adapters"]]
        source = source_told(self._registry, question["base"])
        found = self._engine.classify(source, adapters, question["texts"])
        return {
            "classified": [
                {
                    "problem_type": one.labels.problem_type,
                    "labels": list(one.labels.names),
                    "probabilities": one.probabilities,
                    "cut": one.cut,
                }
                for one in found
            ]
        }

    def _adapter_source(self, told: dict[str, Any] | None) -> AdapterSource | None:
        """An adapter, or a blend of those in `parts`."""
        if told is None:
            return None
        if "parts" in told:
            return blend(told["name"], [(self._adapter(part), part["weight"]) for part in told["parts"]])
        return self._adapter(told)

    def _adapter(self, told: dict[str, Any]) -> AdapterSource:
        return AdapterSource(
            told["name"],
            lambda: self._registry.blobs.verify(told["digest"]),
            told["digest"],
            told["base_fingerprint"],
            told["base_name"],
            whole=bool(told.get("whole")),
        )

    def _step(self, one: _UnderWay) -> None:
        while one.asked.cancelled:
            one.decoder.cancel(one.asked.cancelled.pop())
        try:
            with panics_as_errors():
                events = next(one.steps, None)
        except Exception as error:  # noqa: BLE001  (the boundary: the reason goes to whoever asked)
            one.decoder.cancel()
            self._under_way.remove(one)
            self._refuse(one.asked, error)
            return
        if events is None:
            self._under_way.remove(one)
            one.asked.out.put({"done": True})
        for event in events or []:
            one.asked.out.put({"token": asdict(event)})

    def _refuse(self, asked: Answering, error: Exception) -> None:
        error = self.explained(error)
        if not isinstance(error, USER_ERRORS):
            log.error("an answer failed", exc_info=error)
            self._engine.free_memory()
        asked.out.put(refused(error, reason(error)))
