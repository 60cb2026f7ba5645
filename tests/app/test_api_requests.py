"""What a request may ask for: what counts, what is let through, and what is refused by its name."""

import gzip
import json

import pytest
from starlette.testclient import TestClient

from app.service.serving import Serving
from app.web.api.api_app import guarded_api
from app.web.api.ollama_requests import chat_request, generate_request
from app.web.api.openai_errors import ApiError
from app.web.api.openai_requests import chat_asked, text_asked
from core.events import TokenDone
from storage.tables import Base
from tests.api_server import BODY, HOSTS, KEY, home_with_a_base

home = pytest.fixture(home_with_a_base)


@pytest.fixture
def client(home):
    """With the key."""
    return TestClient(guarded_api(home, HOSTS), headers={"Authorization": f"Bearer {KEY}"})


def test_what_a_request_gives_the_chat_template_is_in_its_prompt():
    thought = {"role": "assistant", "content": "Aye.", "reasoning_content": "hm"}
    asked = [{"role": "user", "content": "Hi"}, thought, {"role": "user", "content": "So?"}]
    body = {"model": "m", "messages": asked}
    openai = chat_asked(body | {"chat_template_kwargs": {"enable_thinking": False}}).prompts[0]
    ollama = chat_request(body | {"think": False}).prompt
    for prompt in (openai, ollama):
        assert prompt.config.chat.template_kwargs == {"enable_thinking": False}
        assert prompt.messages[1] == {"role": "assistant", "content": "Aye.", "reasoning": "hm"}
    assert chat_asked(body).prompts[0].config.template_kwargs == ""
    assert chat_request(body).prompt.config.template_kwargs == ""


def test_a_seed_below_zero_is_none_and_every_answer_another():
    def ollama(seed):
        return chat_request(BODY | {"options": {"seed": seed}}).prompt.config.seed

    def openai(seed):
        return chat_asked(BODY | {"seed": seed}).prompts[0].config.seed

    for read, seed in ((ollama, -1), (ollama, -7), (openai, -1)):
        assert len({read(seed) for _ in range(5)}) > 1
    assert (ollama(7), openai(7)) == (7, 7)


def test_what_is_asked_of_the_sampling_is_in_the_prompt():
    asked = {"min_p": 0.05, "presence_penalty": 0.5, "frequency_penalty": -0.25}
    configs = [
        chat_asked(BODY | asked).prompts[0].config,
        text_asked({"model": "m", "prompt": "Hi"} | asked).prompts[0].config,
        chat_request(BODY | {"options": asked}).prompt.config,
        generate_request({"model": "m", "prompt": "Hi", "options": asked}).prompt.config,
    ]
    for config in configs:
        assert {name: getattr(config, name) for name in asked} == asked


def test_options_of_ollama_at_which_no_answer_changes_are_let_through():
    def ask(**options):
        return chat_request(BODY | {"options": options})

    assert ask(num_keep=4, use_mlock=True, num_ctx=2048, repeat_last_n=64).prompt
    assert ask(repeat_last_n=-1, repeat_penalty=1.0).prompt
    for name, options in {
        "repeat_last_n": {"repeat_last_n": 64, "repeat_penalty": 1.1},
        "options.repeat_last_n": {"repeat_last_n": 64, "presence_penalty": 0.5},
        "num_keep": {"num_keep": 0.5},
        "num_ctx": {"num_ctx": "2048"},
        "penalize_newline": {"penalize_newline": True},
    }.items():
        with pytest.raises(ApiError, match=name):
            ask(**options)
    thought = {"role": "assistant", "content": "Aye.", "thinking": "hm"}
    asked = {"model": "m", "messages": [*BODY["messages"], thought, *BODY["messages"]]}
    assert chat_request(asked).prompt.messages[1]["reasoning"] == "hm"
    with pytest.raises(ApiError, match=r"messages\[1\]\.thinking is not supported"):
        chat_asked(asked)


def test_a_model_leaves_the_memory_when_it_is_not_kept_alive(client):
    for kept, reason in {0: "unload", "0s": "unload", -1: "load", "1h30m": "load", ".5s": "load"}.items():
        for path in ("/api/chat", "/api/generate"):
            found = client.post(path, json={"model": "small", "keep_alive": kept}).json()
            assert found["done_reason"] == reason
    for wrong in ("soon", True, [5], "5"):
        refused = client.post("/api/chat", json={"model": "small", "keep_alive": wrong})
        assert (refused.status_code, "keep_alive must be seconds" in refused.text) == (400, True)


def test_a_model_is_shown_by_either_name_of_the_parameter_and_no_other(client):
    for body in ({"model": "small"}, {"name": "small"}, {"name": "small", "verbose": True}):
        assert client.post("/api/show", json=body).json()["model_info"]["general.parameter_count"] == 1
    for body, said in (
        ({}, "model is missing"),
        ({"name": 5}, "name must be a text"),
        ({"model": "small", "system": "x"}, "system is not"),
    ):
        refused = client.post("/api/show", json=body)
        assert (refused.status_code, said in refused.json()["error"]) == (400, True)


def test_thinking_is_refused_where_the_chat_template_knows_none(home, client, monkeypatch, tmp_path):
    def answer(*about):
        yield TokenDone(0, "word", True, "end", 1, 5)

    monkeypatch.setattr(Serving, "answer", answer)
    refused = client.post("/api/chat", json=BODY | {"think": True})
    assert (refused.status_code, "think is not supported by" in refused.json()["error"]) == (400, True)
    assert client.post("/api/chat", json=BODY | {"think": False}).status_code == 200
    (tmp_path / "chat_template.jinja").write_text("{% if enable_thinking %}<think>{% endif %}")
    base = home.registry.all(Base)[0]
    home.registry.save(Base(**base.model_dump() | {"folder": str(tmp_path)}))
    assert client.post("/api/chat", json=BODY | {"think": True}).status_code == 200


