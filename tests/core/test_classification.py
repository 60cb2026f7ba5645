"""Sequence classification, with transformers and PEFT as the oracle: tiny random encoders and decoders."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel

from core.base_model.model_config import classifier_class
from core.base_model.skeleton import skeleton
from core.base_model.soundness import require_sound
from core.data.dataset_file import StoredRow
from core.data.formats import Example
from core.data.labelled_rows import LabelledRows, labels_in, targets_of
from core.data.labels import MULTI, REGRESSION, SINGLE, LabelSet
from core.data.plain_texts import Texts, closing_count, text_ids
from core.data.tokens import tokenised
from core.events import EvalDone, StepDone, TrainingDone
from core.lora.config import LoraConfig
from core.lora.peft.files import load_adapter, save_checked
from core.train.config import TrainConfig
from core.train.group import TrainingGroup
from core.train.objectives.classification import ClassificationConfig
from core.train.run import RunRequest
from core.train.training_options import TrainingOptions
from tests.core.helpers import load

SMALL = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 66,
    "pad_token_id": 1,
}
RELATIVE = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "share_att_key": True,
    "position_buckets": 8,
    "position_biased_input": False,
    "type_vocab_size": 0,
}
BASES = {
    "bert": ("BertModel", SMALL),
    "bert for masks": ("BertForMaskedLM", SMALL),
    "bert with a head": ("BertForSequenceClassification", {**SMALL, "num_labels": 3}),
    "roberta": ("RobertaForMaskedLM", SMALL),
    "deberta": ("DebertaV2Model", {**SMALL, **RELATIVE}),
    "modernbert": ("ModernBertForMaskedLM", {**SMALL, "local_attention": 8}),
    "llama": ("LlamaForCausalLM", {**SMALL, "num_key_value_heads": 2}),
    "gpt2": (
        "GPT2LMHeadModel",
        {"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    ),
}
TEXTS = ["hello world", "the lazy dog jumps", "fine thanks", "how are you", "quick brown fox over the dog"]
ROWS = [(f"{TEXTS[at % 5]} {at}", ("good", "bad", "so so")[at % 3]) for at in range(24)]
LORA = LoraConfig(rank=4, alpha=8, dropout=0.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer):
    """A folder with the tiny model of this name."""
    folders = {}

    def make(name):
        if name not in folders:
            cls, about = BASES[name]
            model_class = getattr(transformers, cls)
            torch.manual_seed(0)
            folders[name] = tmp_path_factory.mktemp("base")
            model_class(model_class.config_class(**about)).save_pretrained(folders[name])
            tokenizer.save_pretrained(folders[name])
        return folders[name]

    return make


def _request(base, folder, rows=ROWS, key="run", problem_type=SINGLE, **train):
    """A run to classify, as the engine's process makes it of a row; every sixth row is for validation."""
    stored = [
        StoredRow(
            at, 0, Example(at, ({"role": "user", "content": text}, {"role": "assistant", "content": label}))
        )
        for at, (text, label) in enumerate(rows)
    ]
    file = tokenised(stored, f"{key}{len(rows)}", base.renderer, folder, sequences=Texts())
    labels, said = labels_in(stored, np.ones(len(rows), bool), problem_type, ",")
    found = LabelledRows(
        file,
        64,
        targets_of(labels, said, ","),
        labels,
        closing=closing_count(base.tokenizer),
        validation=np.arange(len(rows)) % 6 == 5,
    )
    config = TrainConfig(**{"objective": "classification", "max_length": 64, "learning_rate": 1e-3, **train})
    own = ClassificationConfig(problem_type=problem_type)
    return RunRequest(key, found, TrainingOptions(LORA, config, objective=own))


def _follow(group, at=lambda key, event: None):
    adapters, events = {}, {}
    for key, event in group.run():
        events.setdefault(key, []).append(event)
        if isinstance(event, TrainingDone):
            adapters[key] = group.adapter(key)
        at(key, event)
    return adapters, events


def _plain(folder, base, adapter):
    """transformers' own classifier of this base with the adapter's head."""
    config = transformers.AutoConfig.from_pretrained(folder)
    config.num_labels, config.problem_type = len(adapter.labels), adapter.labels.problem_type
    config.pad_token_id = base.classifier.pad_id
    model = classifier_class(config).from_pretrained(
        folder, config=config, dtype=torch.float32, ignore_mismatched_sizes=True
    )
    assert not model.load_state_dict(dict(adapter.head), strict=False).unexpected_keys
    return model.eval()


def _peft(folder, base, adapter, saved):
    save_checked(saved, adapter, base.layer_shapes, base.head)
    return PeftModel.from_pretrained(_plain(folder, base, adapter), saved, is_trainable=True).eval()


def _scores(base, adapters, texts):
    """Ours: all texts in one batch with each adapter, [adapters, texts, labels]."""
    from core.generate.labelling import classify

    return [torch.tensor(one.scores) for one in classify(base, adapters, texts)]


