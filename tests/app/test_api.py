"""The HTTP API, with the unmodified clients of OpenAI, LangChain and Ollama, over an engine of its own."""

import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import ollama
import openai
import pytest
import torch
from transformers import AutoTokenizer

from app.web.api.api_app import guarded_api
from app.web.api.api_key import api_key
from core.generate.config import GenerationConfig
from core.lora.peft.files import load_adapter
from storage.tables import Adapter
from tests.api_server import listening
from tests.core.helpers import load
from tests.workbenches import copy_adapter

HELLO = [{"role": "user", "content": "hello"}]
GREEDY = {"temperature": 0, "max_tokens": 12}


class Served:
    """An API that is served, and its clients."""

    def __init__(self, workbench, address):
        self.workbench, self.address = workbench, address
        self.key = api_key(workbench.settings, workbench.preferences)
        self.openai = self.client(self.key)
        self.ollama = ollama.Client(self.address, headers={"Authorization": f"Bearer {self.key}"})

    def client(self, key):
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0, timeout=60)

    def chat(self, model="llama", **options):
        return self.openai.chat.completions.create(model=model, messages=HELLO, **{**GREEDY, **options})

    def own_answer(self, adapter=None, **options):
        """What the playground's service answers."""
        config = GenerationConfig(**{**GREEDY, **options})
        return "".join(one.text for one in self.workbench.chats.answer("llama", [adapter], [HELLO], config))


@pytest.fixture
def served(workbench):
    with listening(guarded_api(workbench, set())) as address:
        found = Served(workbench, address)
        yield found
        found.openai.close()
        found.ollama.close()


def test_the_openai_client_gets_what_the_playground_answers(served, trained):
    trained("mine")
    assert [(one.id, one.owned_by) for one in served.openai.models.list()] == [
        ("llama", "llama"),
        ("mine", "llama"),
    ]
    assert served.openai.models.retrieve("mine").parent == "llama"

    whole = served.chat("mine")
    own = served.own_answer("mine")
    assert own
    assert whole.choices[0].message.content == own
    assert own != served.own_answer()  # else the adapter does nothing here
    chunks = list(served.chat("mine", stream=True, stream_options={"include_usage": True}))
    said = [one.choices[0] for one in chunks if one.choices]
    assert said[0].delta.role == "assistant"
    assert "".join(one.delta.content or "" for one in said) == own
    assert [one.finish_reason for one in said if one.finish_reason] == [whole.choices[0].finish_reason]
    assert chunks[-1].usage == whole.usage
    assert whole.usage.prompt_tokens > 3
    adapter = served.workbench.serving.find("mine").adapter
    assert adapter.digest[:12] in whole.system_fingerprint  # which weights answered


def test_several_answers_seeds_limits_and_stop_texts(served):
    three = served.chat(n=3, temperature=1.5, seed=5)
    texts = [one.message.content for one in three.choices]
    assert [one.index for one in three.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    again = served.chat(n=3, temperature=1.5, seed=5)
    assert [one.message.content for one in again.choices] == texts
    assert again.usage == three.usage
    assert served.chat(temperature=1.5, seed=6).choices[0].message.content == texts[1]

    own = served.own_answer()
    short = served.chat(max_completion_tokens=3, max_tokens=openai.omit)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 3)
    stop = own[4:9]  # several tokens of a byte-level tokenizer
    for given in (stop, ["never said", stop]):
        stopped = served.chat(stop=given)
        assert stopped.choices[0].message.content == own[: own.index(stop)]
        assert stopped.choices[0].finish_reason == "stop"
        assert stopped.usage.completion_tokens < 12
    pieces = [one.choices[0].delta.content or "" for one in served.chat(stop=stop, stream=True)]
    assert "".join(pieces) == own[: own.index(stop)]


def test_plain_text_is_gone_on_with(served):
    written_out = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    texts = served.openai.completions.create(model="llama", prompt=[written_out, "fine"], **GREEDY)
    assert texts.choices[0].text == served.own_answer()
    assert texts.choices[1].text not in ("", texts.choices[0].text)
    streamed = served.openai.completions.create(model="llama", prompt=written_out, stream=True, **GREEDY)
    assert "".join(one.choices[0].text for one in streamed) == texts.choices[0].text


