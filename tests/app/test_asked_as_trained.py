"""The chat options of a data set go along with the adapter, so that it is asked as it was trained."""

from dataclasses import replace

import openai
import pytest
from transformers import AutoTokenizer

from app.service.prompt_texts import parse_prompts
from app.shared.engine_client import EngineClient
from app.shared.trained_chats import shared_chat
from app.web.api.api_app import guarded_api
from app.web.api.api_key import api_key
from app.web.sections.playground.column_choice import warnings_html
from core.data.chat_options import ChatOptions
from core.errors import InvalidData
from core.generate.config import GenerationConfig
from core.train.training_options import TrainingOptions
from storage.tables import Adapter, ChatMessage
from tests.api_server import listening
from tests.workbenches import do_job, wait_for, write_refusing_template

QUICK = {"max_steps": 2, "rank": 2, "micro_batch_size": 1, "max_length": 64}
CHAT = ChatOptions(join_turns=True, template_kwargs={"enable_thinking": False, "mood": "calm"})
TWICE = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
TEMPLATE = (
    "{% for m in messages %}{% if not loop.first and m.role == messages[loop.index0 - 1].role %}"
    "{{ raise_exception('turns must alternate') }}{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{{ mood or '' }}{% endif %}"
)
CONFIG = GenerationConfig(max_tokens=2, temperature=0.0)


@pytest.fixture
def mine(workbench, tiny_llama, tmp_path):
    """An adapter for the base "strict", trained on data with CHAT."""
    folder = write_refusing_template(tiny_llama, tmp_path / "strict", TEMPLATE)
    do_job(workbench, "add_model", {"origin": str(folder), "name": "strict"})
    workbench.datasets.fit("data", CHAT)
    options = TrainingOptions.parse(QUICK)
    run = workbench.runs.wait(
        workbench.training.start("strict", "data", options, name="mine", anyway=True).id
    )
    assert (run.state, ChatOptions.parse(run.chat)) == ("finished", CHAT), run.reason
    return workbench.registry.find(Adapter, "mine")


@pytest.fixture
def length(mine, tmp_path):
    """A function that counts the tokens of the prompt for TWICE with this behind it."""
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "strict")
    turns = "<|im_start|>user\none\n\ntwo<|im_end|>\n<|im_start|>assistant\n"
    return lambda tail: len(tokenizer(turns + tail, add_special_tokens=False)["input_ids"])


def asked(workbench, speaker, messages, config=CONFIG):
    """How many tokens the speaker's prompt has."""
    return list(workbench.chats.answer("strict", [speaker], [messages], config))[-1].prompt_tokens


def test_it_is_asked_so_unless_something_else_is_said(workbench, mine, length):
    assert ChatOptions.parse(mine.chat) == CHAT
    joined = [{"role": "user", "content": "one\n\ntwo"}]
    assert asked(workbench, None, joined) == length("")
    assert asked(workbench, "mine", TWICE) == length("<think>\n\n</think>\n\ncalm")
    louder = GenerationConfig(max_tokens=2, template_kwargs='{"mood": "very loud"}')
    assert asked(workbench, "mine", TWICE, louder) == length("<think>\n\n</think>\n\nvery loud")
    as_said = GenerationConfig(max_tokens=2, as_trained=False)
    assert asked(workbench, "mine", joined, as_said) == length("")
    for speaker, config in ((None, CONFIG), ("mine", as_said)):
        with pytest.raises(InvalidData, match="alternate"):
            asked(workbench, speaker, TWICE, config)


def test_the_playground_says_so_and_keeps_how_each_was_asked(workbench, mine):
    said = warnings_html(workbench, "strict", ["", "mine"])
    assert (
        "<p class='hint'>mine is asked as it was trained: neighbouring turns of one speaker are joined"
        in said
    )
    assert "enable_thinking = false" in said
    chat = workbench.conversations.ask(None, "strict", ["", "mine"], "hello", CONFIG)
    wait_for(lambda: all(one.finish for one in workbench.registry.chats.messages(chat)[1:]))
    messages = {one.speaker: one for one in workbench.registry.chats.messages(chat) if one.role != "user"}
    settings = {name: GenerationConfig.from_dict(one.details["settings"]) for name, one in messages.items()}
    assert settings["mine"].chat == CHAT
    assert settings[""].chat == ChatOptions()
    written = workbench.registry.get(ChatMessage, messages["mine"].id)
    assert workbench.conversations.score(written.id).tokens
    assert workbench.conversations.scores(chat, ["mine"], "fine", CONFIG)[0].tokens


def test_a_reference_answer_is_scored_behind_what_is_asked_now(workbench, mine):
    chat = workbench.conversations.ask(None, "strict", [""], "hello", CONFIG)
    wait_for(lambda: not workbench.conversations.busy(chat))

    def scored(speaker, config):
        (found,) = workbench.conversations.scores(chat, [speaker], "fine", config)
        return found.total

    louder = replace(CONFIG, template_kwargs='{"mood": "very loud"}')
    (by_hand,) = workbench.chats.score(
        "strict", [None], [{"role": "user", "content": "hello"}], "fine", chat=louder.chat
    )
    assert scored("", louder) == by_hand.total != scored("", CONFIG)
    assert scored("mine", CONFIG) != scored("mine", replace(CONFIG, as_trained=False))


def test_a_prompt_set_is_answered_so(workbench, mine, jobs_here, monkeypatch):
    asked, engine = [], EngineClient.answer

    def listening_in(self, base, rows, *about, **more):
        asked.extend((row["adapter"], GenerationConfig.from_dict(row["config"]).chat) for row in rows)
        return engine(self, base, rows, *about, **more)

    monkeypatch.setattr(EngineClient, "answer", listening_in)
    workbench.prompts.keep("one", parse_prompts("hello"))
    workbench.prompts.start("one", "strict", [None, "mine"], CONFIG)
    assert {told["name"] if told else None: chat for told, chat in asked} == {
        None: ChatOptions(),
        "mine": CHAT,
    }
    asked.clear()
    workbench.prompts.start("one", "strict", ["mine"], replace(CONFIG, as_trained=False))
    assert [chat for _, chat in asked] == [ChatOptions()]


def test_the_server_asks_so_and_joins_neighbouring_turns(workbench, mine, length):
    key = api_key(workbench.settings, workbench.preferences)
    with (
        listening(guarded_api(workbench, set())) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=60) as client,
    ):

        def tokens(model, **more):
            given = {"model": model, "messages": TWICE, "max_tokens": 2} | more
            return client.chat.completions.create(**given).usage.prompt_tokens

        assert tokens("mine") == length("<think>\n\n</think>\n\ncalm")
        thinking = {"chat_template_kwargs": {"enable_thinking": True}}
        assert tokens("mine", extra_body=thinking) == length("calm")
        with pytest.raises(openai.BadRequestError, match="alternate"):
            tokens("strict")


def test_what_is_made_of_several_has_what_they_share(workbench, mine, trained):
    other = trained("other")
    assert shared_chat(workbench.registry, [mine.digest]) == mine.chat
    assert shared_chat(workbench.registry, [mine.digest, mine.digest]) == mine.chat
    assert shared_chat(workbench.registry, [mine.digest, other.digest]) == {}
