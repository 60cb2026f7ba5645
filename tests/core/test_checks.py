"""What is found in rows without a tokenizer, and what is done about it: duplicates, splits, versions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.data.checks import warnings
from core.data.dataset_file import DatasetFile, Findings
from core.data.detection import detect_file
from core.data.findings import KINDS
from core.data.formats import Example
from core.data.importing import import_files, rewritten
from core.data.split import Split, assign
from core.data.version import Version, excluding, first_version, grown, split_anew, split_sentence
from core.data.zipped import Source
from core.errors import InvalidConfig
from tests.core.data_files import lines, take


def _row(*turns, number=1):
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return Example(number, tuple({"role": roles[turn[0]], "content": turn[2:]} for turn in turns))


@pytest.mark.parametrize(
    ("row", "codes"),
    [
        (_row("u hi", "a hello"), []),
        (_row("u hi", "u again", "a hello"), ["two_in_a_row"]),
        (_row("u hi", "a hello", "a more"), ["two_in_a_row"]),
        (_row("u hi", "a hello", "u bye"), ["ends_on_user"]),
        (_row("u  ", "a hello"), ["empty_prompt"]),
        (_row("u hi", "a done<|im_end|>"), ["special_tokens"]),
        (_row("u [INST] hi [/INST]", "a x</s>"), ["special_tokens"]),
        (_row("u a < b and [1]", "a 3 > 2"), []),
        (_row("u zero\u200bwidth", "a x"), ["suspicious"]),
        (_row("u bell\x07", "a x"), ["suspicious"]),
        (_row("u left\u202eright", "a x"), ["suspicious"]),
        (_row("u lost \ufffd", "a x"), ["suspicious"]),
        (_row("u café, naïve, São Paulo, “quoted” – ok\n\ttab", "a 日本語 👩‍🚀"), []),
        (_row("u \u200fمرحبا (ABC)\u200e \u2067שלום\u2069", "a x"), []),
        (_row("u สวัสดี\u200bครับ", "a ជំរាប\u200bសួរ 日本\u200b語"), []),
        (_row("u مرحبا\u202eabc", "a x"), ["suspicious"]),
        (_row("u مرحبا\u200b", "a x"), ["suspicious"]),
        (_row("u left\u200fright", "a x"), ["suspicious"]),
        (_row("u <image>\nWhat is it?", "a A cat."), ["placeholder"]),
        (_row("u <image_1> and <audio>", "a x"), ["placeholder"]),
        (_row("u Dear {{name}}, hi", "a Hi {{ user.name }}"), ["placeholder"]),
        (_row("u <rss><image>x</image></rss>", "a <video controls>"), []),
        (_row("u $x^{{ab}}$ \\frac{{ab}}{{cd}}", "a {'a': {'b': {}}} {{}}"), []),
        (_row("u cafÃ©", "a x"), ["mojibake"]),
        (_row("u itâ€™s", "a x"), ["mojibake"]),
    ],
)
def test_warnings_of_a_row(row, codes):
    assert [code for code, _ in warnings(row)] == codes
    assert all(detail.endswith(".") for _, detail in warnings(row))


def test_every_kind_of_finding_has_a_remedy():
    assert all(
        kind.title and kind.remedy.endswith((".", ":")) and kind.level in ("error", "warning", "note")
        for kind in KINDS.values()
    )


def test_copies_are_found_exactly(tmp_path):
    rows = [{"prompt": f"question {i % 7}", "completion": f"answer {i % 7}"} for i in range(20)]
    _, _, found = take(tmp_path, "a.jsonl", lines(*rows), near=False)
    assert [(number, code) for number, code, _ in found] == [(number, "duplicate") for number in range(8, 21)]
    assert found[0][2] == "The same as row 1."


def test_rows_that_teach_something_else_are_no_copies(tmp_path):
    """Of the same words: with other tools, another template's argument, or another answer that counts."""
    asked, answered = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
    turns = [asked, answered, asked, answered]
    rows = [
        {"messages": turns},
        {"messages": turns, "tools": [{"name": "find"}]},
        {"messages": turns, "tools": [{"name": "look"}]},
        {"messages": turns, "chat_template_kwargs": {"enable_thinking": False}},
        {"messages": [asked, answered | {"weight": 0}, asked, answered]},
    ]
    _, _, found = take(tmp_path, "a.jsonl", lines(*rows, *rows), near=False)
    assert [(number, code) for number, code, _ in found] == [(number, "duplicate") for number in range(6, 11)]


def test_near_copies_are_found_and_others_are_not(tmp_path):
    words = [f"word{i}" for i in range(60)]
    other = [f"else{i}" for i in range(60)]
    rows = [
        " ".join(words),
        " ".join(other),
        " ".join([*words[:59], "changed"]),
        " ".join(words[:30] + other[:30]),
    ]
    _, _, found = take(tmp_path, "a.jsonl", lines(*({"text": text} for text in rows)))
    assert [(number, code) for number, code, _ in found] == [(3, "near_duplicate")]
    assert "the same as row 1" in found[0][2]
    (tmp_path / "again").mkdir()
    _, _, found = take(tmp_path / "again", "a.jsonl", lines(*({"text": text} for text in rows)), near=False)
    assert found == []


