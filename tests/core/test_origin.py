"""What is seen at once of the place that a base model is to come from."""

import json
import shutil

import pytest

from core.base_model.origin import STARTER, require_origin
from core.errors import InvalidModel


def test_what_can_be_a_base_passes(tiny_llama, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF and more")
    for origin in (STARTER, "owner/name", str(tiny_llama), str(tmp_path / "x.gguf")):
        require_origin(origin)


@pytest.mark.parametrize("origin", ["/no/such/folder", "./none", r"C:\models\x", "a/b/c", "nowhere/x.gguf"])
def test_a_path_where_nothing_is_is_printed_as_it_was_typed(origin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidModel) as told:
        require_origin(origin)
    assert str(told.value) == f"There is no {origin} here: neither a folder nor a file. Check the path."


def test_what_is_no_path_is_told_what_is_expected():
    with pytest.raises(InvalidModel, match=r"^nowhere at all is neither a folder, a \.gguf file, a hub id"):
        require_origin("nowhere at all")


def test_a_file_of_another_kind_and_a_folder_without_all_files_are_refused(tiny_llama, tmp_path):
    for name, content, said in (
        ("x.gguf", b"GGML", r"x\.gguf is not a GGUF file"),
        ("x.safetensors", b"", r"x\.safetensors is a file, but no \.gguf"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidModel, match=said):
            require_origin(str(tmp_path / name))
    shutil.copy(tiny_llama / "config.json", tmp_path)
    with pytest.raises(InvalidModel, match="has no tokenizer files"):
        require_origin(str(tmp_path))


def test_a_packed_folder_is_not_asked_for_what_a_plain_one_needs(tmp_path):
    about = {"quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "config.json").write_text(json.dumps(about))
    require_origin(str(tmp_path))
