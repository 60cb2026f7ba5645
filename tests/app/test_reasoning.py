"""Rows that think: two hundred of them train, the answer thinks, and the playground folds that away."""

from dataclasses import asdict

import numpy as np
import torch

from app.web.parts.markdown import answer_html
from app.web.sections.data.token_markup import token_facts_html, tokens_html
from core.data.conversations import conversation_rows
from core.data.dataset_file import Findings, StoredRow
from core.data.formats import Example
from core.data.token_report import token_report
from core.data.token_view import row_view
from core.data.tokens import tokenised_in_memory
from core.events import EvalDone, Prepared, TrainingDone
from core.generate.config import GenerationConfig
from core.generate.decode import Decoder, RowRequest
from core.lora.config import LoraConfig
from core.lora.mixed_bank import loaded_bank
from core.train.config import TrainConfig
from core.train.group import TrainingGroup, alone
from core.train.run import RunRequest
from core.train.training_options import TrainingOptions
from tests.core.helpers import load
from tests.core.test_answers_in_context import THINKS, TRAITS, renderer
from tests.workbenches import write_refusing_template


def test_two_hundred_rows_that_think_train_and_their_thoughts_are_folded(tiny_llama, tmp_path):
    asked = {"role": "user", "content": "hello"}
    answered = {"role": "assistant", "content": "fine thanks", "reasoning_content": "hello"}
    turns = [asked, answered, asked, answered]
    base = load(write_refusing_template(tiny_llama, tmp_path / "thinks", TRAITS[THINKS]))
    rows = conversation_rows([turns] * 200, base.renderer, 128, validation_rows=10)
    assert (len(rows), int(rows.validation.sum())) == (400, 20)
    options = TrainingOptions(
        LoraConfig(rank=8, alpha=16, modules_to_save="embedding,head"),
        TrainConfig(learning_rate=3e-2, max_steps=40, eval_steps=40, micro_batch_size=4),
    )
    group = TrainingGroup(base, [RunRequest("run", rows, options)])
    events, adapter = [], None
    for event in alone(group):
        events.append(event)
        adapter = group.adapter("run") if isinstance(event, TrainingDone) else adapter
    (prepared,) = (one for one in events if isinstance(one, Prepared))
    assert (prepared.train_rows, prepared.train_sequences, prepared.validation_rows) == (190, 380, 10)
    losses = [one.loss for one in events if isinstance(one, EvalDone)]
    assert losses[-1] < 0.1 < losses[0]
    said = _answer(base, adapter, turns[:3])
    assert said == "<think>\nhello\n</think>\n\nfine thanks"
    shown = answer_html(said)
    assert "<details class='thinking'><summary>Thinking</summary><p>hello</p>" in shown
    assert shown.endswith("</details><p>fine thanks</p>\n")


def test_the_page_shows_each_sequence_of_a_row_and_how_many_there_are(tokenizer):
    found = renderer(tokenizer, TRAITS[THINKS])
    turn = {"role": "assistant", "content": "fine", "reasoning": "hm"}
    row = Example(1, ({"role": "user", "content": "hello"}, turn, {"role": "user", "content": "<b>"}, turn))
    shown = tokens_html(asdict(row_view(found, row)))
    assert "Sequence 1 of 2" in shown
    assert "Sequence 2 of 2" in shown
    assert "It became 2 sequences of its 2 answers" in shown
    assert "<b>" not in shown
    file, keep = tokenised_in_memory([StoredRow(1, 0, row)] * 3, found), np.ones(3, bool)
    report = asdict(token_report(file, keep, ~keep, 64, Findings()))
    assert "3 rows become 6 sequences, one row up to 2" in token_facts_html(report, 4)
    assert "2 row by row" in token_facts_html(report, 4)


@torch.no_grad()
def _answer(base, adapter, messages):
    """The likeliest one, as the playground has it."""
    ids = base.renderer.encode_prompt(messages)
    config = GenerationConfig(max_tokens=60, temperature=0.0)
    decoder = Decoder(base, loaded_bank(base.layers, [adapter]), [RowRequest(ids, 0, config)])
    return "".join(event.text for events in decoder.steps() for event in events)
