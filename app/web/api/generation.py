"""One request's answers, as a stream of pieces that an event loop can wait for."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from app.service.serving import Prompt, ServedModel, Serving
from app.shared.errors import EngineUnavailable
from app.web.api.call_finder import CallFinder
from app.web.api.counters import Counters
from app.web.api.stop_texts import StopFinder
from app.web.api.waiting_line import Turn, WaitingLine
from core.data.tool_calls import Call
from core.echoes import Echo
from core.events import TokenDone

_FINISHES = {"end": "stop", "length": "length"}


TokenLogprob = tuple[str, float, list[int] | None]


@dataclass(frozen=True)
class Entry:
    """One token of an answer, where its text begins there, and the likeliest in its place: of each its text,
    ln p, and its bytes.
    """

    offset: int
    token: TokenLogprob
    likeliest: Sequence[TokenLogprob]


@dataclass(frozen=True)
class Piece:
    """What one row's answer grows by."""

    row: int
    text: str
    finish: str = ""
    """Why the row ended, in OpenAI's words: stop, length or tool_calls. Empty while it goes on."""
    logprobs: Sequence[Entry] = ()
    """Of the tokens that came with it, where they were asked for."""
    calls: Sequence[Call] = ()
    """Of tools that were offered; with the last piece."""

    def __add__(self, later: Piece) -> Piece:
        logprobs = (*self.logprobs, *later.logprobs)
        calls = (*self.calls, *later.calls)
        return Piece(self.row, self.text + later.text, later.finish, logprobs, calls)


