"""Alpaca: instruction, input and output, with LLaMA-Factory's history of earlier turns."""

from __future__ import annotations

from typing import Any

from core.data.findings import RowFault
from core.data.formats import Convert, DataFormat, Example, Message, Seen, plain_turn
from core.data.formats._cells import cell_of, label_in, system_column, system_turn, text_in
from core.data.formats._columns import ANSWERS, QUESTIONS, SYSTEMS
from core.data.mapping import Candidate, DataMapping
from core.data.reading import Row
from core.data.turn_keys import is_nothing
from core.data.turns import as_list, conversation


class Alpaca(DataFormat):
    """{"instruction": "…", "input": "…", "output": "…", "history": [["…", "…"], …]}."""

    name, label, order = "alpaca", "alpaca", 20
    help = "instruction, input and output"
    said, expected = "**Alpaca**", "instruction and output"
    roles, needed = ("user", "input", "assistant", "system", "history", "label"), ("user", "assistant")
    own_roles = (("input", "Further input"), ("history", "History"))
    templates, optional = ("system",), (*SYSTEMS, "input", "history")
    instead_of = ("prompt and completion",)

    def is_meant_by(self, roles: set[str]) -> bool:
        return super().is_meant_by(roles) and not {"id", "parent"} <= roles

    def detect(self, seen: Seen) -> list[Candidate]:
        questions = {name for name in QUESTIONS if name in seen.names}
        answers = {name for name in ANSWERS if name in seen.names}
        if "instruction" not in questions or questions - {"instruction", "input"} or answers != {"output"}:
            return _with_history(seen, questions, answers)
        columns = {"user": seen.names["instruction"], "assistant": seen.names["output"]}
        columns |= {role: seen.names[role] for role in ("input", "history") if role in seen.names}
        mapping = DataMapping(self.name, columns | system_column(seen))
        return [Candidate(mapping, "columns instruction and output")]

    def converter(self, mapping: DataMapping) -> Convert:
        columns = mapping.columns
        extra = columns.get("input")

        def convert(number: int, row: Row) -> Example:
            asked = text_in(row, columns["user"])
            if extra and not is_nothing(row.get(extra)):
                asked = f"{asked}\n{text_in(row, extra)}"
            turns = [
                *system_turn(mapping, row),
                *_history(cell_of(mapping, row, "history")),
                plain_turn("user", asked),
                plain_turn("assistant", text_in(row, columns["assistant"])),
            ]
            return conversation(number, turns, label=label_in(mapping, row))

        return convert


KIND = Alpaca()


def _with_history(seen: Seen, questions: set[str], answers: set[str]) -> list[Candidate]:
    """One question and one answer of other names with earlier turns beside them, as ms-swift has them."""
    history = seen.names.get("history", "")
    pairs = [as_list(row[history]) for row in seen.rows if not is_nothing(row.get(history))]
    listed = all(isinstance(one, list) and all(isinstance(pair, list) for pair in one) for one in pairs)
    if not history or not listed or len(questions) != 1 or len(answers) != 1:
        return []
    columns = {"user": seen.names[questions.pop()], "assistant": seen.names[answers.pop()]}
    columns["history"] = history
    mapping = DataMapping("alpaca", columns | system_column(seen))
    return [Candidate(mapping, f"columns {', '.join(map(repr, columns.values()))}")]


def _history(history: Any) -> list[Message]:
    pairs = as_list(history) or []
    sound = isinstance(pairs, list) and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs
    )
    if not sound or not all(isinstance(one, str) for pair in pairs for one in pair):
        raise RowFault("missing", "history must be a list of [question, answer] pairs.")
    return [
        turn
        for asked, answered in pairs
        for turn in (plain_turn("user", asked), plain_turn("assistant", answered))
    ]
