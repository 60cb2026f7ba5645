"""Conversations as files that other programs read: Markdown for people, JSONL for training."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from app.service.turns import Turn, messages_for, title_of
from app.shared.speakers import called
from storage.tables import Chat


def as_markdown(chat: Chat, turns: Sequence[Turn]) -> Iterator[str]:
    """All answers to each question, under the names of those who gave them."""
    title = chat.title or title_of(turns[0].question.content if turns else "")
    yield f"# {title or 'Conversation'}\n\nBase model: {chat.base_name}\n"
    if chat.system:
        yield f"\n> {chat.system.replace(chr(10), f'{chr(10)}> ')}\n"
    for turn in turns:
        yield f"\n## {' '.join(turn.question.content.split())}\n"
        for speaker, answer in turn.answers.items():
            adopted = " (all went on from this)" if turn.question.adopted == speaker else ""
            yield f"\n### {called(speaker)}{adopted}\n\n{answer.content.strip()}\n"


def as_jsonl(chat: Chat, turns: Sequence[Turn]) -> Iterator[str]:
    """One line for each speaker: its conversation as chat messages, which a data set takes as it is."""
    for speaker in dict.fromkeys(one for turn in turns for one in turn.answers):
        held = [(turn, answer) for turn in turns if (answer := turn.gone_on_from(speaker)) is not None]
        if not held:
            continue
        last, answer = held[-1]
        before = [turn for turn, _ in held[:-1]]
        messages = messages_for(chat.system, before, speaker, last.question.content)
        messages.append({"role": "assistant", "content": answer.content})
        line = {"messages": messages, "model": called(speaker) if speaker else chat.base_name}
        yield json.dumps(line, ensure_ascii=False) + "\n"
