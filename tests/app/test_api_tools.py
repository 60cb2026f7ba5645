"""Tools over the API: what a model is told of them, and how its calls are answered to unmodified clients."""

import json
import shutil

import jsonschema
import ollama
import openai
import pytest
from transformers import AutoTokenizer

from app.service.serving import Serving
from app.web.api.api_app import guarded_api
from app.web.api.api_key import api_key
from app.web.api.call_finder import CallFinder
from core.data.tool_calls import read_tools
from core.events import TokenDone
from tests.api_server import listening
from tests.workbenches import do_job

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells.",
        "parameters": {"type": "object", "properties": {"place": {}}},
    },
}
ASKED = [{"role": "user", "content": "Pisa?"}]
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Pisa"}'}}
    ],
}
ANSWERED = [*ASKED, CALLED, {"role": "tool", "tool_call_id": "c1", "content": "windy"}]
CALL = 'Aye.\n<tool_call>\n{"name": "weather", "arguments": {"place": "Pisa"}}\n</tool_call>'
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def served(workbench, tiny_llama, tmp_path):
    """An API with a base "tools" whose template takes tools, and "llama" whose does not; its clients."""
    folder = shutil.copytree(tiny_llama, tmp_path / "tools")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    do_job(workbench, "add_model", {"origin": str(folder), "name": "tools"})
    key = api_key(workbench.settings, workbench.preferences)
    with listening(guarded_api(workbench, set())) as address:
        own = openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=60)
        other = ollama.Client(address, headers={"Authorization": f"Bearer {key}"})
        yield own, other
        own.close()
        other.close()


@pytest.fixture
def answering(monkeypatch):
    """A function that has every model answer a text, some letters at a time."""

    def answer(text, size=3):
        def pieces(*about):
            for at in range(0, len(text), size):
                is_last = at + size >= len(text)
                yield TokenDone(0, text[at : at + size], is_last, "end" if is_last else "", at + 1, 5)

        monkeypatch.setattr(Serving, "answer", pieces)

    return answer


@pytest.mark.parametrize("messages", [ASKED, ANSWERED])
def test_the_model_is_told_of_tools_calls_and_results_by_its_template(served, tmp_path, messages):
    client, _ = served
    told = client.chat.completions.create(model="tools", messages=messages, tools=[TOOL], max_tokens=2)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tools")
    spelled = json.loads(json.dumps(messages).replace('"{\\"place\\": \\"Pisa\\"}"', '{"place": "Pisa"}'))
    how = {"tools": [TOOL], "add_generation_prompt": True, "return_dict": True}
    assert told.usage.prompt_tokens == len(tokenizer.apply_chat_template(spelled, **how)["input_ids"])
    silent = {"tools": [TOOL], "tool_choice": "none"}
    untold = client.chat.completions.create(model="tools", messages=ASKED, max_tokens=2, **silent)
    assert untold.usage.prompt_tokens < told.usage.prompt_tokens - 20


def test_a_call_is_answered_as_openai_answers_one(served, answering):
    client, _ = served
    answering(CALL)
    asked = {"model": "tools", "messages": ASKED, "tools": [TOOL]}
    choice = client.chat.completions.create(**asked).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Aye.\n")
    function = choice.message.tool_calls[0].function
    assert (function.name, json.loads(function.arguments)) == ("weather", {"place": "Pisa"})

    chunks = [one.choices[0] for one in client.chat.completions.create(**asked, stream=True)]
    assert "".join(one.delta.content or "" for one in chunks) == "Aye.\n"
    calls = [call for one in chunks for call in one.delta.tool_calls or []]
    assert [(one.index, one.function.name) for one in calls] == [(0, "weather")]
    assert [one.finish_reason for one in chunks if one.finish_reason] == ["tool_calls"]
    # What it called goes back as it came.
    again = [*ASKED, choice.message.model_dump(exclude_none=True), ANSWERED[-1]]
    assert client.chat.completions.create(**asked | {"messages": again}).choices

    answering("[It is {fine}.]")
    plain = client.chat.completions.create(**asked).choices[0]
    assert (plain.finish_reason, plain.message.content) == ("stop", "[It is {fine}.]")
    answering(CALL)
    unasked = client.chat.completions.create(model="tools", messages=ASKED).choices[0]
    assert (unasked.finish_reason, unasked.message.content) == ("stop", CALL)


def test_ollamas_client_gets_calls_and_sends_results(served, answering):
    _, client = served
    told = client.chat("tools", ANSWERED[:1], tools=[TOOL], options={"num_predict": 2})
    function = {"name": "weather", "arguments": {"place": "x"}}
    called = {"role": "assistant", "tool_calls": [{"function": function}]}
    result = {"role": "tool", "tool_name": "weather", "content": "windy"}
    more = client.chat("tools", [*ASKED, called, result], tools=[TOOL], options={"num_predict": 2})
    assert more.prompt_eval_count > told.prompt_eval_count
    answering(CALL)
    for stream in (False, True):
        found = client.chat("tools", ASKED, tools=[TOOL], stream=stream)
        messages = [one.message for one in found] if stream else [found.message]
        assert "".join(one.content or "" for one in messages) == "Aye.\n"
        calls = [call.function for one in messages for call in one.tool_calls or []]
        assert [(one.name, dict(one.arguments)) for one in calls] == [("weather", {"place": "Pisa"})]