def test_classes_that_differ_by_blanks_around_are_one(tmp_path):
    rows = [{"text": f"row {i}", "label": label} for i, label in enumerate(["yes", "yes ", " no", "no"])]
    summary, _, _ = take(tmp_path, "a.jsonl", lines(*rows), near=False)
    assert summary.labels == {"yes": 2, "no": 2}


def test_uneven_classes_are_said(tmp_path):
    rows = [{"text": f"row {i}", "label": "common"} for i in range(50)] + [{"text": "odd", "label": "rare"}]
    summary, _, found = take(tmp_path, "a.jsonl", lines(*rows), near=False)
    assert summary.labels == {"common": 50, "rare": 1}
    assert found == [(0, "class_balance", "2 classes, from 1 row (rare) to 50 (common).")]


@pytest.mark.parametrize("counts", [(1, 1, 1), (2, 1, 1), (3, 1), (30, 2)])
def test_few_rows_of_many_classes_are_not_uneven(tmp_path, counts):
    rows = [{"text": f"row {at} {i}", "label": f"c{at}"} for at, n in enumerate(counts) for i in range(n)]
    _, _, found = take(tmp_path, "a.jsonl", lines(*rows), near=False)
    assert found == []


def _with_validation(tmp_path, training, validation):
    for name, rows in (("train.jsonl", training), ("valid.jsonl", validation)):
        (tmp_path / name).write_text(lines(*rows))
    (tmp_path / "rows").mkdir()
    sources = [
        Source(tmp_path / "train.jsonl", "train.jsonl"),
        Source(tmp_path / "valid.jsonl", "valid.jsonl", True),
    ]
    summary = import_files(
        sources, detect_file(sources[0].path).require("t").mapping, tmp_path / "rows", near=False
    )
    return summary, DatasetFile(tmp_path / "rows"), Findings.read(tmp_path / "rows")


def test_validation_rows_that_are_trained_on_are_found(tmp_path):
    training = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(5)]
    validation = [
        training[2],
        {"prompt": "p3", "completion": "another"},
        {"prompt": "new", "completion": "c"},
    ]
    summary, rows, found = _with_validation(tmp_path, training, validation)
    assert [(one.index, one.code, one.detail) for one in found.some()] == [
        (5, "leakage", "The row is also row 3 of train.jsonl, which is trained on."),
        (6, "leakage", "The question is also row 4 of train.jsonl, which is trained on."),
    ]
    version = first_version("d", rows, Split("file"), summary.validation_files)
    assert version.validation.tolist() == [False] * 5 + [True] * 3


# Splits.


def _assign(split, hashes, labels=None, prompts=None):
    hashes = np.asarray(hashes, np.uint64)
    prompts = hashes if prompts is None else np.asarray(prompts, np.uint64)
    return assign(split, hashes, prompts, labels or [""] * len(hashes), np.zeros(len(hashes), bool))


def test_the_same_seed_gives_the_same_split_and_another_another():
    hashes = np.arange(1, 1001)
    first, again, other = (_assign(Split(share=0.1, seed=seed), hashes) for seed in (1, 1, 2))
    assert first.sum() == again.sum() == other.sum() == 100
    assert (first == again).all()
    assert (first != other).any()


@given(st.lists(st.integers(0, 30), min_size=12, max_size=200), st.integers(0, 5))
def test_copies_stay_on_one_side_and_faulty_rows_train(hashes, seed):
    found = _assign(Split(share=0.2, seed=seed), hashes)
    for one in set(hashes):
        sides = found[np.asarray(hashes) == one]
        assert sides.all() or not sides.any()
    assert not found[np.asarray(hashes) == 0].any()
    assert found.sum() <= round(0.2 * sum(one != 0 for one in hashes)) + 1


def test_rows_that_ask_the_same_stay_on_one_side_where_enough_differ():
    prompts = np.repeat(np.arange(1, 101), 4)
    found = _assign(Split(share=0.1), np.arange(1, 401), prompts=prompts)
    assert found.sum() == 40
    assert not set(prompts[found]) & set(prompts[~found])
    same = _assign(Split(share=0.1), np.arange(1, 401), prompts=np.ones(400))
    assert same.sum() == 40


def test_a_split_that_falls_short_or_shares_questions_says_so(tmp_path):
    rows = [{"prompt": f"p{i // 2}", "completion": f"c{i // 2}"} for i in range(40)]
    _, stored, _ = take(tmp_path, "a.jsonl", lines(*rows), near=False)
    version = first_version("d", stored, Split("count", count=5))
    assert split_sentence(version, stored).endswith("; 4 rows, since rows that say the same stay together")
    (tmp_path / "same").mkdir()
    _, stored, _ = take(
        tmp_path / "same",
        "a.jsonl",
        lines(*({"prompt": "p", "completion": f"c{i}"} for i in range(40))),
        near=False,
    )
    version = first_version("d", stored, Split("count", count=5))
    assert "the questions of 5 of them are trained on too" in split_sentence(version, stored)


