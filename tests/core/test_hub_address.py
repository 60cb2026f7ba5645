"""Addresses of the hub as people paste them: what is meant, and what is refused by name."""

import pytest

from core.errors import InvalidInput
from core.hub_address import DATA_SET, MODEL, hub_id_in


@pytest.mark.parametrize(
    ("text", "wanted", "found"),
    [
        ("https://huggingface.co/owner/name", MODEL, "owner/name"),
        ("https://huggingface.co/owner/name/", MODEL, "owner/name"),
        ("https://huggingface.co/owner/name/tree/main", MODEL, "owner/name"),
        ("https://huggingface.co/owner/name/blob/main/config.json", MODEL, "owner/name"),
        ("https://huggingface.co/owner/name/discussions/3#end", MODEL, "owner/name"),
        ("http://www.huggingface.co/owner/name?library=transformers", MODEL, "owner/name"),
        ("HF.co/owner/name", MODEL, "owner/name"),
        ("https://huggingface.co/datasets/owner/rows", DATA_SET, "owner/rows"),
        ("https://huggingface.co/datasets/owner/rows/viewer/default/train?row=3", DATA_SET, "owner/rows"),
        ("https://hf.co/datasets/owner/rows/tree/main/", DATA_SET, "owner/rows"),
        ("owner/name", MODEL, "owner/name"),
        ("/models/huggingface.co/owner/name", MODEL, "/models/huggingface.co/owner/name"),
        (r"C:\models\x", MODEL, r"C:\models\x"),
    ],
)
def test_an_address_names_what_it_shows(text, wanted, found):
    assert hub_id_in(text, wanted) == found


@pytest.mark.parametrize(
    ("text", "wanted", "said"),
    [
        ("https://huggingface.co", MODEL, "is no page of a model"),
        ("https://huggingface.co/owner", MODEL, "is no page of a model"),
        ("https://huggingface.co/spaces/owner/name", MODEL, "is no page of a model"),
        ("https://huggingface.co/datasets/owner", DATA_SET, "is no page of a data set"),
        ("https://huggingface.co/datasets/owner/rows", MODEL, "is a data set, not a model"),
        ("https://huggingface.co/owner/name", DATA_SET, "is a model, not a data set"),
        ("https://huggingface.co/owner/name/tree/v1.0", MODEL, "names the revision v1.0, and only main"),
        ("https://huggingface.co/owner/name/tree/refs%2Fpr%2F7", MODEL, "names the revision refs/pr/7,"),
    ],
)
def test_what_is_not_meant_by_it_is_refused(text, wanted, said):
    with pytest.raises(InvalidInput, match=said):
        hub_id_in(text, wanted)