@torch.no_grad()
def _merged(served, base, folder, name):
    """transformers' model with the adapter merged in."""
    from transformers import AutoModelForCausalLM

    row = served.workbench.serving.find(name).adapter
    adapter = load_adapter(served.workbench.registry.blobs.path(row.digest), base.layer_shapes)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for path, layer in adapter.layers.items():
        model.get_submodule(path).weight.add_(layer.delta_weight())
    return model


def _by_transformers(served, folder, name, count):
    """Log-probabilities [count, vocabulary] of a model with the adapter merged in, along its likeliest."""
    base = load(folder)
    model = _merged(served, base, folder, name)
    ids = base.renderer.encode_prompt(HELLO)
    for _ in range(count):
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        ids.append(int(logits[-1].argmax()))
    return logits[-count:].log_softmax(-1)


def test_log_probabilities_are_transformers_own(served, trained, tiny_llama):
    trained("mine")
    whole = served.chat("mine", logprobs=True, top_logprobs=3)
    content, text = whole.choices[0].logprobs.content, whole.choices[0].message.content
    assert bytes(byte for one in content for byte in one.bytes).decode(errors="replace") == text
    wanted = _by_transformers(served, tiny_llama, "mine", len(content))
    assert [one.logprob for one in content] == pytest.approx(wanted.amax(-1).tolist(), abs=1e-4)
    top = [[other.logprob for other in one.top_logprobs] for one in content]
    torch.testing.assert_close(torch.tensor(top), wanted.topk(3).values, atol=1e-4, rtol=1e-4)
    assert [one.top_logprobs[0].token for one in content] == [one.token for one in content]  # greedy

    chunks = [one.choices[0] for one in served.chat("mine", logprobs=True, top_logprobs=3, stream=True)]
    assert [one for chunk in chunks for one in (chunk.logprobs.content if chunk.logprobs else [])] == content
    hot = served.chat("mine", logprobs=True, temperature=2.0, seed=1).choices[0].logprobs.content
    assert [one.top_logprobs for one in hot] == [[]] * len(hot)
    assert served.chat("mine").choices[0].logprobs is None

    written_out = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    asked = {"model": "mine", "prompt": written_out, "logprobs": 2, **GREEDY}
    told = served.openai.completions.create(**asked).choices[0].logprobs
    assert told.token_logprobs == [one.logprob for one in content]
    assert told.tokens == [one.token for one in content]
    assert [len(one) for one in told.top_logprobs] == [2] * len(content)
    assert told.text_offset == sorted(told.text_offset)
    pieces = [one.choices[0].logprobs for one in served.openai.completions.create(**asked, stream=True)]
    assert [at for piece in pieces for at in (piece.text_offset if piece else [])] == told.text_offset


