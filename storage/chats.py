"""Conversations of the playground."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete, func, or_
from sqlmodel import col, select

from storage.database import Database
from storage.errors import NotFound
from storage.tables import Chat, ChatMessage


class Chats:
    """The conversations."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def messages(self, chat_id: int) -> Sequence[ChatMessage]:
        """All messages of a conversation, in order."""
        with self._database.reading() as session:
            query = select(ChatMessage).where(ChatMessage.chat_id == chat_id).order_by(col(ChatMessage.id))
            return session.exec(query).all()

    def search(self, words: str = "", start: int = 0, most: int = 100) -> tuple[Sequence[Chat], int]:
        """Conversations whose title, base or messages hold all the words, the last changed first, and how
        many there are.
        """
        query = select(Chat)
        for word in words.split():
            said = select(ChatMessage.chat_id).where(col(ChatMessage.content).contains(word, autoescape=True))
            named = (col(one).contains(word, autoescape=True) for one in (Chat.title, Chat.base_name))
            query = query.where(or_(*named, col(Chat.id).in_(said)))
        with self._database.reading() as session:
            total = session.exec(select(func.count()).select_from(query.subquery())).one()
            newest = query.order_by(col(Chat.changed).desc(), col(Chat.id).desc())
            return session.exec(newest.offset(start).limit(most)).all(), total

    def first_questions(self, chat_ids: Sequence[int]) -> dict[int, str]:
        """What each conversation began with, by its id."""
        asked = ChatMessage.role == "user", col(ChatMessage.chat_id).in_(chat_ids)
        first = select(func.min(ChatMessage.id)).where(*asked).group_by(col(ChatMessage.chat_id))
        with self._database.reading() as session:
            query = select(ChatMessage).where(col(ChatMessage.id).in_(first))
            return {one.chat_id: one.content for one in session.exec(query).all()}

    def begin(self, question: ChatMessage, answers: Sequence[ChatMessage]) -> list[int]:
        """Store a question with the answers that begin to grow. Returns the ids, the question's first.

        Raises NotFound if the conversation is gone.
        """
        with self._database.writing() as session:
            chat = session.get(Chat, question.chat_id)
            if chat is None:
                raise NotFound(f"There is no conversation {question.chat_id} any more.")
            chat.changed = time.time()
            ids = []
            for one in (question, *answers):
                session.add(one)
                session.flush()
                ids.append(one.id or 0)
            return ids

    def grow(self, answers: Mapping[int, Mapping[str, Any]]) -> None:
        """Change messages: fields by name, by the message's id. Those that are gone stay gone."""
        with self._database.writing() as session:
            for message_id, fields in answers.items():
                message = session.get(ChatMessage, message_id)
                for name, value in fields.items() if message is not None else ():
                    setattr(message, name, value)

    def change(self, chat_id: int, **fields: str) -> Chat:
        """Change a conversation's title or system turn. Raises NotFound."""
        with self._database.writing() as session:
            chat = session.get(Chat, chat_id)
            if chat is None:
                raise NotFound(f"There is no conversation {chat_id} any more.")
            for name, value in fields.items():
                setattr(chat, name, value)
            return chat

    def remove(self, chat_id: int) -> None:
        """Delete a conversation."""
        with self._database.writing() as session:
            session.execute(delete(Chat).where(col(Chat.id) == chat_id))
