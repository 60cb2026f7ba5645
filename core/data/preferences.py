"""Preference data: answers that are compared, ranked or judged. They are told from plain answers by the names
of columns and by what stands in them, since to train on all of them would teach the bad ones too.

Needs no torch.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from core.data.findings import RowFault
from core.data.formats import Example, Seen
from core.data.formats._cells import system_column
from core.data.formats._columns import QUESTIONS, SYSTEMS
from core.data.mapping import Candidate, DataMapping
from core.data.reading import Row
from core.data.turn_keys import is_nothing
from core.data.turns import as_turns, is_turn


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CHOSEN = _names("chosen preferred winning")
_REJECTED = _names(
    "rejected reject dispreferred unpreferred nonpreferred worse worst bad losing loser inferior negative"
)
_NUMBERED = _names(
    "response answer output completion conversation conversations candidate generation summary ref reply"
)
_ANSWER = _NUMBERED | _names("messages message text result")
_SEVERAL = _names(
    "responses answers outputs completions candidates generations summaries replies rankings ranked"
)
_TWINS = (("a", "b"), ("j", "k"), ("0", "1"), ("1", "2"), ("w", "l"), ("one", "two"))
_COMPARISONS = _names(
    "preference preferred winner better best safer chosen choice rank ranks ranking rankings verdict "
    "judgment judgement selected"
)
_VERDICTS = _COMPARISONS | _names("score scores rating ratings reward rewards votes overall")
# Whether an answer is a good one: names that say nothing else, and names that may.
_JUDGED = _names(
    "kto_tag kto_label desirable is_desirable is_chosen chosen is_preferred preferred is_good good accepted "
    "is_accepted liked like thumbs thumbs_up thumbs_down upvoted feedback user_feedback vote is_rejected "
    "rejected"
)
_MAY_JUDGE = _names(
    "label labels tag correct is_correct correctness helpful is_helpful positive is_positive quality "
    "preference"
)
_YES_OR_NO = _names(
    "true false yes no 0 1 0.0 1.0 -1 good bad chosen rejected desirable undesirable correct incorrect "
    "accepted"
)
_THUMBS = _names("up down like dislike thumbs_up thumbs_down positive negative upvote downvote")
_BAD = _names("false -1 -1.0 bad rejected undesirable down dislike thumbs_down downvote incorrect")
_SCORES = _names(
    "score rating reward upvotes votes ups rank pm_score quality helpfulness overall_score preference_score "
    "stars likes karma"
)
_GIVEN = frozenset((*QUESTIONS, *SYSTEMS)) | _names(
    "messages conversations conversation response answer output completion"
)


def preferences_in(seen: Seen, candidates: Sequence[Candidate]) -> str:
    """By what the rows are seen to be preferences; empty if they are none. `candidates` is what else fits."""
    plain = any({"assistant", "turns"} & set(one.mapping.columns) for one in candidates)
    return (
        next(_compared(seen), "")
        or next(_in_one_column(seen), "")
        or next(_numbered(seen), "")
        or next(_ranked(seen), "")
        or (next(_judged(seen, candidates), "") if plain else "")
        or next(_judged_turns(seen, candidates), "")
    )


def preferences_hint(why: str, *, offered: bool) -> str:
    """What a person is told of them."""
    remedy = (
        "the chosen answers alone can, if you say so"
        if offered
        else "import a file of the good answers alone"
    )
    return f"Preferences ({why}) cannot be trained on yet, and are no plain answers; {remedy}."


def chosen_alone(seen: Seen) -> list[Candidate]:
    """Mappings that train on the chosen answers as plain ones, for people to choose."""
    column = next(
        (seen.names[name] for name in seen.names if _side(name) == "chosen" and _says(seen, name)), None
    )
    said = "the chosen answers as plain answers; the rejected ones are not used"
    if column is None:
        return _all_chosen(seen, said)
    value = next(row[column] for row in seen.rows if not is_nothing(row.get(column)))
    turns = as_turns(value)
    if turns and any(turn.get("role", turn.get("from")) in ("user", "human") for turn in turns):
        form = "sharegpt" if "from" in turns[0] else "messages"
        return [Candidate(DataMapping(form, {"turns": column, **system_column(seen)}), said, doubtful=True)]
    asked = [seen.names[name] for name in QUESTIONS if name in seen.names]
    objects = [asked_in for asked_in in asked[:1] if isinstance(seen.rows[0].get(asked_in), dict)]
    if not asked or objects or isinstance(value, dict):
        return []
    columns = {"user": asked[0], "assistant": column, **system_column(seen)}
    form = "prompt and completion"
    if seen.first(("instruction",)) == asked[0] or seen.first(("input",)) in asked[1:]:
        form = "alpaca"
        columns |= {
            role: seen.names[role]
            for role in ("input", "history")
            if seen.names.get(role, asked[0]) != asked[0]
        }
    return [Candidate(DataMapping(form, columns), said, doubtful=True)]


def _all_chosen(seen: Seen, said: str) -> list[Candidate]:
    """Where only the rejected answer has a column: the conversation beside it ends on the chosen one."""
    turns = seen.names.get("messages")
    rejected = any(_side(name) == "rejected" for name in seen.names)
    return (
        [Candidate(DataMapping("messages", {"turns": turns}), said, doubtful=True)]
        if turns and rejected
        else []
    )


def _words(name: str) -> list[str]:
    return [
        word
        for word in re.split(r"[^a-z0-9]+", name.lower().replace("non_preferred", "nonpreferred"))
        if word
    ]


def _side(name: str) -> str:
    """chosen or rejected, if a column's name says that its answers are the one or the other."""
    words = set(_words(name))
    for side, of_side in (("rejected", _REJECTED), ("chosen", _CHOSEN)):
        if words & of_side and words - of_side <= _ANSWER:
            return side
    return ""


