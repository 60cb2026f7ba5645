"""Sequence classification, with transformers and PEFT as the oracle: tiny random encoders and decoders."""

import copy
import dataclasses
import shutil

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

from core.base_model.model_config import classifier_class
from core.base_model.skeleton import skeleton
from core.base_model.soundness import require_sound
from core.data.dataset_file import StoredRow
from core.data.formats import Example
from core.data.labelled_rows import LabelledRows, labels_in, targets_of
from core.data.labels import MULTI, REGRESSION, SINGLE, LabelSet, fitting, label_set, stored_labels
from core.data.plain_texts import Texts, closing_count, cut, text_ids
from core.data.tokens import tokenised
from core.errors import InvalidData
from core.events import EvalDone, StepDone, TrainingDone
from core.export.classifiers_out import named_tensors, state_labels
from core.export.companions import copy_companions
from core.files.safetensors_file import read_header
from core.lora.config import LoraConfig
from core.lora.peft.files import differing_layers, load_adapter, save_adapter, save_checked
from core.merge.merge import merge_into_base
from core.reporting import silent
from core.train.config import TrainConfig
from core.train.group import TrainingGroup
from core.train.label_report import metrics_and_report, most_confused
from core.train.label_step import counts, right_rows
from core.train.objectives.classification import ClassificationConfig
from core.train.run import RunRequest
from core.train.run_state import RunState
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
FULL = LoraConfig(kind="full")


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


def _request(base, folder, rows=ROWS, key="run", problem_type=SINGLE, lora=LORA, **train):
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
    return RunRequest(key, found, TrainingOptions(lora, config, objective=own))


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


@pytest.mark.parametrize(
    ("name", "lora"),
    [*((name, LORA) for name in BASES), *((name, FULL) for name in ("bert with a head", "deberta", "gpt2"))],
)
def test_what_is_merged_is_a_whole_model_of_transformers_own(name, lora, made, tmp_path):
    _merged_equals_live(load(made(name)), lora, tmp_path)


def test_a_file_that_begins_with_whole_numbers_is_merged_as_well(made, tmp_path):
    """Older releases of transformers stored BERT's positions, int64, and they come first in the file."""
    folder = shutil.copytree(made("bert"), tmp_path / "older")
    stored = load_file(folder / "model.safetensors")
    save_file({**stored, "embeddings.position_ids": torch.arange(66)[None]}, folder / "model.safetensors")
    assert read_header(folder / "model.safetensors").tensors[0].dtype == "I64"
    _merged_equals_live(load(folder), LORA, tmp_path)


def _merged_equals_live(base, lora, tmp_path):
    request = _request(base, tmp_path, lora=lora, max_steps=3, learning_rate=1e-2)
    group, found = TrainingGroup(base, [request]), []
    _follow(group, lambda key, event: found.append(group.adapter(key)) if isinstance(event, StepDone) else 0)
    (tmp_path / "out").mkdir()
    layers, named = skeleton(base.folder), named_tensors(base.folder)
    how = {"named": named, "added": found[-1].head}
    merge_into_base(base.folder, found[-1], layers.transposed, tmp_path / "out", silent, {}, **how)
    copy_companions(base.folder, tmp_path / "out")
    state_labels(tmp_path / "out" / "config.json", base.folder, found[-1].labels)
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    assert model.config.id2label == {0: "bad", 1: "good", 2: "so so"}
    (ours,) = _scores(base, [found[-1]], TEXTS)
    ids = [torch.tensor(one) for one in text_ids(base.tokenizer, TEXTS)]
    with torch.no_grad():
        theirs = torch.cat([model.eval()(input_ids=row[None]).logits for row in ids])
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


