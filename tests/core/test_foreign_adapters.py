"""What other tools and wrappers make of an adapter's names, and what they put beside its factors."""

import functools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.base_model.files import read_json
from core.base_model.stored import has_tensor
from core.errors import InvalidAdapter
from core.lora.foreign.fit import BaseFacts, fit
from core.lora.foreign.look import look
from core.lora.foreign.take import take
from core.lora.mixed_bank import loaded_bank
from core.lora.peft.config import raw_config
from core.lora.peft.files import save_adapter
from tests.core.helpers import load, logits, new_peft, random_adapter
from tests.core.test_peft_oracle import _our_logits

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FIRST = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def base(tiny_llama):
    return load(tiny_llama)


@pytest.fixture
def bring(base, tmp_path):
    """A function that saves tensors with a configuration beside them, and fits them to a base."""

    def do(tensors, config=None, onto=base, which="", alpha=None):
        theirs, staging = tmp_path / "theirs", tmp_path / "staging"
        for folder in (theirs, staging):
            folder.mkdir(exist_ok=True)
        save_file({name: one.contiguous() for name, one in tensors.items()}, theirs / WEIGHTS)
        if config is not None:
            (theirs / CONFIG).write_text(json.dumps(config))
        return fitted(theirs, staging, onto, which, alpha)

    return do


def fitted(folder, staging, onto, which="", alpha=None):
    """What is in a folder, for a base."""
    facts = BaseFacts(read_json(onto.folder / "config.json"), functools.partial(has_tensor, onto.folder))
    found = look(take(folder, staging), which)
    return fit(found, onto.layer_shapes, onto.head, alpha, facts, onto.wholes)


@pytest.fixture
def saved(base, tmp_path):
    """The tensors and the configuration of an adapter as PEFT's files hold them."""
    (tmp_path / "saved").mkdir()
    save_adapter(tmp_path / "saved", random_adapter(base), modules=base.layer_shapes)
    return load_file(tmp_path / "saved" / WEIGHTS), json.loads((tmp_path / "saved" / CONFIG).read_text())


def state(model):
    """What torch.save(model.state_dict()) would hold of the factors."""
    return {name: one for name, one in model.state_dict().items() if "lora_" in name}


def test_a_configuration_beside_other_names_counts(tiny_llama, base, bring, tmp_path):
    model = new_peft(
        tiny_llama,
        alpha_pattern={"layers.0.mlp.down_proj": 3, r".*q_pro.": 40},
        rank_pattern={"v_proj": 2},
        use_rslora=True,
    )
    model.save_pretrained(tmp_path / "config")
    config = json.loads((tmp_path / "config" / CONFIG).read_text())
    adapter = bring(state(model), config)
    torch.testing.assert_close(_our_logits(base, adapter), logits(model), atol=1e-5, rtol=1e-5)
    bare = {
        name.replace(".default", "").removeprefix("base_model.model."): one
        for name, one in state(model).items()
    }
    torch.testing.assert_close(_our_logits(base, bring(bare, config)), logits(model), atol=1e-5, rtol=1e-5)
    loralib = {name.removesuffix(".weight"): one for name, one in bare.items()}
    torch.testing.assert_close(_our_logits(base, bring(loralib, config)), logits(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"modules_to_save": ["lm_head"]}, "lm_head.weight was trained whole"),
        ({"bias": "lora_only", "target_modules": ["q_proj"]}, "q_proj.bias was trained whole"),
    ],
)
def test_what_was_trained_whole_is_missed_under_other_names_too(tiny_qwen, bring, tmp_path, options, missing):
    model = new_peft(tiny_qwen, **options)
    model.save_pretrained(tmp_path / "config")
    config = json.loads((tmp_path / "config" / CONFIG).read_text())
    factors = {name: one for name, one in state(model).items() if name.endswith(".weight")}
    named = {name.removeprefix("base_model.model."): one for name, one in factors.items()}
    for tensors in (factors, named):
        with pytest.raises(InvalidAdapter, match=missing):
            bring(tensors, config, load(tiny_qwen))


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], r".*(q_proj|lm_head)"])
def test_what_is_saved_whole_has_no_factors_beside(tiny_qwen, tmp_path, targets):
    base, model = load(tiny_qwen), new_peft(tiny_qwen, target_modules=targets, modules_to_save=["lm_head"])
    with pytest.warns(UserWarning, match="save_embedding_layers"):
        model.save_pretrained(tmp_path / "theirs")
    (tmp_path / "staging").mkdir()
    adapter = fitted(tmp_path / "theirs", tmp_path / "staging", base)
    torch.testing.assert_close(_our_logits(base, adapter), logits(model), atol=1e-5, rtol=1e-5)