def _says(seen: Seen, name: str) -> bool:
    """Whether a column holds what somebody said: text, a turn, or turns; no number and no true or false."""
    values = [row.get(seen.names[name]) for row in seen.rows]
    found = [value for value in values if not is_nothing(value)]
    return bool(found) and all(isinstance(value, (str, list, dict)) for value in found)


def _compared(seen: Seen) -> Iterator[str]:
    """Columns of chosen and of rejected answers, or of one of them beside a question."""
    said = [name for name in seen.names if _side(name) and _says(seen, name)]
    columns = {_side(name): seen.names[name] for name in reversed(said)}
    if len(columns) == 2:
        yield f"columns {columns['chosen']!r} and {columns['rejected']!r}"
    elif columns and _GIVEN & seen.names.keys():
        yield f"column {next(iter(columns.values()))!r}"


def _in_one_column(seen: Seen) -> Iterator[str]:
    """Both answers in one column, as {"chosen": …, "rejected": …}."""
    for column in seen.names.values():
        values = [row[column] for row in seen.rows if isinstance(row.get(column), dict)]
        if values and {_side(str(key)) for key in values[0]} >= {"chosen", "rejected"}:
            yield f"column {column!r} holds a chosen and a rejected answer"


def _numbered(seen: Seen) -> Iterator[str]:
    """Two answers side by side: response_a and response_b, and perhaps a verdict."""
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for name, column in seen.names.items():
        found = re.fullmatch(r"(.*?)[_\- ]?(a|b|c|d|j|k|w|l|one|two|three|\d)", name)
        if found and set(_words(found.group(1))[-1:]) & _NUMBERED and _says(seen, name):
            groups[found.group(1)][found.group(2)] = column
    words = {word for name in seen.names for word in _words(name)}
    verdict = words & (_VERDICTS | {"label", "labels"})
    answered = {"answer", "response", "output", "completion", "target", "messages"} & set(seen.names)
    for group in groups.values():
        twins = next((pair for pair in _TWINS if set(pair) <= set(group)), None)
        if twins and (verdict or not answered if len(group) == 2 else words & _COMPARISONS):
            yield f"several answers each, {' and '.join(repr(group[one]) for one in twins)}"


def _ranked(seen: Seen) -> Iterator[str]:
    """Several answers in one list, with a rank or a score each."""
    verdict = any(set(_words(name)) & _VERDICTS for name in seen.names)
    for name, column in seen.names.items():
        lists = [
            row[column] for row in seen.rows if isinstance(row.get(column), list) and len(row[column]) > 1
        ]
        if not set(_words(name)[-1:]) & _SEVERAL or 2 * len(lists) < len(seen.rows):
            continue
        items = lists[0]
        scored = all(isinstance(item, dict) for item in items) and any(
            set(_words(str(key))) & (_VERDICTS | _SCORES) for key in items[0]
        )
        if scored or (verdict and not any(map(is_turn, items))):
            yield f"several answers each with a rank or a score, {column!r}"


def _judged(seen: Seen, candidates: Sequence[Candidate]) -> Iterator[str]:
    """Answers that are said to be good or bad, or have scores that differ between answers to one question."""
    used = {column for one in candidates for column in one.mapping.used_columns()}
    for name, column in seen.names.items():
        if column in used:
            continue
        values = [row[column] for row in seen.rows if not is_nothing(row.get(column))]
        judges = (
            _YES_OR_NO | _THUMBS if name in _JUDGED else _YES_OR_NO if name in _MAY_JUDGE else frozenset()
        )
        if values and all(str(value).strip().lower() in judges for value in values):
            yield f"{column!r} says whether an answer is a good one"
        elif name in _SCORES and _tells_apart(seen, column, values, candidates[0]):
            yield f"{column!r} says how good an answer is"


def _judged_turns(seen: Seen, candidates: Sequence[Candidate]) -> Iterator[str]:
    """Answers of a conversation that are said to be bad, each by itself."""
    columns = [one.mapping.columns["turns"] for one in candidates if "turns" in one.mapping.columns]
    for turn in (turn for row in seen.rows for column in columns for turn in as_turns(row.get(column)) or ()):
        for key in (_JUDGED | _MAY_JUDGE | _SCORES) & turn.keys():
            if str(turn[key]).strip().lower() in _BAD:
                yield f"{key!r} of a turn says that its answer is a bad one"


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and float(value) == float(value)
    except (TypeError, ValueError):
        return False


def _tells_apart(seen: Seen, column: str, values: Sequence[Any], candidate: Candidate) -> bool:
    """Whether scores are of better and worse answers: one is negative, or those to one question differ."""
    if not values or not all(map(_is_number, values)):
        return False
    if min(map(float, values)) < 0:
        return True
    convert = candidate.mapping.data_format.converter(candidate.mapping)
    found: dict[tuple[str, ...], set[float]] = defaultdict(set)
    for row in seen.rows:
        example = _converted(convert, row)
        if example is not None and example.messages and _is_number(row.get(column)):
            asked = tuple(turn["content"] for turn in example.messages[:-1])
            found[asked].add(float(row[column]))
    return any(len(scores) > 1 for scores in found.values())


def _converted(convert: Callable[[int, Row], Example], row: Row) -> Example | None:
    try:
        return convert(1, row)
    except RowFault:
        return None