@torch.no_grad()
def test_a_prompt_is_given_back_with_transformers_log_probabilities(served, trained, tiny_llama):
    trained("mine")
    base = load(tiny_llama)
    texts = ["hello world 🌧 there", "fine"]
    prompts = [base.renderer.encode_text(one) for one in texts]
    asked = {"model": "mine", "echo": True, "max_tokens": 2, "temperature": 0}
    ask = served.openai.completions.create
    alone = [one.text for one in ask(**asked | {"echo": False}, prompt=prompts).choices]
    assert [one.text for one in ask(**asked | {"echo": False}, prompt=texts).choices] == alone
    found = ask(**asked, prompt=prompts, logprobs=2, n=2).choices
    assert [one.text for one in found] == [text + alone[at] for at, text in enumerate(texts) for _ in "12"]
    model = _merged(served, base, tiny_llama, "mine")
    for one, ids, text in zip(found[::2], prompts, texts, strict=True):
        told = one.logprobs
        wanted = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        own = wanted[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        assert told.token_logprobs[0] is None
        assert told.token_logprobs[1 : len(ids)] == pytest.approx(own.tolist(), abs=1e-4)
        assert len(told.tokens) == len(told.token_logprobs) == len(ids) + 2
        top = [max(each.values()) for each in told.top_logprobs[1 : len(ids)]]
        assert top == pytest.approx(wanted[:-1].amax(-1).tolist(), abs=1e-4)
        assert told.text_offset[0] == 0
        assert told.text_offset == sorted(told.text_offset)
        assert told.text_offset[len(ids)] == len(text)
    whole = ask(**asked, prompt=texts, logprobs=2).choices
    for one, other in zip(whole, found[::2], strict=True):
        assert (one.text, one.logprobs.tokens) == (other.text, other.logprobs.tokens)
        assert one.logprobs.text_offset == other.logprobs.text_offset
    assert [one.text for one in ask(**asked, prompt=texts).choices] == [one.text for one in whole]
    pieces = [one.choices[0] for one in ask(**asked, prompt=texts[0], logprobs=2, stream=True)]
    assert "".join(one.text for one in pieces) == whole[0].text
    told = [at for one in pieces for at in one.logprobs.text_offset]
    assert told == whole[0].logprobs.text_offset
    for name, value in {"logprobs": 6, "prompt": [[1, -1]]}.items():
        with pytest.raises(openai.BadRequestError, match=name) as refused:
            ask(**asked | {"prompt": "hello", name: value})
        assert refused.value.param == name
    with pytest.raises(openai.BadRequestError, match="none of them empty"):
        ask(**asked, prompt=[[1], []])


def test_log_probabilities_stop_where_a_stop_text_does(served):
    whole = served.chat(logprobs=True).choices[0]
    stop = whole.message.content[4:9]
    for stream in (False, True):
        found = served.chat(logprobs=True, stop=stop, stream=stream)
        choices = [one.choices[0] for one in found] if stream else found.choices
        entries = [one for choice in choices if choice.logprobs for one in choice.logprobs.content]
        shown = whole.message.content[: whole.message.content.index(stop)]
        said = bytes(byte for one in entries for byte in one.bytes).decode(errors="replace")
        assert said.startswith(shown)
        before_last = bytes(byte for one in entries[:-1] for byte in one.bytes)
        assert len(before_last.decode(errors="replace")) < len(shown) + 1  # no token of the stop text alone
        assert entries == whole.logprobs.content[: len(entries)]


def test_requests_for_several_adapters_at_once_are_each_answered_by_their_own(served, trained):
    names = [None, *(trained("a" * length).name for length in range(3, 13))]  # more than there are slots
    own = {name: served.own_answer(name) for name in names}
    assert len(set(own.values())) == len(names)

    def ask(number):
        name = names[number % len(names)]
        chunks = served.chat(name or "llama", stream=True)
        return name, "".join(one.choices[0].delta.content or "" for one in chunks)

    with ThreadPoolExecutor(22) as pool:
        answers = list(pool.map(ask, range(22)))
    assert answers == [(name, own[name]) for name in names * 2]


def test_sixty_four_at_once_over_eight_adapters_lose_nothing(served, trained):
    names = [trained("a" * length).name for length in range(3, 11)]
    own = {name: served.own_answer(name) for name in names}
    assert len(set(own.values())) == 8

    def ask(number):
        pieces = [
            (one.delta.content or "", one.finish_reason)
            for chunk in served.chat(names[number % 8], stream=True)
            for one in chunk.choices
        ]
        return "".join(text for text, _ in pieces), [finish for _, finish in pieces if finish]

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(ask, range(64)))
    assert [text for text, _ in answers] == [own[names[number % 8]] for number in range(64)]
    assert all(len(finishes) == 1 for _, finishes in answers)
    key = {"Authorization": f"Bearer {served.key}"}
    told = httpx.get(f"{served.address}/metrics", headers=key).text
    assert "lora_workbench_requests_running 0\n" in told
    assert "lora_workbench_requests_waiting 0\n" in told


