"""What can be wrong with rows: every kind with its level and its remedy. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

ERROR, WARNING, NOTE = "error", "warning", "note"


@dataclass(frozen=True)
class Kind:
    """One kind of finding.

    While a row has an error the data set is refused for training, until it is mended or left out.
    """

    code: str
    level: str
    title: str
    remedy: str


@dataclass(frozen=True)
class Finding:
    """Something about one row; index is its place in the data set,
    -1 where the finding is about all of it.
    """

    index: int
    code: str
    detail: str

    @property
    def kind(self) -> Kind:
        """What kind of finding it is."""
        return KINDS[self.code]


class RowFault(Exception):
    """A row cannot be used as it is: one of the errors below, with a sentence."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


KINDS: dict[str, Kind] = {
    kind.code: kind
    for kind in (
        Kind(
            "unreadable",
            ERROR,
            "Unreadable",
            "Mend the line in the file and import it again, or leave the row out.",
        ),
        Kind(
            "cut_short",
            ERROR,
            "The rest could not be read",
            "Mend the file here and import it again: rows behind it are lost.",
        ),
        Kind(
            "encoding",
            ERROR,
            "Broken encoding",
            "Save the file as UTF-8 and import it again, or leave the row out.",
        ),
        Kind(
            "missing",
            ERROR,
            "Missing or of the wrong kind",
            "Fill the field, choose another column, or leave the row out.",
        ),
        Kind(
            "unknown_role",
            ERROR,
            "Unknown role",
            "Rename the role to system, user, assistant or tool, or leave the row out.",
        ),
        Kind(
            "weight",
            ERROR,
            "Weight of a turn that cannot be obeyed",
            "Write 0 or 1 (or true or false) for the whole turn, or leave the row out.",
        ),
        Kind(
            "tools",
            ERROR,
            "Tools that cannot be read",
            "Write the tools as a list of definitions with name and parameters, or leave the row out.",
        ),
        Kind(
            "tool_call",
            ERROR,
            "Tool call that cannot be read",
            "Write the call as an object with name and arguments, or leave the row out.",
        ),
        Kind(
            "no_answer",
            ERROR,
            "No answer",
            "Add an assistant's turn, or leave the row out: it has nothing to train on.",
        ),
        Kind(
            "empty_answer",
            ERROR,
            "Empty answer",
            "Write the answer, or leave the row out: it would teach silence.",
        ),
        Kind(
            "no_question",
            ERROR,
            "Answer without a question",
            "Put a user's turn before the first answer, or leave the row out.",
        ),
        Kind(
            "template",
            ERROR,
            "Refused by the chat template",
            "Change the turns, choose another base, or leave the row out.",
        ),
        Kind(
            "untrained",
            ERROR,
            "No trained token",
            "No token carries loss: mark an answer for training, or leave the row out.",
        ),
        Kind(
            "empty_prompt", WARNING, "Empty question", "Check whether the question was lost on the way here."
        ),
        Kind(
            "two_in_a_row",
            WARNING,
            "Two turns of one speaker in a row",
            "Join the turns; many chat templates refuse such rows.",
        ),
        Kind(
            "ends_on_user",
            WARNING,
            "Ends on the user's turn",
            "The last turn is not trained on; add its answer, or cut it off.",
        ),
        Kind(
            "duplicate",
            WARNING,
            "Exact duplicate",
            "Leave the copies out: what is repeated is learnt by heart.",
        ),
        Kind(
            "near_duplicate", WARNING, "Near duplicate", "Look at both and leave one out if it adds nothing."
        ),
        Kind(
            "leakage",
            WARNING,
            "Validation row is also trained on",
            "Leave it out: it makes the validation loss look too good.",
        ),
        Kind(
            "special_tokens",
            WARNING,
            "Special tokens in text",
            "They are read as plain text; take them out if they slipped in. In text that a chat template has "
            "written, say that they are meant: among the columns, or --special-tokens.",
        ),
        Kind(
            "suspicious",
            WARNING,
            "Suspicious characters",
            "Invisible or control characters; clean them if they are not meant.",
        ),
        Kind(
            "placeholder",
            WARNING,
            "Placeholder in text",
            "Fill it in or take it out: an adapter learns to write it as it stands there.",
        ),
        Kind(
            "mojibake",
            WARNING,
            "Garbled letters",
            "UTF-8 was read as another encoding once; convert the source again.",
        ),
        Kind(
            "over_length",
            WARNING,
            "Longer than the max length",
            "Raise max_length, or choose what happens under over_length.",
        ),
        Kind(
            "no_end",
            WARNING,
            "No end token",
            "The base has no end token, so the adapter will not learn to stop.",
        ),
        Kind(
            "ignored_part",
            WARNING,
            "Part of a turn is not used",
            "Images and files beside the text are not trained on: put what belongs to the answer into its "
            "text, or leave the row out.",
        ),
        Kind(
            "unused_key",
            WARNING,
            "Key inside a turn that is not used",
            "Nothing is lost if it is a remark; what is meant to be said belongs into the turn's text.",
        ),
        Kind(
            "only_answers",
            WARNING,
            "Marked for training, but no answer",
            "Only an assistant's turns are trained on; a row of plain text is trained on as a whole.",
        ),
        Kind(
            "several_sequences",
            NOTE,
            "Became several sequences",
            "Each answer is trained in the context in which it will be asked for.",
        ),
        Kind(
            "folded",
            NOTE,
            "System turn put into the question",
            "The base's chat template has no system turn; use another base to keep it apart.",
        ),
        Kind(
            "joined",
            NOTE,
            "Neighbouring turns joined",
            "It was chosen for the data set; turn it off to keep them apart.",
        ),
        Kind(
            "reasoning_inside",
            NOTE,
            "Reasoning written into the answer",
            "The base's chat template has no place for it, so the adapter learns to write <think> … "
            "</think>.",
        ),
        Kind(
            "thinking_closed",
            NOTE,
            "Answer without reasoning",
            "The base is asked to think; these answers teach it to stop thinking at once. Add their "
            "reasoning, or give the template enable_thinking = false.",
        ),
        Kind(
            "name_left_out",
            WARNING,
            "Name of a speaker left out",
            "The base's chat template writes no names; put it into the turn's text if it matters.",
        ),
        Kind(
            "tools_read",
            NOTE,
            "Tools taken out of the system turn",
            "The base's chat template writes them in its own words.",
        ),
        Kind(
            "call_text",
            WARNING,
            "Tool call not as it stands in the text",
            "Templates write an answer's words first and then its calls, each JSON with name and arguments.",
        ),
        Kind(
            "separator",
            WARNING,
            "More than one separator",
            "The line is cut at the first one; check that it is the right one.",
        ),
        Kind(
            "unused_column",
            WARNING,
            "Column that is not used",
            "Choose it in the mapping if it belongs to the rows.",
        ),
        Kind(
            "class_balance",
            WARNING,
            "Uneven classes",
            "Add rows to the rare classes, or leave some of the frequent ones out.",
        ),
        Kind(
            "preferences",
            WARNING,
            "Preferences",
            "Look whether only good answers are trained on: how answers compare is not used.",
        ),
        Kind(
            "near_miss",
            WARNING,
            "Column that looks misspelled",
            "Rename it in the file, or choose it in the mapping.",
        ),
    )
}


def codes_of(level: str) -> list[str]:
    """The codes of all kinds of a level."""
    return [kind.code for kind in KINDS.values() if kind.level == level]
