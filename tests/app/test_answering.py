"""One message to an adapter: what is read, hashed and connected for it."""

from dataclasses import replace

import pytest
import torch

from app.engine.answering import Answers
from app.service.conversations import Conversations
from app.shared.engine_client import EngineClient
from app.shared.errors import EngineUnavailable
from app.shared.refusals import answered, refused
from core.adapter_slots import ADAPTER_SLOTS
from core.engine import Engine
from core.errors import InvalidData, PromptTooLong, WorkbenchError, WrongBase
from core.events import TokenDone
from core.generate.config import GenerationConfig
from core.generate.one_token import DecodingState
from storage.blobs import BlobStore
from storage.errors import BlobDamaged, NotFound
from storage.tables import Adapter
from tests.workbenches import wait_for

HELLO = [{"role": "user", "content": "hello"}]
GREEDY = GenerationConfig(max_tokens=3, temperature=0.0)


@pytest.fixture
def engine_here(workbench, monkeypatch):
    """The engine's part of answering, in this process and behind the workbench's own client."""
    answers = Answers(workbench.registry, Engine(torch.device("cpu"), torch.float32))

    def answer(base, rows, name="", *, each=False):
        asked = answers.ask({"base": base, "rows": rows, "name": name, "each": each})
        while True:
            answers.decode_for(0.0)
            while not asked.out.empty():
                message = answered(asked.out.get())
                if "done" in message:
                    return
                yield TokenDone(**message["token"])

    monkeypatch.setattr(workbench.engine, "answer", answer)


@pytest.fixture
def hashed(monkeypatch):
    """The digests that were computed again, one entry for each time."""
    seen, verify = [], BlobStore.verify
    monkeypatch.setattr(BlobStore, "verify", lambda self, digest: seen.append(digest) or verify(self, digest))
    return seen


def _talk_to(workbench, name):
    return list(workbench.chats.answer("llama", [None, name], [HELLO, HELLO], GREEDY))


@pytest.mark.parametrize(("share", "times"), [(0.5, 1), (0.0, 2)])
def test_an_adapter_is_hashed_when_it_is_read_and_not_when_it_is_used(
    workbench, engine_here, trained, hashed, monkeypatch, share, times
):
    """What lost its slot is read again only where there is no room in memory for it."""
    monkeypatch.setattr("core.adapter_slots._MEMORY_SHARE", share)
    mine = trained("mine").digest
    for _ in range(5):
        assert {token.row for token in _talk_to(workbench, "mine")} == {0, 1}
    assert hashed == [mine]
    for number in range(ADAPTER_SLOTS):  # as many as there are slots: none is left for the first
        _talk_to(workbench, trained("x" * (10 + number)).name)
    _talk_to(workbench, "mine")
    assert hashed.count(mine) == times


def test_an_adapter_whose_files_are_damaged_is_refused_when_it_is_loaded(workbench, engine_here, trained):
    row = trained("mine")
    path = workbench.registry.blobs.path(row.digest) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    for _ in range(2):  # what was refused is not taken for loaded
        with pytest.raises(BlobDamaged, match="has changed on disk"):
            _talk_to(workbench, "mine")
    assert _talk_to(workbench, trained("sound").name)


def test_a_message_reads_neither_tokenizer_nor_template_again(workbench, engine_here, trained, monkeypatch):
    trained("mine")
    _talk_to(workbench, "mine")
    monkeypatch.delattr("app.shared.identity.tokenizer_hash")
    monkeypatch.delattr("app.shared.bases.manifest_of")
    assert _talk_to(workbench, "mine")


def test_a_panic_ends_the_request_and_not_the_engine(workbench, engine_here, trained, monkeypatch):
    class PanicException(BaseException):
        """As libraries written in Rust raise it."""

    def breaks(*_, **__):
        raise PanicException("called `Option::unwrap()` on a `None` value")

    name = trained("mine").name
    with monkeypatch.context() as broken:
        broken.setattr("core.engine.Engine.answer", breaks)
        with pytest.raises(WorkbenchError, match=r"broke down .* get the base anew, or use another"):
            _talk_to(workbench, name)
    assert _talk_to(workbench, name)


@pytest.fixture
def passes(monkeypatch):
    """How many rows each token's pass was over, in order."""
    seen, step = [], DecodingState.step
    monkeypatch.setattr(
        DecodingState, "step", lambda self, rows, longest: seen.append(rows) or step(self, rows, longest)
    )
    return seen