def test_a_run_that_goes_on_ends_where_it_would_have(made, tmp_path):
    base, saved = load(made("bert for masks")), []
    whole, events = _follow(TrainingGroup(base, [_request(base, tmp_path, max_steps=6, eval_steps=2)]))
    group = TrainingGroup(base, [_request(base, tmp_path, max_steps=6, eval_steps=2)])

    def save(key, event):
        if isinstance(event, EvalDone) and event.step == 2 and group.told("run", 2):
            save_adapter(tmp_path, group.adapter("run"), modules=base.layer_shapes)
            group.state("run").save(tmp_path)
            saved.append(load_adapter(tmp_path, base.layer_shapes, base.head))
            group.stop("run")

    _follow(group, save)
    request = _request(base, tmp_path, max_steps=6, eval_steps=2)
    request = dataclasses.replace(request, resume=(saved[0], RunState.load(tmp_path)))
    resumed, after = _follow(TrainingGroup(base, [request]))
    assert not differing_layers(resumed["run"], whole["run"])
    reports, all_of_them = ([one.report for one in _judged(of["run"])] for of in (after, events))
    assert reports == all_of_them[-2:]


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


def test_figures_are_those_of_their_definitions():
    """Precision, recall and F1 as scikit-learn defines them, R² likewise; a label that nothing is told of has
    0.
    """
    labels = LabelSet(SINGLE, ("a", "b", "c"))
    table = [3, 1, 0, 2, 2, 0, 1, 0, 0]  # rows by their own label and the one told
    found, report = metrics_and_report(labels, (500.0, 9), table)
    assert report["confusion"] == [[3, 1, 0], [2, 2, 0], [1, 0, 0]]
    assert report["by_label"] == [
        pytest.approx(row) for row in ([0.5, 0.75, 0.6, 4], [2 / 3, 0.5, 4 / 7, 4], [0, 0, 0, 1])
    ]
    assert found == pytest.approx({"accuracy": 500 / 9, "macro_f1": 100 * (0.6 + 4 / 7) / 3})
    assert most_confused(report)[0] == ("b", "a", 2)

    several = LabelSet(MULTI, ("a", "b"))
    scores, targets = torch.tensor([[1.0, -1], [2, 3], [-1, 1]]), torch.tensor([[1.0, 0], [1, 0], [1, 1]])
    there = torch.ones(3)
    assert right_rows(scores, targets, several).tolist() == [True, False, False]
    _, report = metrics_and_report(several, (100.0, 3), counts(scores, targets, there, several).tolist())
    assert report["by_label"] == [pytest.approx([1, 2 / 3, 0.8, 3]), pytest.approx([0.5, 1, 2 / 3, 1])]

    number = LabelSet(REGRESSION, ("value",))
    values, told = torch.tensor([[1.0], [2], [4]]), torch.tensor([[1.5], [2], [3]])
    found, _ = metrics_and_report(number, (0.0, 3), counts(told, values, there, number).tolist())
    assert found == pytest.approx({"mean_error": 0.5, "r2": 1 - 1.25 / (14 / 3)})


