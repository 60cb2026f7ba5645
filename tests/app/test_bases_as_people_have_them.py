"""Bases as they lie on people's disks: in the hub's cache, in one file of any name, without some files."""

import json
import shutil

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.jobs.kinds.add_model import default_name
from app.shared.bases import folder_of
from storage.tables import Base
from tests.core.helpers import PROBE, load, logits
from tests.workbenches import do_job


def added(workbench, folder, name=""):
    job = do_job(workbench, "add_model", {"origin": str(folder), "name": name})
    assert job.state == "finished", job.message
    return workbench.registry.find(Base, job.result["name"])


def require_as_transformers(base):
    """It loads, and computes what transformers' own model in its folder does."""
    own = AutoModelForCausalLM.from_pretrained(folder_of(base)).float().eval()
    assert (logits(load(folder_of(base)).model) - own(PROBE).logits).abs().max() < 1e-4


@pytest.fixture
def cached(tiny_llama, tmp_path):
    """The hub's cache with a model in it, of which each file is a link."""
    home = tmp_path / "models--someone--Tiny-Llama"
    snapshot = home / "snapshots" / "0a1b2c"
    for folder in (snapshot, home / "blobs", home / "refs"):
        folder.mkdir(parents=True)
    for number, path in enumerate(sorted(tiny_llama.iterdir())):
        shutil.copyfile(path, home / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    (home / "refs" / "main").write_text("0a1b2c")
    return home


@pytest.mark.parametrize("inside", [".", "snapshots/0a1b2c"])
def test_the_hubs_cache_is_a_base_with_its_name(workbench, cached, inside):
    base = added(workbench, cached / inside)
    assert (base.name, base.owned) == ("Tiny-Llama", False)
    assert folder_of(base) == cached / "snapshots" / "0a1b2c"
    assert base.fingerprint == workbench.registry.find(Base, "llama").fingerprint
    require_as_transformers(base)


def test_of_several_revisions_the_main_one_counts_or_one_has_to_be_named(workbench, cached):
    shutil.copytree(cached / "snapshots" / "0a1b2c", cached / "snapshots" / "ffff", symlinks=True)
    assert folder_of(added(workbench, cached, "main")).name == "0a1b2c"
    (cached / "refs" / "main").unlink()
    job = do_job(workbench, "add_model", {"origin": str(cached), "name": "no"})
    assert "which revision is meant (0a1b2c, ffff)" in job.message
    assert default_name(str(cached / "snapshots" / "ffff")) == "Tiny-Llama"


def test_one_file_of_weights_may_have_any_name(workbench, tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "one")
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    base = added(workbench, folder, "one")
    assert base.fingerprint == workbench.registry.find(Base, "llama").fingerprint
    ours = logits(load(folder_of(base)).model)
    assert (ours - logits(load(tiny_llama).model)).abs().max() == 0


def test_a_tokenizer_of_vocabulary_and_merges_is_converted(workbench, tiny_gpt2, tmp_path):
    folder = shutil.copytree(tiny_gpt2, tmp_path / "older")
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    wanted = AutoTokenizer.from_pretrained(folder)
    specials = {one.content: at for at, one in wanted.added_tokens_decoder.items()}
    (folder / "vocab.json").write_text(json.dumps(model["vocab"] | specials))
    merges = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "tokenizer.json").unlink()
    about = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(about | {"tokenizer_class": "GPT2Tokenizer"}))
    base = added(workbench, folder, "older")
    renderer = load(folder_of(base)).renderer
    text = "<|im_start|>hello world, how are you<|im_end|>"
    assert renderer.encode_text(text) == wanted(text, add_special_tokens=False)["input_ids"]


def test_without_a_generation_config_and_with_several_ends(workbench, tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "bare")
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [5, 7]}))
    ends = load(folder_of(added(workbench, folder, "bare"))).end_token_ids()
    assert ends >= {5, 7, AutoTokenizer.from_pretrained(folder).eos_token_id}
    (folder / "generation_config.json").write_text('{"eos_token_id": [8, 9]}')
    assert load(folder).end_token_ids() >= {8, 9}
