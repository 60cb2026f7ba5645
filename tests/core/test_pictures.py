"""Models that read pictures beside text: what reads text trains, answers and is exported, the rest stays."""

import pytest
import torch
from safetensors.torch import load_file

from core.base_model.describe import describe
from core.errors import InvalidConfig, InvalidModel
from core.export.duties import PASSED
from core.lora.config import LoraConfig
from core.train.config import TrainConfig
from tests.conftest import _save
from tests.core.families import PICTURES, TINY, tiny_model
from tests.core.helpers import load, random_adapter, train_alone
from tests.core.test_export_companions import checked, exported
from tests.core.test_general_way import _rows

TRAIN = TrainConfig(max_steps=2, micro_batch_size=2, max_length=96)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    model = tiny_model("gemma3", **PICTURES["gemma3"])
    return _save(model, tokenizer, tmp_path_factory.mktemp("pictures") / "gemma3")


def test_it_is_described_by_the_part_that_reads_text(folder):
    info = describe(folder)
    sizes = (info.layers, info.hidden_size, info.vocab_size, info.context_length)
    assert sizes == tuple(
        TINY[name] for name in ("num_hidden_layers", "hidden_size", "vocab_size", "max_position_embeddings")
    )
    assert info.architecture == "Gemma3ForConditionalGeneration"
    assert load(folder).context_length == info.context_length


@pytest.mark.parametrize("options", [{"bias": "all"}, {"modules_to_save": "embed_tokens,lm_head"}])
def test_what_its_files_name_in_many_ways_is_not_trained_whole(folder, options):
    with pytest.raises(InvalidConfig, match="This model has no"):
        train_alone(load(folder), _rows("hello", 6), LoraConfig(rank=2, **options), TRAIN)


def test_it_is_not_trained_to_classify(folder):
    with pytest.raises(InvalidModel, match="reads pictures, too, and cannot be trained to classify"):
        load(folder).classifier  # noqa: B018


def test_full_fine_tuning_trains_what_reads_text(folder):
    trained, _ = train_alone(load(folder), _rows("hello", 6), LoraConfig(kind="full"), TRAIN)
    assert trained.whole
    assert all("language_model" in name for name in trained.whole)


def test_its_merged_export_is_checked_and_leaves_what_reads_pictures(folder, tmp_path):
    adapter = random_adapter(load(folder), rank=2)
    exported(folder, adapter, tmp_path / "out", format="safetensors", dtype="float32")
    finding = checked(folder, adapter, tmp_path / "out", tmp_path, format="safetensors", dtype="float32")
    assert finding["verdict"] == PASSED
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], one) for name, one in before.items() if "language" not in name)


def test_it_is_not_written_as_gguf(folder, tmp_path):
    with pytest.raises(InvalidModel, match="Gemma3ForConditionalGeneration"):
        exported(folder, random_adapter(load(folder), rank=2), tmp_path / "out", format="gguf")