def test_blends_and_checkpoints_are_models_too(served, trained):
    trained("mine"), trained("other")
    own = {
        name: _said(served.workbench, name) for name in ("mine=0.5+other=0.5", "mine=1+other=0", "other=-1")
    }
    for name, text in own.items():
        found = served.chat(name)
        assert (found.model, found.choices[0].message.content) == (name, text)
        options = {"temperature": 0, "num_predict": 12, "top_k": 0}
        assert served.ollama.chat(name, HELLO, options=options).message.content == text
    assert own["mine=1+other=0"] == served.own_answer("mine") != own["mine=0.5+other=0.5"]
    weights = served.chat("mine=0.5+other=-0.25").system_fingerprint
    assert re.fullmatch(r"fp_\w{12}_\w{12}\*0\.5\+\w{12}\*-0\.25", weights)
    assert served.openai.models.retrieve("mine=0.5+other=0.5").parent == "llama"
    for name, said in {"mine=half": "which is no number", "mine=1+mine=2": "in the blend twice"}.items():
        with pytest.raises(openai.BadRequestError, match=said) as refused:
            served.chat(name)
        assert refused.value.param == "model"
    with pytest.raises(openai.NotFoundError, match=r"no adapter called 'nobody'"):
        served.chat("mine=1+nobody=1")


def _said(workbench, speaker):
    config = GenerationConfig(**GREEDY)
    return "".join(one.text for one in workbench.chats.answer("llama", [speaker], [HELLO], config))


def test_adapters_are_loaded_and_unloaded_as_vllm_does(served, trained, tmp_path, jobs_here):
    trained("mine")
    copy_adapter(served.workbench, "mine", tmp_path / "files")
    key = {"Authorization": f"Bearer {served.key}"}

    def post(what, **body):
        found = httpx.post(f"{served.address}/v1/{what}_lora_adapter", json=body, headers=key, timeout=60)
        return found.status_code, found.text

    files = {"lora_name": "new", "lora_path": str(tmp_path / "files")}
    assert post("load", **files) == (200, "Success: LoRA adapter 'new' added successfully.")
    assert served.chat("new").choices[0].message.content == served.own_answer("mine")
    assert served.openai.models.retrieve("new").parent == "llama"
    status, said = post("load", **files)
    assert (status, "is taken by another adapter" in said, "load_inplace" in said) == (400, True, True)
    assert post("load", **files, load_inplace=True)[0] == 200
    assert sorted(served.workbench.registry.names(Adapter)) == ["mine", "new"]
    for wrong, status, said in (
        ({"lora_name": "mine", "load_inplace": True}, 400, "one of the workbench's own"),
        ({"lora_name": " "}, 400, "lora_name is empty"),
        ({"lora_name": "llama"}, 400, "llama is a base here"),
        ({"lora_name": " llama "}, 400, "is a base here"),
        ({"lora_name": "run-1@2"}, 400, "how a checkpoint of a run is asked for"),
        ({"lora_path": str(tmp_path / "absent")}, 404, "There is nothing at"),
        ({"lora_name": "odd", "lora_path": str(tmp_path)}, 400, "adapter"),
        ({"lora_name": "odd", "base_model_name": "gpt"}, 400, "no base model called 'gpt'"),
        ({"lora_name": "odd", "lora_rank": 3}, 400, "lora_rank is not supported here"),
    ):
        found = post("load", **files | wrong)
        assert (found[0], said in found[1]) == (status, True), found
    assert post("unload", lora_name="new") == (200, "Success: LoRA adapter 'new' removed successfully.")
    assert post("unload", lora_name="new")[0] == 404
    status, said = post("unload", lora_name="mine")
    assert (status, "was not loaded through the API" in said) == (400, True)
    with pytest.raises(openai.NotFoundError):
        served.chat("new")
    with listening(guarded_api(served.workbench, {"127.0.0.1"}, open_here=True)) as address:
        refused = httpx.post(f"{address}/v1/load_lora_adapter", json=files)
        assert refused.status_code == 403