class Generation:
    """The answers to some prompts by one model. A thread takes them from the engine.

    Whoever has one calls close() in the end, whatever happens: it frees what is still being generated.
    """

    def __init__(
        self, serving: Serving, line: WaitingLine, counters: Counters, client: str, model: ServedModel,
        prompts: Sequence[Prompt], stops: Sequence[str],
    ) -> None:  # fmt: skip
        """client: whose request it is, for a fair line. stops: texts that end an answer and are not shown."""
        self.model, self._prompts = model, prompts
        self._serving, self._line, self._counters = serving, line, counters
        self._arrived: asyncio.Queue[TokenDone | Exception | None] = asyncio.Queue()
        self._turn = Turn(model.base.fingerprint, len(prompts), client, end=self._arrived.put_nowait)
        self._finders = [StopFinder(stops) for _ in prompts]
        self._calls = [CallFinder(one.tools) for one in prompts]
        self._open = set(range(len(prompts)))
        self._entries: list[list[Entry]] = [[] for _ in prompts]  # of tokens whose text is held back
        self._come, self._shown = [0] * len(prompts), [0] * len(prompts)  # characters
        self._name = f"api-{secrets.token_hex(8)}"
        self._gone, self._closed = threading.Event(), False
        self.echoes: Sequence[Echo] = ()
        """The prompts, where they are given back; there from the first piece on."""
        self.prompt_tokens, self.generated_tokens = [0] * len(prompts), [0] * len(prompts)
        self.started, self.first_token = time.monotonic(), 0.0
        self.begun = self.ended = 0.0

    async def pieces(self) -> AsyncIterator[Piece]:
        """The answers as they come, after the request's turn has come; ends when every row has.

        Raises LineFull, LineClosed, or what Serving.answer() raises.
        """
        await self._line.enter(self._turn)
        self.begun = time.monotonic()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._take_from_engine, daemon=True).start()
        while self._open:
            token = await self._arrived.get()
            if isinstance(token, Exception):
                raise token
            if token is None:
                raise EngineUnavailable("The answer was ended before it was whole.")
            if token.row in self._open and (piece := self._piece(token)):
                yield piece
        self.ended = time.monotonic()

    def _piece(self, token: TokenDone) -> Piece | None:
        """What a token adds to what is shown; None while it may be the beginning of a stop text."""
        if not self.first_token:
            self.first_token = time.monotonic()
        self.prompt_tokens[token.row], self.generated_tokens[token.row] = token.prompt_tokens, token.tokens
        self._note(token)
        finder = self._finders[token.row]
        text, finish = finder.take(token.text), ""
        if finder.found:
            finish = "stop"
            if not token.finished:
                self._end_in_engine([token.row])
        elif token.finished:
            text, finish = text + finder.rest(), _FINISHES[token.reason]
        text = self._calls[token.row].take(text)
        calls: Sequence[Call] = ()
        if finish:
            self._open.discard(token.row)
            rest, calls = self._calls[token.row].rest(cut_off=finish == "length")
            text, finish = text + rest, "tool_calls" if calls else finish
        if not (text or finish):
            return None
        logprobs = self._entries_of(token.row, text, finish, finder.found)
        return Piece(token.row, text, finish, logprobs, calls)

    def _note(self, token: TokenDone) -> None:
        """Keep the log-probabilities of a token, but for those of one that ends the answer and is no part
        of it.
        """
        if token.logprobs and token.reason != "end":
            own, *others = token.logprobs
            self._entries[token.row].append(Entry(self._come[token.row], own, others))
        self._come[token.row] += len(token.text)

    def _entries_of(self, row: int, text: str, finish: str, stopped: bool) -> Sequence[Entry]:
        """Of the tokens whose text is shown by now; of an answer that ended also those without a text. What
        a stop text cut off has none.
        """
        self._shown[row] += len(text)
        waiting, whole = self._entries[row], bool(finish) and not stopped
        shown = [one for one in waiting if whole or one.offset < self._shown[row]]
        self._entries[row] = [one for one in waiting if not (whole or one.offset < self._shown[row])]
        return shown

    def close(self) -> None:
        """End what is still being generated, give up the turn, and count."""
        if self._closed:
            return
        self._closed = True
        self._gone.set()
        self._line.leave(self._turn)
        if self._open and self._turn.begun.is_set():
            self._end_in_engine(sorted(self._open))
        self._count()

    def _count(self) -> None:
        model = self.model.id
        if self._open and self.first_token:
            self._counters.add("cancelled", model=model)
        if self.first_token:
            self._counters.add("answers", model=model)
            self._counters.add("first_token_seconds", self.first_token - self.started, model=model)
            self._counters.add("answer_seconds", time.monotonic() - self.started, model=model)
        self._counters.add("prompt_tokens", sum(self.prompt_tokens), model=model)
        self._counters.add("generated_tokens", sum(self.generated_tokens), model=model)

    # Threads.

    def _take_from_engine(self) -> None:
        """Hand every token over to the event loop, until the end, or until nobody waits for them."""
        last: Exception | None = None
        try:
            if any(one.echo for one in self._prompts):
                self.echoes = self._serving.echoes(self.model, self._prompts)
            with contextlib.closing(self._serving.answer(self.model, self._prompts, self._name)) as tokens:  # type: ignore[type-var]
                for token in tokens:
                    if self._gone.is_set():
                        return
                    self._hand_over(token)
        except Exception as error:  # noqa: BLE001  (the boundary: whoever asked is told)
            last = error
        self._hand_over(last)
        # All is generated: whoever reads it slowly holds nobody up.
        self._on_loop(lambda: self._line.leave(self._turn))

    def _hand_over(self, what: TokenDone | Exception | None) -> None:
        self._on_loop(lambda: self._arrived.put_nowait(what))

    def _on_loop(self, what: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the server is closing: the loop is gone, and who asked, too
            self._loop.call_soon_threadsafe(what)

    def _end_in_engine(self, rows: Sequence[int]) -> None:
        """Free these rows now, also while their prompts are still being read."""

        def end() -> None:
            with contextlib.suppress(EngineUnavailable):  # then nothing is generated any more
                for row in rows:
                    self._serving.cancel(self._name, row)

        threading.Thread(target=end, daemon=True).start()
