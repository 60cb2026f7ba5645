"""For tests of classification: a tiny encoder, labelled rows, and classifiers trained on them."""

import pytest

from core.train.training_options import TrainingOptions
from storage.tables import Run
from tests.workbenches import do_job, finish

MOODS = ("good", "bad", "so so")
CLASSIFYING = {
    "objective": "classification",
    "max_steps": 6,
    "eval_steps": 3,
    "micro_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "rank": 2,
    "learning_rate": 0.01,
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, tokenizer):
    """A tiny BERT without any head."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=320,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        pad_token_id=1,
    )
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def with_encoder(workbench, encoder, tmp_path):
    """The workbench with the base "bert" and the data set "moods"."""
    job = do_job(workbench, "add_model", {"origin": str(encoder), "name": "bert"})
    assert job.state == "finished", job.reason
    rows = [f"how are you {at} {MOODS[at % 3]},{MOODS[at % 3]}\n" for at in range(30)]
    (tmp_path / "moods.csv").write_text("text,label\n" + "".join(rows))
    workbench.datasets.add(tmp_path / "moods.csv", "moods")
    return workbench


@pytest.fixture
def trained_on(with_encoder, session):
    """A function that trains a classifier on a base, in this process."""

    def train(name, base="bert", data="moods", **options):
        given = TrainingOptions.parse({**CLASSIFYING, **options})
        run = with_encoder.training.start(base, data, given, name)
        finish(session.next())
        found = with_encoder.registry.get(Run, run.id)
        assert found.state == "finished", found.reason
        return found

    return train
