"""Adapter files come from strangers: what is malformed or hostile is refused with a reason, and nothing is
run.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import InvalidAdapter
from core.lora.peft.files import load_adapter, save_adapter
from tests.core.helpers import load, random_adapter


@pytest.fixture
def base(tiny_llama):
    return load(tiny_llama)


@pytest.fixture
def folder(base, tmp_path):
    save_adapter(tmp_path, random_adapter(base))
    return tmp_path


def _edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _edit_tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def _refused(folder, base, said):
    with pytest.raises(InvalidAdapter, match=said):
        load_adapter(folder, base.layer_shapes, base.head)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"r": 10**9}, "r is 1000000000"),
        ({"r": 0}, "r is 0"),
        ({"r": "4"}, "r is 4"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": 1e30}, "lora_alpha"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"lora_dropout": -1}, "lora_dropout"),
        ({"use_dora": True}, "A and B and m of .* do not belong together"),
        ({"bias": "all"}, None),  # the base has none
        ({"bias": "some"}, "bias is 'some'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save names lm_head"),
        ({"peft_type": "LOHA"}, "only .*LORA"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base"),
        ({"target_modules": None}, "target_modules"),
        ({"target_modules": [1]}, "target_modules"),
        ({"target_modules": ".*"}, "target_modules"),
        ({"target_modules": ".*(q_proj"}, "no regular expression"),
        ({"target_modules": "q_proj"}, "target_modules does not name"),
        ({"rank_pattern": {"q_proj": 10**9}}, "rank_pattern"),
        ({"alpha_pattern": []}, None),
        ({"alpha_pattern": {"model.layers.0.(": 4}}, "no regular expression"),
        ({"alpha_pattern": {rf"(q|{at})_proj": 4 for at in range(200)}}, "200 regular expressions"),
        ({"alpha_pattern": ["x"]}, "alpha_pattern"),
        ({"layers_to_transform": ["x"]}, "layers_to_transform"),
        ({"a_new_setting": 3}, "'a_new_setting' is not known"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"lora_bias": True}, "lora_B.bias was trained whole, but"),
        ({"lora_bias": 1}, "lora_bias must be true or false"),
    ],
)
def test_configurations_are_checked_key_by_key(folder, base, changes, said):
    _edit_config(folder, **changes)
    if said is None:
        load_adapter(folder, base.layer_shapes, base.head)
    else:
        _refused(folder, base, said)


def test_rank_that_the_tensors_do_not_have(folder, base):
    _edit_config(folder, r=5)
    _refused(folder, base, "with rank 5 this base needs")


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("base_model.model.lm_head.weight", torch.zeros(2, 2), "no LoRA factor"),
        ("base_model.model..lora_A.weight", torch.zeros(4, 32), "no LoRA factor"),
        (
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            torch.full((4, 32), float("nan")),
            "NaN or infinite",
        ),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", torch.zeros(4, 31), "needs"),
        (
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            torch.zeros(3, 32),
            "with rank 4 this base needs",
        ),
        (
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            torch.zeros(4, 32, dtype=torch.int64),
            "no LoRA factor",
        ),
        (
            "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight",
            torch.zeros(4, 32),
            "do not belong together",
        ),
    ],
)
def test_tensors_are_checked_one_by_one(folder, base, name, tensor, said):
    _edit_tensors(folder, lambda tensors: tensors.update({name: tensor}))
    _refused(folder, base, said)


def test_missing_layers_are_noticed(folder, base):
    def drop(tensors):
        for name in [name for name in tensors if "layers.1.mlp.up_proj" in name]:
            del tensors[name]

    _edit_tensors(folder, drop)
    _refused(folder, base, r"targets model\.layers\.1\.mlp\.up_proj .* holds no factors")


def test_layers_that_the_base_lacks_are_noticed(folder, base):
    def add(tensors):
        for name in [name for name in tensors if "layers.1.mlp.up_proj" in name]:
            tensors[name.replace("layers.1", "layers.2")] = tensors[name].clone()

    _edit_tensors(folder, add)
    _refused(folder, base, r"no layer model\.layers\.2\.mlp\.up_proj")


def test_pickle_adapters_are_never_opened(tmp_path, base):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    _refused(tmp_path, base, "pickle adapter")


def test_links_are_not_followed(folder, base, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "adapter_config.json"
    (folder / "adapter_config.json").rename(outside)
    (folder / "adapter_config.json").symlink_to(outside)
    _refused(folder, base, "is a link")


def test_a_header_of_many_empty_tensors_is_refused_early(folder, base):
    header = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}
    raw = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw)
    _refused(folder, base, "header would be")


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"peft_type": "LORA"}'])
def test_broken_configurations_are_refused(folder, base, text):
    (folder / "adapter_config.json").write_text(text)
    _refused(folder, base, "adapter_config")


def test_factors_that_the_configuration_does_not_target_are_refused(folder, base):
    _edit_config(folder, target_modules=["q_proj"])
    _refused(folder, base, "which target_modules does not name")


def test_excluded_modules_are_not_missed(folder, base):
    def drop(tensors):
        for name in [name for name in tensors if "up_proj" in name]:
            del tensors[name]

    _edit_tensors(folder, drop)
    _refused(folder, base, "holds no factors")
    _edit_config(folder, exclude_modules=["up_proj"])
    assert "model.layers.0.mlp.up_proj" not in load_adapter(folder, base.layer_shapes, base.head).layers


@pytest.mark.parametrize("key", ["r", "lora_alpha"])
def test_a_configuration_without_rank_or_alpha_is_refused(folder, base, key):
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    del config[key]
    path.write_text(json.dumps(config))
    _refused(folder, base, f"does not say {key}")


def test_the_same_adapter_is_the_same_file(tiny_llama, tmp_path):
    """Adapters are stored by what they hold. safetensors' own writer orders its metadata by chance."""
    adapter = random_adapter(load(tiny_llama, "f" * 64), rank=2)
    contents = set()
    for number in range(20):
        (tmp_path / str(number)).mkdir()
        save_adapter(tmp_path / str(number), adapter)
        contents.add((tmp_path / str(number) / "adapter_model.safetensors").read_bytes())
    assert len(contents) == 1