WRAPPED = {
    "compiled": lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
    "compiled outside": lambda name: f"_orig_mod.{name}",
    "compiled by layer": lambda name: name.replace(".self_attn", "._orig_mod.self_attn"),
    "DDP": lambda name: f"module.{name}",
    "FSDP": lambda name: name.replace(".layers.0.", ".layers.0._fsdp_wrapped_module."),
    "checkpointed": lambda name: name.replace(".mlp.", "._checkpoint_wrapped_module.mlp."),
    "with pictures": lambda name: name.replace("model.model.layers", "model.model.language_model.layers"),
    "with pictures, older": lambda name: name.replace(
        "model.model.layers", "model.language_model.model.layers"
    ),
}


@pytest.mark.parametrize("how", WRAPPED)
def test_what_is_put_around_modules_does_not_matter(base, bring, saved, how):
    tensors, config = saved
    adapter = bring({WRAPPED[how](name): one for name, one in tensors.items()}, config)
    plain = random_adapter(base)
    assert set(adapter.layers) == set(plain.layers)
    assert all(adapter.layers[path].equals(one) for path, one in plain.layers.items())


def test_one_of_several_adapters_in_a_file_is_asked_for(bring):
    tensors = {}
    for name, rows in (("pirate", ("q_proj", "v_proj")), ("poet", ("q_proj",)), ("Poet", ("v_proj",))):
        for row in rows:
            n_out = 32 if row == "q_proj" else 16
            path = f"base_model.model.model.layers.1.self_attn.{row}"
            tensors[f"{path}.lora_A.{name}.weight"] = torch.randn(2, 32)
            tensors[f"{path}.lora_B.{name}.weight"] = torch.randn(n_out, 2)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}
    with pytest.raises(InvalidAdapter, match=r"3 adapters: Poet, pirate, poet\. Say which"):
        bring(tensors, config)
    with pytest.raises(InvalidAdapter, match="no adapter 'bard'; it holds Poet, pirate, poet"):
        bring(tensors, config, which="bard")
    poet = bring(tensors, config, which="poet")
    assert list(poet.layers) == ["model.layers.1.self_attn.q_proj"]
    assert poet.layers["model.layers.1.self_attn.q_proj"].scale == 3
    assert len(bring(tensors, config, which="pirate").layers) == 2


