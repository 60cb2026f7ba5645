"""Tiny models, a tiny tokenizer, the starter model, and homes for the workbench."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer.main
from filelock import FileLock

from core.reporting import silent
from core.seam import PLUGINS_VARIABLE
from storage import database as database_module
from storage.database import Database
from tests.zygote import Zygote

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

os.environ.setdefault("HF_HUB_OFFLINE", "0")
pytest_plugins = ["tests.workbenches", "tests.classifiers"]


def pytest_configure(config: pytest.Config) -> None:
    """Import torch where tests run: a process that only hands them to others starts those without waiting
    for it.

    Until all tests are collected, memory is not searched for what nobody needs: imports leave next to
    nothing behind, and of the time of a process that collects all, it was a quarter.
    """
    if config.getoption("numprocesses", None):
        return
    gc.disable()
    import torch

    # Tiny models gain nothing by more than one, and the engines of the tests want the other cores. More of
    # them imitate other machines: see tests/processors.py.
    torch.set_num_threads(int(os.environ.get("LORA_WORKBENCH_TEST_THREADS", "1")))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Let the workers of pytest-xdist have their processes forked by one zygote."""
    stash: pytest.Stash = node.config.stash
    if _ZYGOTE not in stash:
        stash[_ZYGOTE] = Zygote()
    node.workerinput["zygote"] = stash[_ZYGOTE].address


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the zygote."""
    if _ZYGOTE in config.stash:
        config.stash[_ZYGOTE].close()


_ZYGOTE = pytest.StashKey[Zygote]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread the files that drive a browser among the others, the journey first: where tests run in several
    processes, few of these meet, and what is left at the end is short.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    drive = [file for file in files if any(one.get_closest_marker("browser") for one in files[file])]
    drive.sort(key=lambda file: file.name != "test_journey.py")
    others = [file for file in files if file not in drive]
    at = {file: place / len(several) for several in (drive, others) for place, file in enumerate(several)}
    items[:] = [item for file in sorted([*drive, *others], key=at.__getitem__) for item in files[file]]


def pytest_collection_finish() -> None:
    """Take what is there now, torch above all, for needed: to look through it takes a third of a second each
    time, and there are tests in which that happens again and again.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def born_at_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """New registries are copies of one that went through all migrations, as every new one does."""
    path = tmp_path_factory.mktemp("registry") / "registry.db"
    Database(path).close()
    real, usual, made = Database._migrate, database_module._MIGRATIONS, path.read_bytes()

    def migrate(database: Database) -> None:
        if database_module._MIGRATIONS is usual and not database.path.exists():
            try:
                database.path.write_bytes(made)
            except OSError:  # opening it tells why, in words
                with contextlib.suppress(OSError):
                    database.path.unlink()
        real(database)

    Database._migrate = migrate  # type: ignore[method-assign]
    yield
    Database._migrate = real  # type: ignore[method-assign]


@pytest.fixture(scope="session", autouse=True)
def commands_built_once() -> Iterator[None]:
    """The command line that tests call is built once, as in a process of a user's, and not for each call;
    anew with other plugins, which bring choices of their own.
    """

    @functools.cache
    def built(application: typer.Typer, plugins: str | None) -> object:
        return typer.main.get_command(application)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            "typer.testing._get_command", lambda one: built(one, os.environ.get(PLUGINS_VARIABLE))
        )
        yield


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_CORPUS = [
    "user assistant system hello world how are you fine thanks the quick brown fox jumps over the lazy dog"
] * 4
VOCABULARY = 320


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE that can encode any text, with ChatML's special tokens and template."""
    return make_tokenizer()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """As the fixture, for those who are no tests."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bare.train_from_iterator(
        _CORPUS,
        trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=_SPECIALS, initial_alphabet=alphabet),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bare,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )
    fast.chat_template = CHATML
    return fast


def _save(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, folder: Path, **save: object) -> Path:
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder, **save)
    tokenizer.save_pretrained(folder)
    return folder


def make_llama(
    folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int = 0, layers: int = 2, **save: object
) -> Path:
    """A two-layer Llama with tied embeddings and grouped-query attention."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.15,
    )
    return _save(LlamaForCausalLM(config), tokenizer, folder, **save)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The folder of a tiny Llama."""
    return make_llama(tmp_path_factory.mktemp("models") / "tiny-llama", tokenizer)


@pytest.fixture(scope="session")
def other_llama(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A Llama of the same shapes with other weights."""
    return make_llama(tmp_path_factory.mktemp("models") / "other-llama", tokenizer, seed=1)


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The folder of a tiny GPT-2, whose linear layers are stored transposed."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=256,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    )
    return _save(GPT2LMHeadModel(config), tokenizer, tmp_path_factory.mktemp("models") / "tiny-gpt2")


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The folder of a tiny Qwen2: biases on q, k, v, and a head of its own."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    model = Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # they start at zero, and would show nothing
            torch.nn.init.normal_(parameter, std=0.5)
    return _save(model, tokenizer, tmp_path_factory.mktemp("models") / "tiny-qwen")


@pytest.fixture(scope="session")
def starter_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real starter model, fetched and converted once for all workers."""
    from core.base_model.gguf_convert import convert_gguf
    from core.base_model.starter import fetch_gguf

    base = tmp_path_factory.getbasetemp()
    shared = base.parent / "shared" if os.environ.get("PYTEST_XDIST_WORKER") else base
    folder, making = shared / "starter", shared / "starter-making"
    shared.mkdir(exist_ok=True)
    with FileLock(shared / "starter.lock"):
        if not folder.exists():
            making.mkdir()
            convert_gguf(fetch_gguf(tmp_path_factory.mktemp("download"), silent), making, silent)
            making.rename(folder)
    return folder


@pytest.fixture(params=["tiny_llama", "tiny_qwen", "tiny_gpt2"])
def any_model(request: pytest.FixtureRequest) -> Path:
    """Each of the three tiny architectures in turn."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture
def float32_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines started in this test compute in float32."""
    monkeypatch.setenv("LORA_WORKBENCH_DTYPE", "float32")