def test_what_cannot_be_answered_is_refused_in_openais_form(served, trained):
    trained("mine")
    with (
        served.client("wrong") as stranger,
        pytest.raises(openai.AuthenticationError, match="This is not the key") as refused,
    ):
        stranger.models.list()
    assert refused.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError, match=r"no model called 'gpt'.*llama, mine") as refused:
        served.chat("gpt")
    assert refused.value.param == "model"
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=r"is \d{3,} tokens long.* at most 256") as refused:
            served.openai.chat.completions.create(
                model="llama", messages=[{"role": "user", "content": "hello " * 300}], stream=stream
            )
        assert refused.value.code == "context_length_exceeded"
    for name, value in {
        "tool_choice": "sometimes",
        "response_format": {"type": "grammar"},
        "logit_bias": {"5": 1},
        "logprobs": 3,
        "top_logprobs": 2,
        "temperature": 9,
        "n": 33,
        "stop": [""],
        "presence_penalty": 2.5,
    }.items():
        with pytest.raises(openai.BadRequestError, match=name) as refused:
            served.chat(**{name: value})
        assert refused.value.param == name
    with pytest.raises(openai.BadRequestError, match=r"min_tokens is not supported here"):
        served.chat(extra_body={"min_tokens": 3})
    given = {"chat_template_kwargs": {"messages": []}}
    with pytest.raises(openai.BadRequestError, match=r"no name that a chat template can be given"):
        served.chat(extra_body=given)
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    with pytest.raises(openai.BadRequestError, match=r"messages\[0\]\.content\[0\] is no text"):
        served.openai.chat.completions.create(model="llama", messages=image)


def test_the_ollama_client_gets_the_same(served, trained):
    trained("mine")
    assert [one.model for one in served.ollama.list().models] == ["llama", "mine"]
    options = {"temperature": 0, "num_predict": 12, "top_k": 0, "num_ctx": 2048}
    own = served.own_answer("mine")
    whole = served.ollama.chat("mine:latest", HELLO, options=options)
    assert whole.message.content == own
    assert (whole.done, whole.eval_count) == (True, 12)
    lines = list(served.ollama.chat("mine", HELLO, options=options, stream=True))
    assert "".join(one.message.content for one in lines) == own
    assert [one.done for one in lines] == [False] * (len(lines) - 1) + [True]
    assert served.ollama.generate("mine", "hello", options=options).response == own
    assert served.ollama.generate("mine").done_reason == "load"
    with pytest.raises(ollama.ResponseError, match="There are: llama, mine") as refused:
        served.ollama.generate("other", "hello")
    assert refused.value.status_code == 404


def test_the_ollama_client_is_told_of_models(served, trained, tiny_llama):
    trained("mine")
    assert served.ollama.ps().models == []
    served.ollama.chat("mine", HELLO, options={"num_predict": 1})
    assert [(one.model, one.context_length) for one in served.ollama.ps().models] == [("llama", 256)]
    for name, parent in {"llama": "", "mine:latest": "llama"}.items():
        told = served.ollama.show(name)
        assert told.details.parent_model == parent
        architecture = told.modelinfo["general.architecture"]
        assert told.modelinfo[f"{architecture}.context_length"] == 256
        assert told.capabilities == ["completion"]
        assert told.template == AutoTokenizer.from_pretrained(tiny_llama).chat_template
    with pytest.raises(ollama.ResponseError, match="no model called 'other'") as refused:
        served.ollama.show("other")
    assert refused.value.status_code == 404
    for method, text in (("GET", "Ollama is running"), ("HEAD", "")):
        found = httpx.request(method, served.address)
        assert (found.status_code, found.text) == (200, text)


def test_langchain_gets_the_same(served, trained):
    from langchain_openai import ChatOpenAI  # takes two seconds, which all who collect tests would wait for

    trained("mine")
    model = ChatOpenAI(
        model="mine", base_url=f"{served.address}/v1", api_key=served.key, temperature=0, max_tokens=12
    )
    found = model.invoke("hello")
    assert found.content == served.own_answer("mine")
    assert found.usage_metadata["output_tokens"] <= 12
    assert "".join(one.content for one in model.stream("hello")) == found.content


def test_health_and_metrics(served):
    served.chat()
    assert httpx.get(f"{served.address}/health").json() == {"status": "ok"}
    assert httpx.get(f"{served.address}/metrics").status_code == 401
    text = httpx.get(f"{served.address}/metrics", headers={"Authorization": f"Bearer {served.key}"}).text
    assert 'lora_workbench_requests_total{path="/v1/chat/completions",status="200"} 1\n' in text
    assert 'lora_workbench_generated_tokens_total{model="llama"} 12\n' in text
    assert "lora_workbench_requests_running 0\n" in text
    assert re.search(r'lora_workbench_first_token_seconds_total\{model="llama"\} \d+\.\d+', text)