@pytest.mark.parametrize("name", BASES)
def test_a_base_is_trained_to_classify_and_peft_computes_the_same_from_its_file(name, made, tmp_path):
    folder = made(name)
    require_sound(folder)
    base = load(folder)
    assert skeleton(folder).shapes == base.layer_shapes
    adapters, events = _follow(
        TrainingGroup(base, [_request(base, tmp_path, max_steps=12, learning_rate=1e-2)])
    )
    adapter = adapters["run"]
    assert adapter.labels == LabelSet(SINGLE, ("bad", "good", "so so"))
    losses = [one.loss for one in events["run"] if isinstance(one, StepDone)]
    assert sum(losses[-3:]) < sum(losses[:3])

    (tmp_path / "saved").mkdir()
    peft = _peft(folder, base, adapter, tmp_path / "saved")
    (ours,) = _scores(base, [adapter], TEXTS)
    with torch.no_grad():
        for row, ids in enumerate(text_ids(base.tokenizer, TEXTS)):  # each alone, so without padding
            theirs = peft(input_ids=torch.tensor([ids])).logits[0]
            torch.testing.assert_close(ours[row], theirs, atol=1e-5, rtol=1e-5)
    # and what PEFT itself saves is read back here
    peft.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    found = load_adapter(tmp_path / "theirs", base.layer_shapes, base.head)
    assert found.labels.names == ("LABEL_0", "LABEL_1", "LABEL_2")
    torch.testing.assert_close(_scores(base, [found], TEXTS)[0], ours, atol=1e-5, rtol=1e-5)


PROBLEMS = {
    SINGLE: ROWS,
    MULTI: [
        (text, ("good", "good,bad", "", '["so so", "bad"]')[at % 4]) for at, (text, _) in enumerate(ROWS)
    ],
    REGRESSION: [(text, str(at / 10)) for at, (text, _) in enumerate(ROWS)],
}


@pytest.mark.parametrize(
    ("problem_type", "name"), [(SINGLE, "bert for masks"), (MULTI, "roberta"), (REGRESSION, "llama")]
)
def test_losses_are_those_of_transformers_and_peft_over_twenty_steps(problem_type, name, made, tmp_path):
    folder = made(name)
    base = load(folder)
    train = {
        "max_steps": 20,
        "micro_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "lr_scheduler": "constant",
    }
    request = _request(base, tmp_path, PROBLEMS[problem_type], "run", problem_type, warmup_ratio=0.0, **train)
    group, start = TrainingGroup(base, [request]), []
    _, events = _follow(group, lambda key, event: start or start.append(group.adapter("run")))
    ours = [one for one in events["run"] if isinstance(one, StepDone)]

    (tmp_path / "saved").mkdir()
    peft = _peft(folder, base, start[0], tmp_path / "saved")
    optimiser = torch.optim.AdamW(
        [one for one in peft.parameters() if one.requires_grad], lr=1e-3, weight_decay=0
    )
    from core.train.batches import RunData

    steps = RunData(request.rows, request.options.train).steps()
    for event in ours:
        numbers = [row for part in next(steps).micro_batches for (row,) in part.blocks]
        loss = _transformers_loss(peft, request.rows, numbers, base.classifier.pad_id)
        assert event.loss == pytest.approx(loss.item(), abs=1e-5, rel=1e-5)
        optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([one for one in peft.parameters() if one.requires_grad], 1.0)
        assert event.grad_norm == pytest.approx(float(norm), rel=1e-3)
        optimiser.step()


def _transformers_loss(model, rows, numbers, pad_id):
    """By transformers' own means: a padded batch, a mask, and `labels`."""
    ids = [torch.tensor(rows[number][0].copy()).long() for number in numbers]
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad_id)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in ids], batch_first=True)
    targets = torch.tensor(rows.targets[numbers])
    if rows.labels.problem_type == SINGLE:
        targets = targets[:, 0].long()
    return model(input_ids=padded, attention_mask=mask, labels=targets).loss


@pytest.mark.parametrize("name", ["bert for masks", "deberta", "llama"])
def test_adapters_with_other_labels_learn_together_what_each_learns_alone(name, made, tmp_path):
    base = load(made(name))
    two = [(text, ("yes", "no")[at % 2]) for at, (text, _) in enumerate(ROWS)]
    five = [(text, f"class {at % 5}") for at, (text, _) in enumerate(ROWS)]
    train = {"max_steps": 6, "eval_steps": 3}
    wanted = {"three": ROWS, "two": two, "five": five}
    requests = [_request(base, tmp_path, rows, key, **train) for key, rows in wanted.items()]
    # one of them ends earlier, so that the others move to another bank
    short = dataclasses.replace(requests[2].options.train, max_steps=3)
    requests[2] = dataclasses.replace(
        requests[2], options=dataclasses.replace(requests[2].options, train=short)
    )
    together, events = _follow(TrainingGroup(base, requests))
    for request in requests:
        alone, own = _follow(TrainingGroup(base, [request]))
        found, expected = together[request.key], alone[request.key]
        assert set(found.head) == set(expected.head)
        for path, tensor in expected.head.items():
            torch.testing.assert_close(found.head[path], tensor, atol=1e-5, rtol=1e-4)
        for path, layer in expected.layers.items():
            torch.testing.assert_close(found.layers[path].B, layer.B, atol=1e-5, rtol=1e-4)
        for one, other in zip(_judged(events[request.key]), _judged(own[request.key]), strict=True):
            assert one.loss == pytest.approx(other.loss, abs=1e-5)
            assert one.metrics == pytest.approx(other.metrics)
            assert one.report["confusion"] == other.report["confusion"]
    scores = _scores(base, list(together.values()), TEXTS)
    assert [one.shape for one in scores] == [(5, len(one.labels)) for one in together.values()]
    for adapter, own in zip(together.values(), scores, strict=True):
        torch.testing.assert_close(_scores(base, [adapter], TEXTS)[0], own, atol=1e-5, rtol=1e-5)


def _judged(events):
    return [one for one in events if isinstance(one, EvalDone)]
