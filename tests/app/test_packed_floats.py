"""Repositories in 8- and 4-bit floats: they are made plain once, as transformers itself dequantises them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    FineGrainedFP8Config,
    GptOssConfig,
    Mxfp4Config,
    Qwen3MoeConfig,
)

from app.shared.bases import folder_of
from storage.tables import Base
from tests.core.families import TINY
from tests.core.helpers import load, logits
from tests.workbenches import do_job

FLOAT8 = torch.float8_e4m3fn


def save(folder, tensors, **how):
    """The tensors in two files, what is not packed in bfloat16, and a config.json that says how they are."""
    tensors = {name: one.bfloat16() if _is_plain(name, one) else one for name, one in tensors.items()}
    (folder / "model.safetensors").unlink()
    names, parts = sorted(tensors), {}
    for at in range(2):
        file = f"model-0000{at + 1}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names[at::2]}, folder / file, metadata={"format": "pt"})
        parts |= dict.fromkeys(names[at::2], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    config = json.loads((folder / "config.json").read_text())
    told = config | {"dtype": "bfloat16", "quantization_config": how}
    (folder / "config.json").write_text(json.dumps(told))
    return folder


def _is_plain(name, tensor):
    return tensor.dtype == torch.float32 and "_scale" not in name


def to_fp8(weight, rows, columns):
    """A weight in 8-bit floats, and the scale of each block."""
    high, wide = weight.shape
    blocks = weight.float().view(high // rows, rows, wide // columns, columns)
    scale = blocks.abs().amax(dim=(1, 3)) / 448
    packed = (blocks / scale[:, None, :, None]).view(high, wide).to(FLOAT8)
    return packed, scale


def layers_in_fp8(folder, suffix="_scale_inv", block=(16, 8), scale_as=lambda scale: scale):
    """The tensors of a folder, all matrices within layers in fp8."""
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        size = block or tensors[name].shape
        packed, scale = to_fp8(tensors[name], *size)
        tensors[name], tensors[name + suffix] = packed, scale_as(scale)
    return tensors


def add(workbench, folder):
    job = do_job(workbench, "add_model", {"origin": str(folder), "name": "small"})
    assert job.state == "finished", job.message
    return workbench.registry.find(Base, "small")


def require_equal(base, folder, config):
    theirs = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
    ours = load(folder_of(base)).model
    assert theirs.dtype == torch.bfloat16
    torch.testing.assert_close(logits(ours), logits(theirs.float()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("block", "scale_as"),
    [((16, 8), lambda scale: scale), (None, lambda scale: scale.view(())), ((16, 8), torch.Tensor.bfloat16)],
)
def test_one_in_fp8_becomes_a_base_that_answers_as_transformers_does(
    workbench, tiny_llama, tmp_path, block, scale_as
):
    folder = shutil.copytree(tiny_llama, tmp_path / "packed")
    tensors = layers_in_fp8(folder, block=block, scale_as=scale_as)
    save(folder, tensors, quant_method="fp8", weight_block_size=list(block) if block else None)
    base = add(workbench, folder)
    assert (base.source, base.owned, base.dtype) == ("fp8", True, "bf16")
    require_equal(base, folder, FineGrainedFP8Config(dequantize=True, weight_block_size=block))


def test_experts_in_fp8_are_made_plain_one_by_one(workbench, tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "packed")
    config = Qwen3MoeConfig(**{name: TINY[name] for name in TINY.keys() & vars(Qwen3MoeConfig()).keys()})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tensors = layers_in_fp8(folder, block=(8, 8))
    assert sum("experts.3.up_proj.weight_scale_inv" in name for name in tensors) == 2
    how = {"weight_block_size": [8, 8], "modules_to_not_convert": ["gate"]}
    save(folder, tensors, quant_method="fp8", **how)
    require_equal(add(workbench, folder), folder, FineGrainedFP8Config(dequantize=True, **how))


def test_gpt_oss_in_mxfp4_becomes_a_base_that_answers_as_transformers_does(workbench, tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "packed")
    config = GptOssConfig(**{name: TINY[name] for name in TINY.keys() & vars(GptOssConfig()).keys()})
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tensors, draw = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inside, out = tensors.pop(name).shape
        sizes = experts, out, inside // 32
        tensors[f"{name}_blocks"] = torch.randint(256, (*sizes, 16), generator=draw, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(121, 126, sizes, generator=draw, dtype=torch.uint8)
    save(folder, tensors, quant_method="mxfp4", modules_to_not_convert=["lm_head"])
    base = add(workbench, folder)
    assert (base.source, base.way) == ("mxfp4", "general")
    require_equal(base, folder, Mxfp4Config(dequantize=True))


def compressed(**weights):
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float"} | weights}}
    return {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": groups}


def test_a_row_of_compressed_tensors_has_a_scale_of_its_own(workbench, tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "packed")
    tensors = load_file(folder / "model.safetensors")
    wanted = dict(tensors)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        packed, scale = to_fp8(tensors[name], 1, tensors[name].shape[1])
        tensors[name], tensors[f"{name}_scale"] = packed, scale
        wanted[name] = packed.float() * scale
    save(folder, tensors, **compressed(strategy="channel"))
    base = add(workbench, folder)
    found = {}
    for file in folder_of(base).glob("*.safetensors"):
        found |= load_file(file)
    assert found.keys() == wanted.keys()
    for name, one in found.items():
        assert torch.equal(one, wanted[name].to(one.dtype)), name


def test_a_last_block_may_be_cut_off_as_deepseeks_are(workbench, tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "packed")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    rows, columns = tensors[name].shape
    scale = torch.rand(-(-rows // 24), -(-columns // 24))
    tensors[name], tensors[f"{name}_scale_inv"] = tensors[name].to(FLOAT8), scale
    save(folder, tensors, quant_method="fp8", weight_block_size=[24, 24])
    base = add(workbench, folder)
    wide = scale.repeat_interleave(24, 0)[:rows].repeat_interleave(24, 1)[:, :columns]
    found = load(folder_of(base)).model.get_parameter(name.replace("q_proj.weight", "q_proj.base.weight"))
    assert torch.equal(found, (tensors[name].float() * wide).bfloat16().float())


def test_what_does_not_fit_its_scales_is_refused_by_name(workbench, tiny_llama, tmp_path):
    def said(tensors, **how):
        shutil.rmtree(tmp_path / "packed", ignore_errors=True)
        folder = save(shutil.copytree(tiny_llama, tmp_path / "packed"), tensors, **how)
        return do_job(workbench, "add_model", {"origin": str(folder), "name": "no"}).message

    tensors, name = layers_in_fp8(tiny_llama), "model.layers.0.self_attn.q_proj.weight"
    scale = tensors.pop(f"{name}_scale_inv")
    refusal = f"{name} is not packed as 8-bit floats with scales"
    assert refusal in said(tensors, quant_method="fp8")
    assert refusal in said(tensors | {f"{name}_scale_inv": scale[:-1, :-1].clone()}, quant_method="fp8")
    blocks = {f"{name}_blocks": torch.zeros(2, 4, 1, 8, dtype=torch.uint8)}
    assert f"{name} is not packed as 4-bit floats" in said(blocks, quant_method="mxfp4")
    assert "was quantised before (compressed-tensors)" in said(tensors, **compressed(type="int"))
    assert "was quantised before (gptq)" in said(tensors, quant_method="gptq")
    assert "no" not in workbench.registry.names(Base)


def test_a_base_that_was_made_plain_says_so(workbench, tiny_llama, tmp_path):
    from app.web.sections.models.section import facts_html

    folder = shutil.copytree(tiny_llama, tmp_path / "packed")
    save(folder, layers_in_fp8(folder), quant_method="fp8", weight_block_size=[16, 8])
    base = add(workbench, folder)
    assert "its files held 8-bit floats (fp8) with scales" in facts_html(workbench, base)
    assert "what is merged is written in bf16" in facts_html(workbench, base)
    assert "Made plain" not in facts_html(workbench, workbench.registry.find(Base, "llama"))
    assert AutoConfig.from_pretrained(folder_of(base)).dtype == torch.bfloat16