def _texts(streams):
    """Take from all in turn until all have ended; what each says."""
    texts, left = ["" for _ in streams], dict(enumerate(streams))
    while left:
        for at, stream in list(left.items()):
            token = next(stream, None)
            texts[at] += token.text if token else ""
            if token is None:
                del left[at]
    return texts


def test_what_is_asked_while_another_answers_shares_its_passes(workbench, engine_here, trained, passes):
    names = [None, trained("a").name, trained("bb").name]
    config = GenerationConfig(max_tokens=24, temperature=0.0)

    def ask(number):
        said = [{"role": "user", "content": "hello " * (1 + number)}]
        return workbench.chats.answer("llama", [names[number % 3]], [said], config)

    alone = [_texts([ask(number)])[0] for number in range(8)]
    count = len(passes)
    passes.clear()
    streams = []
    for number in range(8):
        streams.append(ask(number))
        next(streams[-1])
    assert max(passes) >= 4  # they are asked one after another, a few tokens apart
    rest = _texts(streams)
    assert len(passes) < count / 3
    assert all(text.endswith(one) and one for text, one in zip(alone, rest, strict=True))


def test_a_message_is_one_connection_to_the_engine(workbench, trained, monkeypatch):
    trained("mine")
    workbench.engine.keep_attached()
    made, connect = [], EngineClient._connect
    monkeypatch.setattr(EngineClient, "_connect", lambda self: made.append(1) or connect(self))
    for count in range(1, 4):
        assert _talk_to(workbench, "mine")
        assert len(made) == count


@pytest.mark.parametrize("error", [WrongBase("a"), InvalidData("b"), NotFound("c"), WorkbenchError("d")])
def test_a_refusal_arrives_as_what_it_was(error):
    with pytest.raises(type(error), match=str(error)) as raised:
        answered(refused(error, str(error)))
    assert raised.type is type(error)


@pytest.mark.parametrize("error", [KeyError("x"), SystemExit("x"), Exception("x")])
def test_what_is_no_refusal_of_ours_is_the_engine_s_fault(error):
    with pytest.raises(EngineUnavailable, match="the log says why"):
        answered(refused(error, "the log says why"))


def test_refusals_of_a_running_engine_keep_their_class(workbench, trained, tmp_path):
    """Whatever the app would have caught itself changes between its look and the engine's."""
    trained("mine")
    asked = list(workbench.registry.all(Adapter))
    base = {"name": "llama", "folder": str(tmp_path), "fingerprint": "b" * 64, "stat_key": "", "template": ""}
    told = {"name": "mine", "digest": asked[0].digest, "base_fingerprint": "a" * 64, "base_name": "llama"}
    row = {"adapter": told, "messages": HELLO, "config": GREEDY.to_dict()}
    with pytest.raises(WrongBase, match="mine was made for llama"):
        list(workbench.engine.answer(base, [row]))
    with pytest.raises(NotFound, match="absent"):
        workbench.engine.tokens("absent", "0" * 64, 0)
    with pytest.raises(NotFound):
        list(workbench.engine.measure("llama", "absent", []))


def test_a_conversation_that_is_too_long_for_one_is_told_there_and_the_others_answer(
    workbench, trained, engine_here
):
    """Speakers have answered differently by then; what is asked of all at once is refused as a whole."""
    trained("a")
    talk, config = Conversations(workbench.registry, workbench.chats), replace(GREEDY, max_tokens=4)
    chat = talk.ask(None, "llama", ["", "a"], "hello", config)
    wait_for(lambda: not talk.busy(chat))
    workbench.registry.chats.grow({talk.turns(chat)[0].answers["a"].id: {"content": "and so on " * 200}})
    talk.ask(chat, "llama", ["", "a"], "and?", config)
    wait_for(lambda: not talk.busy(chat))
    plain, mine = talk.turns(chat)[1].answers.values()
    assert (plain.finish, mine.finish, mine.content) == ("length", "error", "")
    assert "tokens long; this model reads at most 256" in mine.details["error"]
    alone = talk.branch(talk.turns(chat)[1].question.id, "and?", [""], config)
    wait_for(lambda: not talk.busy(alone))
    assert talk.turns(alone)[1].answers[""].content == plain.content
    talk.again(mine.id, config)
    wait_for(lambda: not talk.busy(chat))
    assert talk.turns(chat)[1].answers["a"].finish == "error"
    seen = [HELLO, [{"role": "user", "content": "and so on " * 200}]]
    with pytest.raises(PromptTooLong, match="this model reads at most 256"):
        list(workbench.chats.answer("llama", [None, "a"], seen, config))
