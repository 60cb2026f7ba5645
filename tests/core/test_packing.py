"""Rows in blocks, and the cache of rendered rows."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import core.data.tokens as tokens
from core.data.formats import Example
from core.data.packing import pack
from core.data.tokens import TokenRows, tokenised
from core.errors import InvalidData

ROWS = [
    Example(i, ({"role": "user", "content": f"hello {i}"}, {"role": "assistant", "content": "fine thanks " * (1 + i % 7)}))
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


def test_rows_are_rendered_once_and_found_again_by_content(tokenizer, tmp_path, monkeypatch):
    first = tokenised(ROWS, "d", tokenizer, 64, tmp_path)
    monkeypatch.setattr(tokens, "render", lambda *about: pytest.fail("rendered again"))
    again = tokenised(ROWS, "d", tokenizer, 64, tmp_path)
    assert len(first) == len(again) == len(ROWS)
    for index in (0, 999, 1000, 2499):
        for one, two in zip(first[index], again[index], strict=True):
            assert one.tolist() == two.tolist()


@pytest.mark.parametrize("change", ["data", "length", "template"])
def test_other_content_is_rendered_anew(tokenizer, tmp_path, monkeypatch, change):
    tokenised(ROWS[:5], "d", tokenizer, 64, tmp_path)
    if change == "template":
        monkeypatch.setattr(tokenizer, "chat_template", tokenizer.chat_template.replace("\\n", " "))
    found = tokenised(ROWS[:3], "e" if change == "data" else "d", tokenizer, 32 if change == "length" else 64, tmp_path)
    assert len(found) == 3
    assert len(list(tmp_path.iterdir())) == 2


def test_a_row_that_cannot_be_rendered_leaves_no_file(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('no') }}")
    with pytest.raises(InvalidData, match="no"):
        tokenised(ROWS, "d", tokenizer, 64, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_cache_forgets_what_was_unused_longest(tokenizer, tmp_path, monkeypatch):
    for number, digest in enumerate("abc"):
        tokenised(ROWS[:5], digest, tokenizer, 64, tmp_path)
        newest = max(tmp_path.iterdir(), key=os.path.getmtime)
        os.utime(newest, (number, number))
    sizes = sum(path.stat().st_size for path in tmp_path.iterdir())
    monkeypatch.setattr(tokens, "_KEPT_BYTES", sizes)
    tokenised(ROWS[:5], "a", tokenizer, 64, tmp_path)  # used again, so b is the oldest now
    tokenised(ROWS[:5], "d", tokenizer, 64, tmp_path)
    monkeypatch.setattr(tokens, "render", lambda *about: pytest.fail("rendered again"))
    for digest in "acd":
        tokenised(ROWS[:5], digest, tokenizer, 64, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_damaged_file_of_rows_is_a_sentence(tmp_path):
    (tmp_path / "x.arrow").write_bytes(b"nothing of the kind")
    with pytest.raises(InvalidData, match=r"x\.arrow cannot be read"):
        TokenRows(tmp_path / "x.arrow")


def test_supervised_tokens_are_counted_without_the_first_position(tokenizer, tmp_path):
    rows = tokenised([*ROWS[:3], Example(9, (), "plain text")], "d", tokenizer, 64, tmp_path)
    for index in range(4):
        _, labels = rows[index]
        assert rows.supervised[index] == (labels[1:] != -100).sum()
