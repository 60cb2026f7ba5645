"""Rows in blocks, and the cache of rendered rows."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import core.data.tokens as tokens
from core.data.dataset_file import StoredRow
from core.data.formats import Example
from core.data.packing import pack
from core.data.rendering import Renderer
from core.data.tokens import TokenFile, TokenRows, tokenised
from core.errors import InvalidData

ROWS = [
    Example(
        i,
        (
            {"role": "user", "content": f"hello {i}"},
            {"role": "assistant", "content": "fine thanks " * (1 + i % 7)},
        ),
    )
    for i in range(2500)
]


@given(st.lists(st.integers(1, 64), max_size=200), st.integers(0, 3))
def test_every_row_lies_in_one_block_and_no_block_is_too_full(lengths, seed):
    blocks = pack(lengths, 64, seed)
    assert sorted(row for block in blocks for row in block) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in block) <= 64 for block in blocks)


def test_blocks_are_nearly_full_on_rows_of_uneven_length():
    lengths = np.random.default_rng(0).lognormal(5, 0.7, 20_000).clip(8, 2048).astype(int).tolist()
    blocks = pack(lengths, 2048, 0)
    assert sum(lengths) / (2048 * len(blocks)) > 0.97
    assert blocks == pack(lengths, 2048, 0) != pack(lengths, 2048, 1)


def test_a_row_longer_than_a_block_is_refused():
    with pytest.raises(ValueError, match="65 tokens"):
        pack([3, 65], 64, 0)


def _tokenised(rows, digest, tokenizer, cache):
    return tokenised([StoredRow(one.row, 0, one) for one in rows], digest, Renderer(tokenizer), cache)


def test_rows_are_rendered_once_and_found_again_by_content(tokenizer, tmp_path, monkeypatch):
    first = TokenRows(_tokenised(ROWS, "d", tokenizer, tmp_path), 64)
    monkeypatch.setattr(Renderer, "render_many", lambda *about: pytest.fail("rendered again"))
    again = TokenRows(_tokenised(ROWS, "d", tokenizer, tmp_path), 64)
    assert len(first) == len(again) == len(ROWS)
    for index in (0, 999, 1000, 2499):
        for one, two in zip(first[index], again[index], strict=True):
            assert one.tolist() == two.tolist()


@pytest.mark.parametrize("change", ["data", "template"])
def test_other_content_is_rendered_anew(tokenizer, tmp_path, monkeypatch, change):
    _tokenised(ROWS[:5], "d", tokenizer, tmp_path)
    if change == "template":
        monkeypatch.setattr(tokenizer, "chat_template", tokenizer.chat_template.replace("\\n", " "))
    found = _tokenised(ROWS[:3], "e" if change == "data" else "d", tokenizer, tmp_path)
    assert len(found) == 3
    assert len(list(tmp_path.iterdir())) == 2


def test_a_row_that_cannot_be_rendered_is_named_and_can_be_left_out(tokenizer, tmp_path, monkeypatch):
    template = (
        "{% if 'hello 3' == messages[0]['content'] %}{{ raise_exception('not three') }}{% endif %}"
        + tokenizer.chat_template
    )
    monkeypatch.setattr(tokenizer, "chat_template", template)
    file = _tokenised(ROWS[:6], "d", tokenizer, tmp_path)
    assert list(file.problems) == [3]
    with pytest.raises(InvalidData, match=r"Row 3: .*not three.*leave such rows out"):
        TokenRows(file, 64)
    keep = np.array([True, True, True, False, True, True])
    assert len(TokenRows(file, 64, keep=keep)) == 5


def test_rows_with_a_fault_keep_their_place(tokenizer, tmp_path):
    rows = [
        StoredRow(one.row, 0, one, fault="missing" if at in (0, 2, 4) else "")
        for at, one in enumerate(ROWS[:5])
    ]
    file = tokenised(rows, "d", Renderer(tokenizer), tmp_path)
    assert [bool(length) for length in file.lengths] == [False, True, False, True, False]
    assert tokenizer.decode(TokenRows(file, 64)[1][0]).count("hello 3") == 1


def test_the_cache_forgets_what_was_unused_longest(tokenizer, tmp_path, monkeypatch):
    for number, digest in enumerate("abc"):
        _tokenised(ROWS[:5], digest, tokenizer, tmp_path)
        newest = max(tmp_path.iterdir(), key=os.path.getmtime)
        os.utime(newest, (number, number))
    sizes = sum(path.stat().st_size for path in tmp_path.iterdir())
    monkeypatch.setattr(tokens, "_KEPT_BYTES", sizes)
    _tokenised(ROWS[:5], "a", tokenizer, tmp_path)  # used again, so b is the oldest now
    _tokenised(ROWS[:5], "d", tokenizer, tmp_path)
    monkeypatch.setattr(Renderer, "render_many", lambda *about: pytest.fail("rendered again"))
    for digest in "acd":
        _tokenised(ROWS[:5], digest, tokenizer, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_damaged_file_of_rows_is_a_sentence(tmp_path):
    (tmp_path / "x.arrow").write_bytes(b"nothing of the kind")
    with pytest.raises(InvalidData, match=r"x\.arrow cannot be read"):
        TokenFile(tmp_path / "x.arrow")


@pytest.mark.parametrize("policy", ["truncate", "split", "drop"])
def test_supervised_tokens_are_counted_without_the_first_position(tokenizer, tmp_path, policy):
    rows = TokenRows(
        _tokenised([*ROWS[:9], Example(9, (), "plain text " * 9)], "d", tokenizer, tmp_path),
        24,
        over_length=policy,
    )
    for index in range(len(rows)):
        _, labels = rows[index]
        assert rows.supervised[index] == (labels[1:] != -100).sum() > 0


def test_each_policy_for_long_rows_loses_what_it_says(tokenizer, tmp_path):
    file = _tokenised(ROWS[:7], "d", tokenizer, tmp_path)
    whole = TokenRows(file, 1000)
    long = int((file.lengths > 24).sum())
    cut, split, dropped = (
        TokenRows(file, 24, over_length=policy) for policy in ("truncate", "split", "drop")
    )
    assert 0 < long < 7
    assert cut.truncated == split.truncated == dropped.truncated == long
    assert (cut.skipped, len(cut)) == (0, 7)
    assert (dropped.skipped, len(dropped)) == (long, 7 - long)
    assert cut.supervised.sum() < split.supervised.sum() <= whole.supervised.sum()
    joined = [token for row in range(len(split)) for token in split[row][0].tolist()]
    assert len(joined) > cut.lengths.sum()
