"""A question and its answer in columns of their own, under any of the names that people give them."""

from __future__ import annotations

from core.data.formats import Convert, DataFormat, Seen
from core.data.formats._cells import beside_columns, system_column
from core.data.formats._columns import ANSWERS, QUESTIONS, SYSTEMS, TEMPLATE_KWARGS, TOOLS
from core.data.formats._pairs import pairs_converter
from core.data.mapping import TEMPLATED, Candidate, DataMapping
from core.data.turns import is_turn


class PromptAndCompletion(DataFormat):
    """{"prompt": "…", "completion": "…"}; several columns of one side are several candidates."""

    name, label, order = "prompt and completion", "prompt and completion", 30
    help = "a question and an answer in columns of their own, or put together from columns by templates"
    said = "**prompt/completion** and question/answer columns"
    expected = "prompt and completion; question and answer"
    roles, needed = (
        ("user", "assistant", "system", "tools", "template_kwargs", "label"),
        ("user", "assistant"),
    )
    templates, optional = TEMPLATED, (*SYSTEMS, *TOOLS, *TEMPLATE_KWARGS)

    def detect(self, seen: Seen) -> list[Candidate]:
        questions = [seen.names[name] for name in QUESTIONS if name in seen.names]
        answers = [seen.names[name] for name in ANSWERS if name in seen.names]
        found = []
        for answer in answers:
            rest = {"assistant": answer, **system_column(seen), **beside_columns(seen)}
            if len(questions) > 1:
                found.append(self._joined(questions, rest))
            for question in questions:
                mapping = DataMapping(self.name, {"user": question, **rest})
                found.append(Candidate(mapping, f"columns {question!r} and {answer!r}"))
        return found

    def _joined(self, questions: list[str], rest: dict[str, str]) -> Candidate:
        """Columns that ask together, the context first."""
        *first, last = sorted(questions, key=lambda name: name.strip().lower() != "context")
        template = "\n\n".join(f"{{{name}}}" for name in (*first, last))
        said = f"{', '.join(map(repr, first))} and {last!r} together ask, {rest['assistant']!r} answers"
        return Candidate(DataMapping(self.name, rest, {"user": template}), said)

    def guess(self, seen: Seen) -> list[Candidate]:
        """Two columns of text are a question and an answer, one way or the other."""
        columns = seen.columns
        texts = all(isinstance(row.get(column), str) for row in seen.rows[:20] for column in columns)
        if len(columns) != 2 or not texts or all(map(is_turn, seen.rows)):
            return []
        return [
            Candidate(
                DataMapping(self.name, {"user": a, "assistant": b}),
                f"two columns: {a!r} asks, {b!r} answers",
                doubtful=True,
            )
            for a, b in (columns, columns[::-1])
        ]

    def converter(self, mapping: DataMapping) -> Convert:
        return pairs_converter(mapping)


KIND = PromptAndCompletion()
