"""Answers held to JSON or to a pattern, as unmodified clients ask for them."""

import json
import re
from typing import Literal

import jsonschema
import ollama
import openai
import pytest
from pydantic import BaseModel, Field

from app.web.api.api_app import guarded_api
from app.web.api.api_key import api_key
from app.web.api.ollama_requests import chat_request
from app.web.api.openai_errors import ApiError
from app.web.api.openai_requests import chat_asked
from tests.api_server import BODY, listening

HELLO = [{"role": "user", "content": "hello"}]


class Person(BaseModel):
    name: str = Field(max_length=6)
    colour: Literal["red", "blue"]
    kept: bool


SCHEMA = Person.model_json_schema() | {"additionalProperties": False}


@pytest.fixture
def served(workbench):
    """An API with a base "llama", as OpenAI's client, Ollama's and LangChain's."""
    from langchain_openai import ChatOpenAI  # takes two seconds, which all who collect tests would wait for

    key = api_key(workbench.settings, workbench.preferences)
    with listening(guarded_api(workbench, set())) as address:
        own = openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=60)
        other = ollama.Client(address, headers={"Authorization": f"Bearer {key}"})
        chain = ChatOpenAI(
            base_url=f"{address}/v1", api_key=key, model="llama", max_retries=0, temperature=0, max_tokens=200
        )
        yield own, other, chain
        own.close()
        other.close()


@pytest.fixture
def text(served):
    """What the model answers OpenAI's client."""
    client, *_ = served

    def ask(**asked):
        answer = client.chat.completions.create(
            **{"model": "llama", "messages": HELLO, "temperature": 0} | asked
        )
        assert answer.choices[0].finish_reason == "stop"
        return answer.choices[0].message.content

    return ask


def test_openais_client_gets_json_of_its_schema(served, text):
    client, *_ = served
    form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}
    jsonschema.validate(json.loads(text(response_format=form)), SCHEMA)
    assert isinstance(json.loads(text(response_format={"type": "json_object"}, max_tokens=230)), dict)
    asked = {"model": "llama", "messages": HELLO, "temperature": 0}
    parsed = client.chat.completions.parse(response_format=Person, **asked)
    assert isinstance(parsed.choices[0].message.parsed, Person)
    chunks = client.chat.completions.create(response_format=form, stream=True, n=2, **asked)
    said = {0: "", 1: ""}
    for one in chunks:
        for choice in one.choices:
            said[choice.index] += choice.delta.content or ""
    for whole in said.values():
        jsonschema.validate(json.loads(whole), SCHEMA)
    free = [
        client.chat.completions.create(**asked, **more)
        for more in ({}, {"response_format": {"type": "text"}})
    ]
    assert free[0].choices[0].message.content == free[1].choices[0].message.content


def test_langchain_gets_its_model_back(served):
    *_, chain = served
    for way in ("json_schema", "json_mode"):
        if way == "json_schema":
            assert isinstance(chain.with_structured_output(Person, method=way).invoke("hello"), Person)
        else:
            assert chain.bind(response_format={"type": "json_object"}).invoke("hello").content.startswith("{")


def test_ollamas_client_gets_json_of_its_schema(served):
    _, client, _ = served
    options = {"num_predict": 200, "temperature": 0}
    whole = client.chat("llama", HELLO, format=SCHEMA, options=options)
    assert Person.model_validate_json(whole.message.content)
    pieces = client.generate("llama", "hello", format=SCHEMA, options=options, stream=True)
    assert Person.model_validate_json("".join(one.response for one in pieces))
    assert client.chat("llama", HELLO, format="json", options=options).message.content.startswith("{")
    with pytest.raises(ollama.ResponseError, match="cannot be held to this JSON schema") as refused:
        client.chat("llama", HELLO, format={"not": {}})
    assert refused.value.status_code == 400


def test_what_vllms_clients_write_counts_in_chats_and_plain_text(served, text):
    client, *_ = served
    words = ["yes (surely)", "no: a.b", "per-haps #1", "a\nb"]
    for way, sent, fits in [
        ("choice", words, lambda said: said in words),
        ("regex", r"[a-f]{2}-\d", lambda said: re.fullmatch(r"[a-f]{2}-\d", said)),
        ("json", SCHEMA, Person.model_validate_json),
        ("json", json.dumps(SCHEMA), Person.model_validate_json),
    ]:
        for body in ({"structured_outputs": {way: sent}}, {f"guided_{way}": sent}):
            assert fits(text(extra_body=body))
            asked = {"model": "llama", "prompt": "hello", "max_tokens": 250, "temperature": 0}
            assert fits(client.completions.create(**asked, extra_body=body).choices[0].text)

    neutral = {"disable_any_whitespace": False, "disable_fallback": False}
    assert text(extra_body={"structured_outputs": {"json_object": True} | neutral}).startswith("{")


def test_what_cannot_be_is_told(text):
    for body, why in {
        '{"response_format": {"type": "grammar"}}': "response_format.type may be text, json_object or",
        '{"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}': "schema is missing",
        '{"response_format": {"type": "json_schema", "json_schema": {"schema": 3}}}': "an object is expected",
        '{"guided_json": "{"}': "guided_json: json_schema is not JSON",
        '{"guided_choice": []}': "a list of texts",
        '{"structured_outputs": {}}': "must have one of json, regex, choice",
        '{"structured_outputs": {"json": {}, "disable_any_whitespace": true}}': "leave it out, or send false",
        '{"structured_outputs": {"json_object": false}}': "json_object must be true or left out",
        '{"structured_outputs": {"grammar": "x"}}': "structured_outputs.grammar is not supported",
        '{"guided_regex": "a", "response_format": {"type": "json_object"}}': "are sent; an answer is held",
    }.items():
        with pytest.raises(ApiError, match=re.escape(why)):
            chat_asked(BODY | json.loads(body))
    with pytest.raises(ApiError, match="format must be json or a JSON schema, not 3"):
        chat_request(BODY | {"format": 3})
    tool = {"type": "function", "function": {"name": "a", "description": "b", "parameters": {}}}
    with pytest.raises(ApiError, match="may call tools cannot be held to a form; leave guided_regex"):
        chat_asked(BODY | {"tools": [tool], "guided_regex": "a"})
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=r"cannot be held to the pattern '\('"):
            text(extra_body={"guided_regex": "("}, stream=stream)


def test_forms_that_would_hold_an_answer_to_nothing_are_refused():
    for body, why in [
        ({"guided_regex": ""}, "regex must be a text that is not empty"),
        ({"structured_outputs": {"regex": 3}}, "regex must be a text that is not empty, not 3"),
        ({"guided_json": ""}, "JSON schema is empty"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": ""}}}, "JSON schema is empty"),
        ({"guided_json": '{"const": NaN}'}, "NaN is no number of JSON"),
        ({"guided_json": '{"a":' * 5000}, "json_schema is not JSON .maximum recursion"),
    ]:
        with pytest.raises(ApiError, match=why):
            chat_asked(BODY | body)
