"""What the command line prints of several rows: each value under its own heading, and a sentence for none."""

import json

from app.cli.console import Console


def lines(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.strip(" ━─┃│┏┓┗┛└┘┡┩├┤╇┳┴┻╋")]


def test_rows_with_other_columns_have_each_value_under_its_own_heading(capsys):
    Console(False).records(
        [
            {"name": "mine", "accuracy": 0.5, "note": ""},
            {"name": "full", "note": "not started"},
            {"name": "base", "macro_f1": 0.25, "note": "measured"},
        ]
    )
    heading, mine, full, base = lines(capsys)
    at = {word: heading.index(word) for word in ("name", "accuracy", "macro f1", "note")}
    assert full[at["note"] :].startswith("not started")
    assert base[at["note"] :].startswith("measured")
    assert base[at["macro f1"] :].startswith("0.25")
    assert mine[at["accuracy"] :].startswith("0.5")
    assert full[at["accuracy"] :].startswith("–")


def test_no_rows_are_a_sentence_for_people_and_an_empty_list_for_programs(capsys):
    Console(False).records([])
    Console(False).records([], "Nothing in common.")
    assert capsys.readouterr().out.splitlines() == ["Nothing yet.", "Nothing in common."]
    Console(True).records([])
    assert json.loads(capsys.readouterr().out) == {"rows": []}