def test_a_shared_system_prompt_does_not_make_rows_near_copies(tmp_path):
    rules = " ".join(f"rule{i}" for i in range(100))
    rows = [
        {"system": rules, "prompt": " ".join(f"q{i}w{n}" for n in range(9)), "completion": f"a{i}"}
        for i in range(20)
    ]
    _, _, found = take(tmp_path, "a.jsonl", lines(*rows))
    assert found == []


def test_a_split_draws_from_the_rows_that_are_not_left_out(tmp_path):
    _, rows, _ = take(
        tmp_path, "a.jsonl", lines(*({"prompt": f"p{i}", "completion": "c"} for i in range(80))), near=False
    )
    left = excluding(first_version("d", rows, Split("none")), range(40))
    half = split_anew(left, rows, Split(share=0.5))
    assert (half.validation.sum(), (half.validation & half.excluded).sum()) == (20, 0)
    with pytest.raises(InvalidConfig, match="40 usable rows"):
        split_anew(left, rows, Split("count", count=50))


def test_a_stratified_split_takes_its_share_of_each_class():
    labels = ["a"] * 100 + ["b"] * 50 + ["c"] * 10
    found = _assign(Split("count", count=16, stratify=True), np.arange(1, 161), labels)
    assert [found[:100].sum(), found[100:150].sum(), found[150:].sum()] == [10, 5, 1]


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ({"kind": "other"}, "one of share, count, file, none"),
        ({"share": 0.9}, "at most 0.5"),
        ({"kind": "count", "count": 0}, "at least 1"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_a_split_that_cannot_be_is_refused(split, said):
    with pytest.raises(InvalidConfig, match=said):
        Split(**split)


@pytest.mark.parametrize(
    ("split", "said"), [(Split("count", count=9), "leave nothing"), (Split(stratify=True), "no column")]
)
def test_a_split_that_does_not_fit_the_rows_is_refused(split, said):
    with pytest.raises(InvalidConfig, match=said):
        _assign(split, range(1, 10))


def test_small_data_keeps_one_row_and_very_small_data_none():
    assert _assign(Split(), range(1, 11)).sum() == 1
    assert _assign(Split(), range(1, 10)).sum() == 0


# Versions.


def test_a_version_is_read_back_and_changes_keep_the_rest(tmp_path):
    content = lines(*({"prompt": f"p{i}", "completion": f"c{i}"} for i in range(30))) + "{\n"
    _, rows, _ = take(tmp_path, "a.jsonl", content, near=False)
    version = first_version("d" * 64, rows, Split(share=0.1))
    assert (version.validation.sum(), version.faulty(rows)) == (3, 1)
    left = excluding(version, [0, 30])
    assert (left.faulty(rows), left.usable(rows).sum()) == (0, 29)
    assert excluding(left, [0], back=True).excluded.tolist() == [False] * 30 + [True]
    anew = split_anew(left, rows, Split("count", count=5, seed=3))
    assert (anew.validation.sum(), anew.excluded.sum()) == (5, 2)
    (tmp_path / "v").mkdir()
    anew.write(tmp_path / "v")
    again = Version.read(tmp_path / "v")
    assert (again.rows, again.split) == (anew.rows, anew.split)
    assert (again.validation == anew.validation).all()
    assert (again.excluded == anew.excluded).all()


def test_edited_rows_are_checked_again_and_the_others_stay(tmp_path):
    content = lines(
        {"prompt": "p0", "completion": "c0"}, {"prompt": "p1"}, {"prompt": "p2", "completion": "c2"}
    )
    summary, rows, _ = take(tmp_path, "a.jsonl", content)
    (tmp_path / "new").mkdir()
    changes = {1: _row("u p0", "a c0", number=2)}
    again = rewritten(
        tmp_path / "rows", changes, [_row("u new", "a row\x07", number=4)], summary, tmp_path / "new"
    )
    found, stored = Findings.read(tmp_path / "new"), DatasetFile(tmp_path / "new")
    assert (summary.faulty, again.faulty, again.rows) == (1, 0, 4)
    assert [(one.index, one.code) for one in found.some()] == [(1, "duplicate"), (3, "suspicious")]
    assert [one.row for one in stored] == [1, 2, 3, 4]
    assert stored[2] == rows[2]
    version = grown(first_version("d", rows, Split("none")), "e", 4)
    assert version.usable(stored).all()


def test_faults_keep_their_sentence_when_other_rows_are_edited(tmp_path):
    content = lines(
        {"prompt": "p0", "completion": "c0"}, {"prompt": "p1"}, {"prompt": "p2", "completion": "c2"}
    )
    summary, _, found = take(tmp_path, "a.jsonl", content)
    (tmp_path / "new").mkdir()
    rewritten(tmp_path / "rows", {0: _row("u x", "a y")}, [], summary, tmp_path / "new")
    assert [one.detail for one in Findings.read(tmp_path / "new").some()] == [detail for *_, detail in found]