def test_r2_of_values_that_are_far_from_zero_is_that_of_its_definition(made, tmp_path):
    """As of years: their squares are so large that float32 keeps nothing of how they differ."""
    values = [2020 + at // 6 % 3 for at in range(90)]
    rows = [(f"{TEXTS[at % 5]} {at}", str(value)) for at, value in enumerate(values)]
    base = load(made("bert"))
    request = _request(base, tmp_path, rows, problem_type=REGRESSION, max_steps=2)
    _, events = _follow(TrainingGroup(base, [request]))
    kept = np.array(values[5::6], np.float64)
    for event in (one for one in events["run"] if isinstance(one, EvalDone)):
        assert event.metrics["r2"] == pytest.approx(1 - event.loss / kept.var(), rel=1e-4)


@pytest.mark.parametrize(
    ("problem_type", "answers", "said"),
    [
        (SINGLE, ["one", "two", "three"], "3 different answers"),
        (SINGLE, ["same", "same"], "the same label"),
        (REGRESSION, ["1", "much"], "'much' is no number"),
        (MULTI, ["", " , "], "No row has a label"),
    ],
)
def test_answers_that_are_no_labels_are_refused(problem_type, answers, said):
    with pytest.raises(InvalidData, match=said):
        label_set(problem_type, answers, ",")


def test_labels_are_in_order_and_a_stored_head_fits_those_of_its_names():
    assert label_set(SINGLE, ["10", "9", "b", "a", "9"], ",").names == ("9", "10", "a", "b")
    own = LabelSet(SINGLE, ("b", "a"))
    assert fitting(LabelSet(SINGLE, ("a", "b")), own) == own
    assert fitting(LabelSet(SINGLE, ("a", "c")), own) is None
    nameless = stored_labels({"id2label": {"1": "LABEL_1", "0": "LABEL_0"}})
    assert fitting(LabelSet(SINGLE, ("a", "c")), nameless) == LabelSet(SINGLE, ("a", "c"))
    assert fitting(LabelSet(SINGLE, ("a", "b", "c")), nameless) is None
    assert LabelSet.from_json(own.to_json()) == own
    assert LabelSet.from_json('{"problem_type": "x", "names": ["a"]}') is None


def test_a_long_text_is_cut_as_transformers_cuts_it(made, tmp_path):
    base = load(made("bert"))
    text = "hello world " * 40
    for tokenizer in (base.tokenizer, _with_closing(base.tokenizer)):
        (whole,) = text_ids(tokenizer, [text])
        wanted = tokenizer(text, truncation=True, max_length=20)["input_ids"]
        assert cut(whole, 20, closing_count(tokenizer)) == wanted


def _with_closing(tokenizer):
    """The same with a special token before and behind each text."""
    from tokenizers.processors import TemplateProcessing

    found = copy.deepcopy(tokenizer)
    ids = [("<|im_start|>", found.bos_token_id), ("<|im_end|>", found.eos_token_id)]
    found.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=ids
    )
    return found


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


def test_adapters_of_several_kinds_tell_labels_side_by_side(made, tmp_path):
    """A head goes with whatever changes the layers; PEFT computes the same from the files of each."""
    folder = made("bert for masks")
    base = load(folder)
    kinds = {name: dataclasses.replace(LORA, kind=name) for name in ("lora", "dora", "miss", "pissa")}
    train = {"max_steps": 4, "learning_rate": 1e-2}
    requests = [_request(base, tmp_path, ROWS, key, lora=lora, **train) for key, lora in kinds.items()]
    together, _ = _follow(TrainingGroup(base, requests))
    scores = dict(zip(together, _scores(base, list(together.values()), TEXTS), strict=True))
    for request in requests:
        key = request.key
        alone, _ = _follow(TrainingGroup(base, [request]))
        torch.testing.assert_close(_scores(base, [alone[key]], TEXTS)[0], scores[key], atol=1e-4, rtol=1e-4)
        (tmp_path / key).mkdir()
        peft = _peft(folder, base, together[key], tmp_path / key)
        with torch.no_grad():
            ids = [torch.tensor(one) for one in text_ids(base.tokenizer, TEXTS)]
            theirs = torch.cat([peft(input_ids=row[None]).logits for row in ids])
        torch.testing.assert_close(scores[key], theirs, atol=1e-4, rtol=1e-4)


def _judged(events):
    return [one for one in events if isinstance(one, EvalDone)]


@pytest.mark.parametrize(
    ("said", "names", "targets"),
    [
        (["[0, 2]", "[2]", "[]", "[10, 2]"], ("0", "2", "10"), [[1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 1, 1]]),
        (["['a', 'b, c']", '["b, c"]'], ("a", "b, c"), [[1, 1], [0, 1]]),
        (["['a' 'b']", "['a']"], ("a", "b"), [[1, 1], [1, 0]]),
        (["a, [b", "[b"], ("[b", "a"), [[1, 1], [1, 0]]),
    ],
)
def test_several_labels_may_be_a_list_of_texts_or_numbers(said, names, targets):
    """As pandas writes lists into CSV files, and as JSON has them."""
    found = label_set(MULTI, said, ",")
    assert found.names == names
    assert [found.target(one, ",") for one in said] == targets


def test_a_list_of_labels_holds_no_objects():
    with pytest.raises(InvalidData, match=r"'id': 1.*expected texts or numbers"):
        label_set(MULTI, ["[{'id': 1}]"] * 2, ",")