def test_what_ollama_would_do_and_is_not_done_here_is_refused():
    raw = {"model": "m", "prompt": "Hi", "raw": True}
    assert generate_request(raw | {"system": ""}).prompt.text == "Hi"
    begun = [*BODY["messages"], {"role": "assistant", "content": "Well, "}]
    for name, ask in {
        "system": lambda: generate_request(raw | {"system": "Be brief."}),
        "template": lambda: generate_request(raw | {"template": "{{ .Prompt }}"}),
        "context": lambda: generate_request(raw | {"context": [1, 2]}),
        "messages": lambda: chat_request(BODY | {"messages": begun}),
    }.items():
        with pytest.raises(ApiError, match=name) as refused:
            ask()
        assert (refused.value.param, refused.value.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize(
    "name", ["continue_final_message", "add_generation_prompt", "chat_template", "tokenize", "return_dict"]
)
def test_what_steers_the_rendering_is_given_to_no_chat_template(name):
    with pytest.raises(ApiError, match=f"'{name}' is no name that a chat template can be given") as refused:
        chat_asked(BODY | {"chat_template_kwargs": {name: True}})
    assert refused.value.param == "chat_template_kwargs"


def test_what_vllms_clients_send_where_they_ask_for_nothing_by_it_is_let_through():
    nothing = {
        "min_p": 0.0, "min_tokens": 0, "stop_token_ids": [], "bad_words": [], "ignore_eos": False,
        "include_stop_str_in_output": False, "skip_special_tokens": True, "use_beam_search": False,
        "spaces_between_special_tokens": True, "length_penalty": 1.0, "top_k": -1,
        "return_tokens_as_token_ids": False,
    }  # fmt: skip
    of_chats = {"add_generation_prompt": True, "continue_final_message": False, "add_special_tokens": False}
    chat = chat_asked(BODY | nothing | of_chats | {"echo": False})
    text = text_asked({"model": "m", "prompt": "Hi"} | nothing | {"add_special_tokens": True})
    assert [one.prompts[0].config.top_k for one in (chat, text)] == [0, 0]
    other = {
        "min_tokens": 2,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "continue_final_message": True,
    }
    for name, value in (other | {"echo": True, "top_k": -2}).items():
        with pytest.raises(ApiError, match=name) as refused:
            chat_asked(BODY | {name: value})
        assert refused.value.param == name


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"n": True}, "n must be a whole number, not "),
        ({"max_tokens": 1.5}, "max_tokens must be a whole number, not 1.5."),
        ({"stop": ["a", 1]}, "stop must be a text or a list of texts, none of them empty."),
        ({"stop": ["a", ""]}, "stop must be a text or a list of texts, none of them empty."),
    ],
)
def test_what_only_looks_like_a_number_or_a_text_is_refused_by_name(given, said):
    with pytest.raises(ApiError) as refused:
        chat_asked({**BODY, **given})
    assert said in str(refused.value)


def test_what_a_parameter_may_be_is_said_once():
    with pytest.raises(ApiError, match=r"leave it out, or send 1\."):
        text_asked({"model": "small", "prompt": "Hi", "best_of": 3})


@pytest.mark.parametrize("name", ["temperature", "max_tokens", "seed", "n", "top_k", "top_p"])
def test_numbers_of_hundreds_of_digits_are_refused_by_name(client, name):
    for number in (10**400, -(10**400), 1e300):
        refused = client.post("/v1/chat/completions", json=BODY | {name: number})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == name
        assert len(refused.json()["error"]["message"]) < 200


def test_a_packed_request_is_refused_for_being_packed(client):
    body, packed = json.dumps(BODY).encode(), {"content-encoding": "gzip"}
    for path in ("/v1/chat/completions", "/api/chat"):
        refused = client.post(path, content=gzip.compress(body), headers=packed)
        assert refused.status_code == 415
        assert "not with Content-Encoding: gzip" in str(refused.json()["error"])
    unknown = {"model": "nobody", "messages": BODY["messages"]}
    plain = client.post("/v1/chat/completions", json=unknown, headers={"content-encoding": "identity"})
    assert plain.json()["error"]["code"] == "model_not_found"


def test_half_a_character_is_refused_in_words_wherever_it_stands(client):
    for path, body in {
        "/v1/chat/completions": '{"model": "small", "\\ud800": 1}',
        "/v1/completions": '{"model": "\\ud800", "prompt": "Hi"}',
        "/v1/load_lora_adapter": '{"lora_name": "new", "lora_path": "/tmp/\\ud800"}',
        "/api/chat": '{"model": "small", "options": {"\\ud800": 1}}',
    }.items():
        refused = client.post(path, content=body)
        assert refused.status_code in (400, 404)
        error = refused.json()["error"]
        assert "\\ud800" in (error if path.startswith("/api/") else error["message"])


@pytest.mark.parametrize(("path", "ollama"), [("/api/pull", True), ("/v1/embeddings", False)])
def test_what_is_not_served_is_refused_in_the_form_of_the_api_that_was_asked(client, path, ollama):
    absent = client.post(path).json()["error"]
    assert (absent if ollama else absent["message"]) == f"POST {path} is not served here."
    method = client.delete("/api/chat" if ollama else "/v1/completions")
    assert (method.status_code, method.headers["allow"]) == (405, "POST")
    assert isinstance(method.json()["error"], str if ollama else dict)
