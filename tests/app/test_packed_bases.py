"""Repositories that bitsandbytes has quantised before: in 4 bits they are added as bases of their own."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from app.shared.bases import folder_of
from storage.tables import Base
from tests.core.helpers import load, logits
from tests.workbenches import do_job


@pytest.fixture
def packed(tiny_llama, tmp_path):
    """A function that saves the tiny Llama as transformers and bitsandbytes do, in bfloat16."""

    def make(**how):
        folder = shutil.copytree(tiny_llama, tmp_path / "packed")
        config = BitsAndBytesConfig(**how)
        loading = {"quantization_config": config, "dtype": torch.bfloat16, "device_map": {"": "cpu"}}
        AutoModelForCausalLM.from_pretrained(tiny_llama, **loading).save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [True, False])
def test_one_in_4_bits_becomes_a_base_that_answers_as_transformers_does(workbench, packed, kind, double):
    folder = packed(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=double)
    job = do_job(workbench, "add_model", {"origin": str(folder), "name": "small"})
    base = workbench.registry.find(Base, "small")
    assert (job.state, base.source, base.owned) == ("finished", "bitsandbytes", True), job.message
    assert base.fingerprint != workbench.registry.find(Base, "llama").fingerprint
    theirs = AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cpu"})
    ours, wanted = logits(load(folder_of(base)).model), logits(theirs.dequantize().float())
    assert float((ours - wanted).norm() / wanted.norm()) < 1e-3
    again = logits(load(folder_of(base), quantisation="nf4").model)
    assert float((again - wanted).norm() / wanted.norm()) < (0.02 if kind == "nf4" else 1)


def test_what_is_packed_otherwise_is_refused_by_name(workbench, packed, tiny_llama, tmp_path):
    def said(folder):
        return do_job(workbench, "add_model", {"origin": str(folder), "name": "no"}).message

    folder = packed(load_in_4bit=True)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file(tensors | {name: tensors[name][:-1].clone()}, file, metadata={"format": "pt"})
    assert f"{name} is not packed as bitsandbytes packs a weight" in said(folder)
    config = json.loads((tiny_llama / "config.json").read_text())
    for method in ("gptq", "awq", "bitsandbytes"):
        other = shutil.copytree(tiny_llama, tmp_path / method)
        about = config | {"quantization_config": {"quant_method": method, "load_in_8bit": True}}
        (other / "config.json").write_text(json.dumps(about))
        assert f"was quantised before ({method})" in said(other)
    assert "no" not in workbench.registry.names(Base)
