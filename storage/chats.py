"""Conversations of the playground."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete
from sqlmodel import col, select

from storage.database import Database
from storage.tables import (
    Chat,
    ChatMessage,
)


class Chats:
    """The conversations."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def messages(self, chat_id: int) -> Sequence[ChatMessage]:
        """All messages of a conversation, in order."""
        with self._database.reading() as session:
            query = select(ChatMessage).where(ChatMessage.chat_id == chat_id).order_by(col(ChatMessage.id))
            return session.exec(query).all()

    def remove(self, chat_id: int) -> None:
        """Delete a conversation."""
        with self._database.writing() as session:
            session.execute(delete(Chat).where(col(Chat.id) == chat_id))