def test_a_layer_without_factors_is_not_targeted(base, bring):
    held = {
        path: one for path, one in random_adapter(base).layers.items() if not path.endswith("0.mlp.up_proj")
    }
    tensors = {f"{path}.lora_a": one.A.T for path, one in held.items()}
    tensors |= {f"{path}.lora_b": one.B.T for path, one in held.items()}
    about = {"fine_tune_type": "lora", "lora_parameters": {"scale": 2.0, "keys": ["self_attn.q_proj"]}}
    assert set(bring(tensors, about).layers) == set(held)
    with pytest.raises(InvalidAdapter, match="fine_tune_type 'dora'"):
        bring(tensors, about | {"fine_tune_type": "dora"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bases_own_weight_beside_factors_is_redundant(tiny_qwen, bring, tmp_path, dtype):
    model = new_peft(tiny_qwen, target_modules=["q_proj", "lm_head"])
    with pytest.warns(UserWarning, match="save_embedding_layers"):
        model.save_pretrained(tmp_path / "theirs")
    onto = load(tiny_qwen)
    tensors = load_file(tmp_path / "theirs" / WEIGHTS)
    config = json.loads((tmp_path / "theirs" / CONFIG).read_text())
    redundant = "base_model.model.lm_head.base_layer.weight"
    tensors[redundant] = tensors[redundant].to(dtype)
    torch.testing.assert_close(
        _our_logits(onto, bring(tensors, config, onto)), logits(model), atol=1e-5, rtol=1e-5
    )
    tensors[redundant] = tensors[redundant] + 1
    with pytest.raises(InvalidAdapter, match="whole weight of lm_head"):
        bring(tensors, config, onto)


def neighbours(x):
    """Turn pairs of neighbours, as Meta and torchtune do; x [heads, T, size]."""
    size = x.shape[-1]
    angles = torch.arange(x.shape[1])[:, None] / 10000 ** (torch.arange(0, size, 2) / size)
    turned = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * torch.polar(
        torch.ones_like(angles), angles
    )
    return torch.view_as_real(turned).flatten(-2)


def halves(x):
    """Turn each number of the first half with that of the second, as transformers does."""
    size = x.shape[-1]
    angles = torch.arange(x.shape[1])[:, None] / 10000 ** (torch.arange(0, size, 2) / size)
    one, other = x.chunk(2, -1)
    turned = one * angles.cos() - other * angles.sin(), other * angles.cos() + one * angles.sin()
    return torch.cat(turned, -1)


TUNE = {
    "q_proj": "attn.q_proj",
    "k_proj": "attn.k_proj",
    "v_proj": "attn.v_proj",
    "o_proj": "attn.output_proj",
    "gate_proj": "mlp.w1",
    "down_proj": "mlp.w2",
    "up_proj": "mlp.w3",
}


def tune_tensors(base):
    tensors = {}
    for path, one in random_adapter(base).layers.items():
        own = f"layers.{path.split('.')[2]}.{TUNE[path.rpartition('.')[2]]}"
        tensors |= {f"{own}.lora_a.weight": one.A, f"{own}.lora_b.weight": one.B}
    return tensors


def test_torchtunes_queries_and_keys_give_the_scores_that_they_gave_there(base, bring):
    tensors = tune_tensors(base)
    adapter = bring(tensors, alpha=8.0)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))

    def projected(A, B, heads):
        return (x @ A.T @ B.T).view(5, heads, 8).transpose(0, 1)

    there, here = [], []
    for name, heads in (("q_proj", 4), ("k_proj", 2)):
        A, B = (tensors[f"layers.0.attn.{name}.lora_{one}.weight"] for one in "ab")
        there.append(neighbours(projected(A, B, heads)).repeat_interleave(4 // heads, 0))
        one = adapter.layers[f"model.layers.0.self_attn.{name}"]
        here.append(halves(projected(one.A, one.B, heads)).repeat_interleave(4 // heads, 0))
    torch.testing.assert_close(here[0] @ here[1].transpose(1, 2), there[0] @ there[1].transpose(1, 2))
    up = adapter.layers["model.layers.1.mlp.up_proj"]
    assert torch.equal(up.B, tensors["layers.1.mlp.w3.lora_b.weight"])


def test_torchtune_keeps_the_rows_of_qwen_as_they_are(tiny_qwen, bring):
    onto = load(tiny_qwen)
    tensors = tune_tensors(onto)
    layer = bring(tensors, alpha=8.0, onto=onto).layers["model.layers.0.self_attn.q_proj"]
    assert torch.equal(layer.B, tensors["layers.0.attn.q_proj.lora_b.weight"])


BESIDE = {
    f"{FIRST}.lora_magnitude_vector": "DoRA",
    f"{FIRST}.lora_B.bias": "bias on B",
    "base_model.model.model.embed_tokens.lora_embedding_A": "input embedding|do not belong together",
    "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": "trained tokens",
    "base_model.model.lm_head.modules_to_save.weight": "whole trained module",
    "base_model.model.lm_head.weight": "whole weight of lm_head",
    "base_model.model.model.layers.0.self_attn.q_proj.bias": "trained biases",
    f"{FIRST}.lora_E": "AdaLoRA",
    f"{FIRST}.hada_w1_a": "LoHa",
    f"{FIRST}.ia3_l": r"\(IA\)³",
    f"{FIRST}.something": "no LoRA factor in any layout",
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("configured", [True, False])
def test_what_is_no_factor_is_called_what_it_is(bring, saved, name, configured):
    tensors, config = saved
    with pytest.raises(InvalidAdapter, match=BESIDE[name]):
        bring(tensors | {name: torch.ones(4, 4)}, config if configured else None, alpha=8.0)


OTHER_LAYERS = {
    "model.vision_tower.layers.0.self_attn.q_proj": "for pictures or sound",
    "visual.blocks.0.attn.qkv": "for pictures or sound",
    "model.layers.0.mlp.experts.3.gate_proj": "one tensor",
    "model.layers.0.mlp.experts.base_layer": "one tensor",
    "lm_head": "input embedding too",
    "model.layers.7.self_attn.q_proj": "has no layer",
}


@pytest.mark.parametrize("path", OTHER_LAYERS)
def test_layers_that_a_base_has_not_are_called_what_they_are(bring, saved, path):
    tensors, config = saved
    more = {f"base_model.model.{path}.lora_{one}.weight": torch.ones(4, 4) for one in "AB"}
    with pytest.raises(InvalidAdapter, match=OTHER_LAYERS[path]):
        bring(tensors | more, config)


SETTINGS = {
    "modules_to_save": ("lm_head", "modules_to_save"),
    "trainable_token_indices": ([5], "trained tokens"),
    "bias": ("some", "bias is 'some'"),
    "use_dora": (True, "DoRA"),
    "use_qalora": (True, "QALoRA"),
    "alora_invocation_tokens": ([1, 2], "activated LoRA"),
    "layer_replication": ([[0, 2]], "layers are repeated"),
    "init_lora_weights": ("loftq", "changes the base"),
    "something_new": (3, "'something_new' is not known"),
}


@pytest.mark.parametrize("key", SETTINGS)
def test_settings_are_named_before_the_tensors_are(bring, saved, key):
    tensors, config = saved
    value, said = SETTINGS[key]
    strange = tensors | {f"{FIRST}.something": torch.ones(4, 4)}
    with pytest.raises(InvalidAdapter, match=said):
        bring(strange, config | {key: value})


HARMLESS = {
    "init_lora_weights": ("eva", "gaussian", "orthogonal", False),
    "eva_config": ({"rho": 2.0, "tau": 0.99},),
    "corda_config": ({"corda_method": "ipm"},),
    "loftq_config": ({"loftq_bits": 4},),
    "auto_mapping": (
        {
            "base_model_class": "LlamaForCausalLM",
            "parent_library": "transformers.models.llama.modeling_llama",
            "unsloth_fixed": True,
        },
    ),
    "something_new": (None, False, [], {}),
}


@pytest.mark.parametrize(("key", "value"), [(key, one) for key, given in HARMLESS.items() for one in given])
def test_settings_that_change_nothing_are_no_reason_to_refuse(bring, saved, key, value):
    tensors, config = saved
    assert len(bring(tensors, config | {key: value}).layers) == 14


def test_a_configuration_of_the_first_versions_of_peft_is_enough(bring, saved):
    tensors, config = saved
    old = ("peft_type", "r", "lora_alpha", "target_modules", "lora_dropout", "bias", "fan_in_fan_out")
    assert len(bring(tensors, {key: config[key] for key in old}).layers) == 14


def test_shards_that_were_never_gathered_are_said_to_be_empty(bring, saved):
    tensors, config = saved
    with pytest.raises(InvalidAdapter, match="before its shards were gathered"):
        bring(tensors | {f"{FIRST}.lora_A.weight": torch.empty(0)}, config)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_factors_in_sixteen_bits_are_taken(base, bring, saved, dtype):
    tensors, config = saved
    halves = {name: one.to(dtype) for name, one in tensors.items()}
    bare = {name.removeprefix("base_model.model."): one for name, one in halves.items()}
    for given in (halves, bare):
        first = bring(given, config).layers["model.layers.0.self_attn.q_proj"]
        assert first.A.dtype == first.B.dtype == torch.float32
        assert torch.equal(first.A, tensors[f"{FIRST}.lora_A.weight"].to(dtype).float())


def kohya(name, prefix):
    """A tensor of PEFT's as kohya's scripts would call it: with a prefix in place of "model."."""
    path, _, factor = name.removeprefix("base_model.model.").partition(".lora_")
    own = prefix + path.removeprefix("model.").replace(".", "_")
    return f"{own}.lora_{'down' if factor.startswith('A') else 'up'}.weight"


@pytest.mark.parametrize(
    "prefix",
    [
        "lora_te_model_",
        "lora_te_",
        "lora_unet_model_",
        "lora_te_model_language_model_",
        "lora_te_language_model_model_",
        "lora_language_model_",
    ],
)
def test_kohyas_names_of_models_with_pictures_fit_their_text_part(base, bring, saved, prefix):
    tensors, _ = saved
    adapter = bring({kohya(name, prefix): one for name, one in tensors.items()}, alpha=8.0)
    plain = random_adapter(base)
    assert set(adapter.layers) == set(plain.layers)
    assert all(adapter.layers[path].equals(one) for path, one in plain.layers.items())


@pytest.mark.parametrize("end", ["lora.{}", "lora_linear_layer.{}", "lora_{}"])
def test_diffusers_names_of_a_language_model_fit_it(base, bring, saved, end):
    names = {"A": end.format("down"), "B": end.format("up")}
    tensors = {}
    for name, one in saved[0].items():
        path, _, factor = name.removeprefix("base_model.model.").partition(".lora_")
        tensors[f"transformer.{path}.{names[factor[0]]}.weight"] = one
    adapter = bring(tensors, alpha=8.0)
    assert all(adapter.layers[path].equals(one) for path, one in random_adapter(base).layers.items())


IMAGES = {
    "unet.down_blocks.0.attentions.0.to_q.lora.{}.weight": "for pictures or sound",
    "unet.mid_block.attentions.0.processor.to_q_lora.{}.weight": "for pictures or sound",
    "lora_unet_down_blocks_0_attentions_0_proj_in.lora_{}.weight": "for pictures or sound",
    "lora_te_vision_tower_encoder_layers_0_self_attn_q_proj.lora_{}.weight": "for pictures or sound",
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_{}.weight": "for another model",
    "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.{}.weight": "another model",
    "lora_unet_model_layers_7_self_attn_q_proj.lora_{}.weight": "for another model",
}


@pytest.mark.parametrize("name", IMAGES)
def test_adapters_of_image_models_are_called_what_they_are(bring, name):
    tensors = {name.format("down"): torch.ones(4, 32), name.format("up"): torch.ones(32, 4)}
    with pytest.raises(InvalidAdapter, match=IMAGES[name]):
        bring(tensors, alpha=8.0)


def test_adapters_of_convolutions_are_called_what_they_are(bring):
    name = "lora_unet_down_blocks_0_attentions_0_proj_in.lora_{}.weight"
    tensors = {name.format("down"): torch.ones(4, 32, 1, 1), name.format("up"): torch.ones(32, 4, 1, 1)}
    with pytest.raises(InvalidAdapter, match="convolutions of an image model"):
        bring(tensors, alpha=8.0)


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_what_peft_trained_with_biases_has_them_and_of_a_base_without_none(
    tiny_llama, tiny_qwen, base, bring, tmp_path, bias
):
    for folder, onto in ((tiny_qwen, load(tiny_qwen)), (tiny_llama, base)):
        model = new_peft(folder, bias=bias, target_modules=["q_proj", "v_proj"])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("q_proj.base_layer.bias"):
                    parameter.add_(0.3)
        model.save_pretrained(tmp_path / folder.name)
        tensors = load_file(tmp_path / folder.name / WEIGHTS)
        adapter = bring(tensors, json.loads((tmp_path / folder.name / CONFIG).read_text()), onto)
        assert bool(adapter.wholes) == (folder == tiny_qwen)
        with loaded_bank(onto.layers, [adapter]).use():
            torch.testing.assert_close(logits(onto.model), logits(model), atol=1e-5, rtol=1e-5)


OTHER_FILES = {
    "LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "only a pointer of Git LFS",
    ),
    "torch.save": (b"PK\x03\x04" + bytes(60), "a file of torch.save or a zip"),
    "gzip": (b"\x1f\x8b\x08" + bytes(60), "packed with gzip; unpack it"),
    "GGUF": (b"GGUF\x03" + bytes(60), r"a GGUF file; call it \.gguf"),
    "web page": (b"<!DOCTYPE html><html>", "a web page"),
    "nothing": (b"", "is cut off: of its bytes only 0 are there"),
}


@pytest.mark.parametrize("what", OTHER_FILES)
def test_files_that_are_no_safetensors_are_called_what_they_are(tmp_path, what):
    content, said = OTHER_FILES[what]
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(InvalidAdapter, match=said):
        look(tmp_path)


def test_a_folder_of_checkpoints_says_where_its_adapters_lie(tmp_path):
    for step in (20, 10):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
        (tmp_path / "run" / f"checkpoint-{step}" / WEIGHTS).touch()
    with pytest.raises(InvalidAdapter, match="lie in its folders checkpoint-10, checkpoint-20; give one"):
        take(tmp_path / "run", tmp_path)


def test_a_configuration_in_another_encoding_and_factors_in_another_format_are_told(bring, saved, tmp_path):
    tensors, config = saved
    with pytest.raises(InvalidAdapter, match=r"is F64 \[.*\]; expected a matrix in one of F32, F16, BF16"):
        bring({name: one.double() for name, one in tensors.items()}, config)
    (tmp_path / CONFIG).write_text(json.dumps(config), encoding="utf-16")
    with pytest.raises(InvalidAdapter, match=r"adapter_config\.json is not UTF-8 text; save it as UTF-8"):
        raw_config(tmp_path / CONFIG)
