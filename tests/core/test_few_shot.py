"""The plain base behind examples in its prompt: the loss of the answers alone, and labels asked for."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from core.data.formats import Example
from core.data.rendering import IGNORE
from core.errors import InvalidData
from core.generate import few_shot
from core.generate.few_shot import prompted_labels, prompted_loss
from core.reporting import silent
from tests.core.test_variants import ROWS


def _turns(*texts: str) -> tuple[dict[str, str], ...]:
    roles = ("user", "assistant") * len(texts)
    return tuple({"role": role, "content": text} for role, text in zip(roles, texts, strict=False))


def _loss(base, example: Example, answers: int) -> tuple[float, int]:
    """The summed loss of the last answers of a conversation, read as a whole."""
    rendered = base.renderer.render(example)
    own = sum(
        one != IGNORE for one in base.renderer.render(Example(0, example.messages[-2 * answers :])).labels
    )
    labels, left = [], own
    for one in reversed(rendered.labels):
        labels.insert(0, one if one != IGNORE and left > 0 else IGNORE)
        left -= one != IGNORE
    with torch.no_grad():
        logits = base.model(input_ids=torch.tensor([rendered.ids])).logits[0]
    wanted = torch.tensor(labels)
    return float(cross_entropy(logits[:-1], wanted[1:], ignore_index=IGNORE, reduction="sum")), own


def test_only_the_rows_own_answers_count_behind_the_examples(loaded_llama):
    base, shots, rows = loaded_llama, ROWS[:2], ROWS[2:7]
    found = prompted_loss(base, shots, rows, 256, silent)
    turns = tuple(turn for one in shots for turn in one.messages)
    sums = [_loss(base, Example(0, (*turns, *row.messages)), 1) for row in rows]
    assert found.loss == pytest.approx(
        sum(one for one, _ in sums) / sum(count for _, count in sums), abs=1e-4
    )
    assert (found.rows, found.shortened) == (5, 0)
    assert found.prompt_tokens > 10
    plain = prompted_loss(base, (), rows, 256, silent)
    sums = [_loss(base, row, 1) for row in rows]
    assert plain.loss == pytest.approx(
        sum(one for one, _ in sums) / sum(count for _, count in sums), abs=1e-4
    )
    assert plain.prompt_tokens == 0


def test_a_system_message_stays_first_and_examples_give_way_to_the_context(loaded_llama):
    system = {"role": "system", "content": "be kind"}
    row = Example(0, (system, *_turns("hello", "fine thanks")))
    joined = few_shot._joined([Example(1, (system, *_turns("how", "good")))], row)
    assert [turn["content"] for turn in joined.messages] == ["be kind", "how", "good", "hello", "fine thanks"]
    many = [Example(at, _turns("hello " * 12, "fine " * 12)) for at in range(12)]
    found = prompted_loss(loaded_llama, many, ROWS[:2], 256, silent)
    assert (found.shortened, math.isfinite(found.loss)) == (2, True)
    with pytest.raises(InvalidData, match="no loss"):
        prompted_loss(loaded_llama, (), ROWS[:2], 2, silent)


def test_what_the_base_writes_is_held_against_the_labels(loaded_llama, monkeypatch):
    labels = ("good", "bad", "so so")
    rows = [Example(at, _turns(f"text {at}", labels[at % 3])) for at in range(6)]
    asked = []

    def answers(base, prompts, names):
        asked.extend(base.tokenizer.decode(ids) for ids in prompts)
        return iter([" Good.", "bad", "so so", "badly", "what", '"so so"'])

    monkeypatch.setattr(few_shot, "_answers", answers)
    found = prompted_labels(loaded_llama, rows[:2], rows, labels, silent)
    assert all("good" in one and "so so" in one and "text 0" in one for one in asked)
    assert found.metrics["accuracy"] == pytest.approx(100 * 4 / 6)
    assert found.metrics["macro_f1"] == pytest.approx(100 * (2 / 3 + 2 / 4 + 1) / 3)
    assert (found.unmatched, found.rows) == (1, 6)


def test_labels_are_asked_for_in_batches(loaded_llama):
    rows = [Example(at, _turns(f"hello {at}", ("yes", "no")[at % 2])) for at in range(10)]
    found = prompted_labels(loaded_llama, rows[:1], rows, ("yes", "no"), silent)
    assert (found.rows, set(found.metrics)) == (10, {"accuracy", "macro_f1"})
