"""Conversations with several speakers at once, which do not depend on a browser: what is said is stored as it
grows, whoever looks.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from app.service.chats import Chats, answer_told
from app.service.turns import END, Turn, messages_for, title_of, turns_of
from app.shared.disk import plain_sentence
from app.shared.errors import USER_ERRORS
from core.errors import InvalidInput
from core.events import UNANSWERED, TokenDone
from core.generate.config import GenerationConfig
from core.generate.scores import Scored
from storage.registry import Registry
from storage.tables import Chat, ChatMessage

_STORE_SECONDS = 1.0
STOPPED, FAILED = "stopped", UNANSWERED
WAITS = "waits"
"""Set in the details of an answer that waits for those to the question before it."""
TRIES = "tries"
"""In the details of an answer that was given anew: how far its seed is from the one that was wanted."""
_SEEDS = 2**31


@dataclass
class Growing:
    """An answer that is being given. Read by the page while a thread fills it in."""

    message_id: int
    speaker: str
    details: dict[str, Any]
    text: str = ""
    finish: str = ""
    stored: tuple[str, str] = ("", "")
    """The text and the ending that the registry has."""

    def take(self, token: TokenDone) -> None:
        """The answer has grown."""
        self.text += token.text
        self.details |= answer_told(token)
        if token.finished:
            self.finish = token.reason or END
        if token.error:
            self.details["error"] = token.error

    def fields(self) -> dict[str, Any]:
        """What of it is stored."""
        return {"content": self.text, "finish": self.finish, "details": dict(self.details)}


@dataclass
class _Request:
    """Answers that are given together, and the name by which single ones can be ended."""

    name: str
    answers: list[Growing]
    chat_id: int = 0
    question_id: int = 0
    """The question that they answer; later ones are asked later."""
    cancelled: set[int] = field(default_factory=set)
    """Rows that nobody waits for any more."""
    ended: threading.Event = field(default_factory=threading.Event)
    """Set when all of them have ended, and are stored."""


class Conversations:
    """The conversations of one home folder."""

    def __init__(self, registry: Registry, chats: Chats) -> None:
        self._registry, self._chats = registry, chats
        self._under_way: dict[int, tuple[_Request, int]] = {}
        """What is growing, and as which row of its request, by the answer's message id."""

    # What there is.

    def find(self, words: str = "", start: int = 0, most: int = 100) -> tuple[list[tuple[Chat, str]], int]:
        """Conversations that hold the words, each with its title, the last changed first; and how many."""
        found, total = self._registry.chats.search(words, start, most)
        first = self._registry.chats.first_questions([one.id or 0 for one in found])
        return [(one, one.title or title_of(first.get(one.id or 0, ""))) for one in found], total

    def turns(self, chat_id: int) -> list[Turn]:
        """What was asked and answered, with what is growing now. An answer that ended with the program is
        told as stopped.
        """
        messages = list(self._registry.chats.messages(chat_id))
        for message in messages:
            if message.role != "user" and not message.finish:
                live = self._under_way.get(message.id or 0)
                growing = live[0].answers[live[1]] if live else None
                message.content = growing.text if growing else message.content
                message.finish = growing.finish if growing else STOPPED
                message.details = dict(growing.details) if growing else message.details
        return turns_of(messages)

    def busy(self, chat_id: int) -> bool:
        """Whether anything is being answered in it."""
        return any(message.id in self._under_way for message in self._registry.chats.messages(chat_id))

    def until(self, chat_id: int, message_id: int) -> tuple[list[Turn], Turn]:
        """The turns before the one that holds this message, and that one. Raises InvalidInput."""
        turns = turns_of(self._registry.chats.messages(chat_id))
        for at, turn in enumerate(turns):
            if message_id == turn.question.id or any(one.id == message_id for one in turn.answers.values()):
                return turns[:at], turn
        raise InvalidInput("This message belongs to no question that is still there.")

    def system(self, chat_id: int) -> str:
        """What the system turn of a conversation says. Raises NotFound."""
        return self._registry.get(Chat, chat_id).system

    # Asking.

    def ask(
        self,
        chat_id: int | None,
        base: str,
        speakers: Sequence[str],
        prompt: str,
        config: GenerationConfig,
        system: str = "",
        *,
        raw: bool = False,
    ) -> int:
        """Put `prompt` to every speaker (PLAIN is the base) and return at once, with the conversation's id: a
        new one unless it goes on with the same base. raw: each text is gone on with by itself, without a chat
        template; a conversation is either. While earlier questions of it are being answered it waits for
        these answers, since it goes on from them.

        Raises InvalidInput for an empty prompt, or what Chats.answer() raises.
        """
        if not prompt.strip():
            raise InvalidInput("Write something to ask first.")
        chat = self._registry.get(Chat, chat_id) if chat_id else None
        if chat is None or chat.base_name != base or chat.raw != raw:
            chat = Chat(base_name=base, system="" if raw else system.strip(), raw=raw)
        ahead = self._ahead(chat)
        before = turns_of(self._registry.chats.messages(chat.id)) if chat.id else []
        asked = [_seen(chat, before, speaker, prompt) for speaker in speakers]
        stream, request = self._begun(chat, speakers, asked, config)
        chat = chat if chat.id else self._registry.save(chat)
        question = ChatMessage(chat_id=chat.id or 0, role="user", content=prompt)
        rows = [
            ChatMessage(
                chat_id=chat.id or 0, role="assistant", content="", speaker=one.speaker, details=one.details
            )
            for one in request.answers
        ]
        ids = self._registry.chats.begin(question, rows)
        for growing, message_id in zip(request.answers, ids[1:], strict=True):
            growing.message_id = message_id
        request.chat_id, request.question_id = chat.id or 0, ids[0]
        self._collect(stream, request, ahead, lambda: self._asked_now(request, speakers, config))
        return chat.id or 0

    def again(self, message_id: int, config: GenerationConfig, speaker: str | None = None) -> None:
        """Have one answer given anew, in its place; by another speaker if one is given. Asked for as it was
        before, it gets the next seed: with the same one it would be the same answer.

        Raises InvalidInput while it grows, NotFound, and what Chats.answer() raises.
        """
        message = self._registry.get(ChatMessage, message_id)
        if message.id in self._under_way:
            raise InvalidInput("This answer is still growing; stop it first.")
        same, speaker = speaker in (None, message.speaker), message.speaker if speaker is None else speaker
        tries = _tries(message, self._chats.asked_with(speaker or None, config)) if same else 0
        config = replace(config, seed=(config.seed + tries) % _SEEDS)
        stream, request, ahead = self._answer_to(message.chat_id, message_id, [speaker], config)
        request.answers[0].message_id = message_id
        request.answers[0].details |= {TRIES: tries} if tries else {}
        self._registry.chats.grow({message_id: request.answers[0].fields() | {"speaker": speaker}})
        self._collect(stream, request, ahead, lambda: self._asked_now(request, [speaker], config))

    def also(self, chat_id: int, speakers: Sequence[str], config: GenerationConfig) -> None:
        """Have more speakers answer the last question, in one batch; those who have stay as they are.

        Raises InvalidInput where none was asked, or all have answered, and what Chats.answer() raises.
        """
        turns = turns_of(self._registry.chats.messages(chat_id))
        new = [one for one in speakers if not turns or one not in turns[-1].answers]
        if not turns or not new:
            raise InvalidInput("There is no question that they have not answered; ask one first.")
        stream, request, ahead = self._answer_to(chat_id, turns[-1].question.id or 0, new, config)
        rows = [ChatMessage(chat_id=chat_id, role="assistant", content="", speaker=one) for one in new]
        ids = self._registry.chats.begin(rows[0], rows[1:])
        for growing, message_id in zip(request.answers, ids, strict=True):
            growing.message_id = message_id
        self._collect(stream, request, ahead, lambda: self._asked_now(request, new, config))

    def _answer_to(
        self, chat_id: int, message_id: int, speakers: Sequence[str], config: GenerationConfig
    ) -> tuple[Iterator[TokenDone], _Request, list[_Request]]:
        """Ask speakers what the turn with this message asks; also what they wait for."""
        chat, (_, turn) = self._registry.get(Chat, chat_id), self.until(chat_id, message_id)
        ahead = self._ahead(chat, turn.question.id)
        before, turn = self.until(chat_id, message_id)
        asked = [_seen(chat, before, speaker, turn.question.content) for speaker in speakers]
        stream, request = self._begun(chat, speakers, asked, config)
        request.chat_id, request.question_id = chat_id, turn.question.id or 0
        return stream, request, ahead

    def branch(self, message_id: int, prompt: str, speakers: Sequence[str], config: GenerationConfig) -> int:
        """Ask another question in the place of an earlier one, in a new conversation that has what was said
        before it. Returns that one's id. Raises InvalidInput while that is still growing, and what ask()
        raises.
        """
        question = self._registry.get(ChatMessage, message_id)
        old = self._registry.get(Chat, question.chat_id)
        before, turn = self.until(question.chat_id, message_id)
        if self._ahead(old, turn.question.id):
            raise InvalidInput(
                "What was asked before this is still being answered; wait for it or stop it, then branch."
            )
        new = self._registry.save(
            Chat(base_name=old.base_name, title=old.title, system=old.system, raw=old.raw)
        )
        try:
            for turn in before:
                self._registry.chats.begin(
                    _copied(turn.question, new), [_copied(one, new) for one in turn.answers.values()]
                )
            return self.ask(new.id, old.base_name, speakers, prompt, config, raw=old.raw)
        except USER_ERRORS:
            self._registry.chats.remove(new.id or 0)
            raise

    def last_of(self, chat_id: int, speaker: str) -> int | None:
        """The message in which this speaker has answered the last question, unless it grows."""
        turns = turns_of(self._registry.chats.messages(chat_id))
        answer = turns[-1].answers.get(speaker) if turns else None
        return answer.id if answer is not None and answer.id not in self._under_way else None

    def scores(
        self, chat_id: int, speakers: Sequence[str], answer: str, config: GenerationConfig
    ) -> list[Scored]:
        """How likely an answer to the last question is to each speaker, each behind what it has said, fitted
        to the chat template as `config` says.

        Raises InvalidInput where nothing was asked, and what Chats.score() raises.
        """
        turns = turns_of(self._registry.chats.messages(chat_id))
        if not turns:
            raise InvalidInput("Ask a question first: the answer is scored behind it.")
        chat, question = self._registry.get(Chat, chat_id), turns[-1].question.content
        _require_turns(chat)
        asked = [messages_for(chat.system, turns[:-1], speaker, question) for speaker in speakers]
        chats = [self._chats.asked_with(speaker, config).chat for speaker in speakers]
        return [
            self._chats.score(chat.base_name, [speaker or None], said, answer, chat=how)[0]
            for speaker, said, how in zip(speakers, asked, chats, strict=True)
        ]

    def score(self, message_id: int) -> Scored:
        """An answer token by token, as its own speaker sees it. Raises what Chats.score() raises."""
        message = self._registry.get(ChatMessage, message_id)
        chat, (before, turn) = (
            self._registry.get(Chat, message.chat_id),
            self.until(message.chat_id, message_id),
        )
        _require_turns(chat)
        said = messages_for(chat.system, before, message.speaker, turn.question.content)
        ended = message.finish in (END, "stop")
        asked_with = GenerationConfig.from_dict(message.details.get("settings", {})).chat
        return self._chats.score(
            chat.base_name, [message.speaker or None], said, message.content, ended=ended, chat=asked_with
        )[0]

    def adopt(self, message_id: int) -> None:
        """Everybody goes on from this answer. Raises InvalidInput while it grows, NotFound."""
        message = self._registry.get(ChatMessage, message_id)
        live = self._under_way.get(message_id)  # it may have ended, and not be stored yet
        if not (live[0].answers[live[1]].finish if live else message.finish):
            raise InvalidInput("This answer is still growing; all can go on from it when it is there.")
        _, turn = self.until(message.chat_id, message_id)
        given_up = turn.question.adopted == message.speaker
        self._registry.chats.grow({turn.question.id or 0: {"adopted": None if given_up else message.speaker}})

    def stop(self, chat_id: int, message_id: int | None = None) -> None:
        """End one answer, or all that are growing in a conversation; what has been said is kept."""
        for message in self._registry.chats.messages(chat_id):
            live = self._under_way.get(message.id or 0)
            if live is not None and message_id in (None, message.id):
                request, row = live
                request.cancelled.add(row)
                self._chats.cancel(request.name, row)

    # How answers grow.

    def _begun(
        self,
        chat: Chat,
        speakers: Sequence[str],
        asked: Sequence[list[dict[str, str]]],
        config: GenerationConfig,
    ) -> tuple[Iterator[TokenDone], _Request]:
        name = secrets.token_hex(8)
        stream = self._put(chat, speakers, asked, config, name)
        settings = [self._chats.asked_with(one or None, config).to_dict() for one in speakers]
        growing = [Growing(0, one, {"settings": how}) for one, how in zip(speakers, settings, strict=True)]
        return stream, _Request(name, growing)

    def _put(
        self,
        chat: Chat,
        speakers: Sequence[str],
        asked: Sequence[list[dict[str, str]]],
        config: GenerationConfig,
        name: str,
    ) -> Iterator[TokenDone]:
        """Put to each speaker what it is asked, under this name."""
        names = [one or None for one in speakers]
        return self._chats.answer(chat.base_name, names, asked, config, name, raw=chat.raw, each=True)

    def _ahead(self, chat: Chat, question_id: int | None = None) -> list[_Request]:
        """What is still answered in the turns before a question, or before a new one. It is asked for before
        these turns are read: what ends in between is in them.
        """
        if chat.raw or not chat.id:
            return []
        there = {one.name: one for one, _ in list(self._under_way.values()) if one.chat_id == chat.id}
        return [one for one in there.values() if question_id is None or one.question_id < question_id]

    def _asked_now(
        self, request: _Request, speakers: Sequence[str], config: GenerationConfig
    ) -> Iterator[TokenDone]:
        """The question of a request behind what was said before it by now."""
        chat = self._registry.get(Chat, request.chat_id)
        before, turn = self.until(request.chat_id, request.question_id)
        asked = [_seen(chat, before, speaker, turn.question.content) for speaker in speakers]
        return self._put(chat, speakers, asked, config, request.name)

    def _collect(
        self,
        stream: Iterator[TokenDone],
        request: _Request,
        ahead: Sequence[_Request],
        asked_now: Callable[[], Iterator[TokenDone]],
    ) -> None:
        """Take the answers in a thread. Where others are `ahead`, the question is put once more when these
        have ended: what it was made of until then had half of their answers.
        """
        for row, one in enumerate(request.answers):
            one.details |= {WAITS: True} if ahead else {}
            self._under_way[one.message_id] = request, row
        if ahead:
            stream = self._behind(request, ahead, asked_now)
        threading.Thread(target=self._take_all, args=(stream, request), daemon=True).start()

    def _behind(
        self, request: _Request, ahead: Sequence[_Request], asked_now: Callable[[], Iterator[TokenDone]]
    ) -> Iterator[TokenDone]:
        """The answers to a question, asked when those ahead have ended. Who was stopped until then is not
        waited for.
        """
        for earlier in ahead:
            earlier.ended.wait()
        stopped = set(request.cancelled)
        for one in request.answers:
            one.details.pop(WAITS, None)
        if len(stopped) == len(request.answers):
            return
        with closing(asked_now()) as stream:  # type: ignore[type-var]
            for token in stream:
                for row in stopped:
                    self._chats.cancel(request.name, row)
                stopped.clear()
                yield token

    def _take_all(self, stream: Iterator[TokenDone], request: _Request) -> None:
        """Take the answers as they come, until all have ended, and store them meanwhile."""
        error, stored = "", time.monotonic()
        try:
            for token in stream:
                request.answers[token.row].take(token)
                if time.monotonic() - stored > _STORE_SECONDS:
                    self._store(request)
                    stored = time.monotonic()
                if all(one.finish or row in request.cancelled for row, one in enumerate(request.answers)):
                    break
        except (*USER_ERRORS, OSError) as fault:
            error = plain_sentence(fault)
        finally:
            stream.close()  # type: ignore[attr-defined]
            for row, one in enumerate(request.answers):
                if not one.finish:
                    one.finish = STOPPED if row in request.cancelled else FAILED
                    one.details |= {"error": error} if one.finish == FAILED else {}
            try:
                self._store(request)
            finally:
                for one in request.answers:
                    self._under_way.pop(one.message_id, None)
                request.ended.set()

    def _store(self, request: _Request) -> None:
        """Keep what has grown since the last time."""
        news = {
            one.message_id: one.fields() for one in request.answers if one.stored != (one.text, one.finish)
        }
        self._registry.chats.grow(news)
        for one in request.answers:
            one.stored = one.text, one.finish


def _seen(chat: Chat, before: Sequence[Turn], speaker: str, prompt: str) -> list[dict[str, str]]:
    """What a speaker sees: text that is gone on with stands by itself."""
    return messages_for(chat.system, [] if chat.raw else before, speaker, prompt)


def _tries(message: ChatMessage, wanted: GenerationConfig) -> int:
    """How many answers there have been to what is wanted now; none where this one was asked for otherwise, or
    was not given to its end, and for a greedy one, which has no seed.
    """
    if wanted.greedy or message.finish == FAILED:
        return 0
    before = int(message.details.get(TRIES, 0))
    same = replace(wanted, seed=(wanted.seed + before) % _SEEDS).to_dict()
    return before + 1 if message.details.get("settings") == same else 0


def _require_turns(chat: Chat) -> None:
    if chat.raw:
        raise InvalidInput(
            "Only answers to a chat's questions are scored, and this one goes on with raw text."
        )


def _copied(message: ChatMessage, chat: Chat) -> ChatMessage:
    return ChatMessage(**message.model_dump(exclude={"id", "chat_id"}) | {"chat_id": chat.id})