def test_an_answer_is_made_to_call_a_tool(served):
    client, _ = served
    part = {"type": "object", "properties": {"at": {"enum": ["Pisa", "Bari"]}}, "required": ["at"]}
    parameters = {
        "type": "object",
        "properties": {"places": {"type": "array", "items": {"$ref": "#/$defs/part"}, "maxItems": 2}},
        "required": ["places"],
        "additionalProperties": False,
        "$defs": {"part": part | {"additionalProperties": False}},
    }
    news = {"type": "function", "function": {"name": "news", "strict": True, "parameters": parameters}}
    bare = {"type": "function", "function": {"name": "now", "parameters": {"maxProperties": 0}}}
    asked = {"model": "tools", "messages": ASKED, "max_tokens": 200, "temperature": 0}
    named = {"type": "function", "function": {"name": "news"}}
    for tools, choice in (([TOOL, news], named), ([news, bare], "required"), ([bare], "required")):
        how = {"tools": tools, "tool_choice": choice, "parallel_tool_calls": False}
        whole = client.chat.completions.create(**asked, **how).choices[0]
        assert (whole.finish_reason, whole.message.content or "") == ("tool_calls", "")
        (call,) = whole.message.tool_calls
        offered = {one["function"]["name"]: one["function"]["parameters"] for one in tools}
        jsonschema.validate(json.loads(call.function.arguments), offered[call.function.name])
        assert choice == "required" or call.function.name == "news"
        chunks = [one.choices[0] for one in client.chat.completions.create(**asked, **how, stream=True)]
        assert [call.function.name for one in chunks for call in one.delta.tool_calls or []] == [
            call.function.name
        ]


def test_who_takes_tools_says_so(served):
    _, client = served
    assert client.show("tools").capabilities == ["completion", "tools"]
    assert client.show("llama").capabilities == ["completion"]


def test_what_is_not_supported_is_said_by_its_name(served):
    client, _ = served

    def refused(**asked):
        asked = {"model": "tools", "messages": ASKED, "tools": [TOOL], "max_tokens": 2} | asked
        with pytest.raises(openai.BadRequestError) as error:
            client.chat.completions.create(**asked)
        return str(error.value)

    assert "leaves out 'weather' of the tools" in refused(model="llama")
    named = [{"role": "user", "content": "What is the weather of this place, Pisa?"}]
    assert "leaves out 'weather' of the tools" in refused(model="llama", messages=named)
    earlier = [*named, CALLED, {"role": "tool", "content": "windy", "tool_call_id": "c1"}]
    assert "of the tool call in turn 2" in refused(model="llama", messages=earlier, tools=openai.omit)
    assert "tool_choice may be none, auto, required, or" in refused(tool_choice="weather")
    assert "tool_choice is required; the tools sent are: none" in refused(tool_choice="required", tools=[])
    other = {"type": "function", "function": {"name": "news"}}
    assert "tool_choice names news; the tools sent are: weather" in refused(tool_choice=other)
    both = {"tool_choice": "required", "response_format": {"type": "json_object"}}
    assert "leave response_format or the tools out" in refused(**both)
    assert "leave parallel_tool_calls out" in refused(parallel_tool_calls=False)
    assert "logprobs are not told" in refused(logprobs=True)
    strict = TOOL | {"function": TOOL["function"] | {"strict": True}}
    assert "leave strict out" in refused(tools=[strict])
    assert "of the type function" in refused(tools=[{"type": "web_search"}])
    assert "without a name" in refused(tools=[{"type": "function", "function": {}}])
    nameless = [*ASKED, {"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}]
    assert "messages[1].tool_calls: A tool call" in refused(messages=nameless)
    assert "messages[0].tool_calls" in refused(messages=[ASKED[0] | {"tool_calls": CALLED["tool_calls"]}])


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_text_is_given_on_at_once_and_only_what_may_be_a_call_is_held(size):
    def given(text):
        finder = CallFinder(read_tools([TOOL]))
        shown = "".join(finder.take(text[at : at + size]) for at in range(0, len(text), size))
        return shown, *finder.rest(cut_off=False)

    call = {"name": "weather", "arguments": {"place": "Pisa"}}
    assert given(CALL) == ("Aye.\n", "", [call])
    assert given("A < b, <tool> or <tool_") == ("A < b, <tool> or ", "<tool_", [])
    assert given('weather{"place": "Pisa"}') == ("", "", [call])
    assert given("Well, {it} is") == ("Well, {it} is", "", [])
    assert given("weathered [stone]")[0] + given("weathered [stone]")[1] == "weathered [stone]"
    thought = "<think>{}</think>"
    assert given(thought + "[1]")[::2] == (thought, []) or size == 100
    assert "".join(given(thought + "[1]")[:2]) == thought + "[1]"
    assert CallFinder(()).take("{") == "{"
