"""Ollama's template, rendered as Go's text/template renders it, beside the model's own."""

import copy
import itertools
import json
import re
import shutil
from types import SimpleNamespace

import pytest

from core.base_model.tokenizer import load_tokenizer
from core.data.templating import apply_template
from core.errors import InvalidData
from core.export.formats.ollama import _modelfile
from core.gguf.modelfile import chat_parts, modelfile
from tests.conftest import CHATML

ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHATML
)
IN_THE_QUESTION = (
    "{% if messages[0].role == 'system' %}"
    "{% set told = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set told = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ told if loop.first }}{{ m.content }} [/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
NO_LATE_SYSTEM = (
    "{% for m in messages %}"
    "{% if m.role == 'system' and not loop.first %}{{ raise_exception('late') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + ASK
)
BRACES = (
    "{% for m in messages %}{{ '\"\"\"\"{{{' + m.role + '|}} ' + m.content + '{' }}{% endfor %}"
    '{% if add_generation_prompt %}{{ \'""""{{{assistant|}} \' }}{% endif %}'
)
TEMPLATES = {
    "chatml": CHATML,
    "a default system": DEFAULT_SYSTEM,
    "the system in the question": IN_THE_QUESTION,
    "no late system": NO_LATE_SYSTEM,
    "braces and quotation marks": BRACES,
}
SAID = {
    "s": ("system", "Be {{ brief }}."),
    "u": ("user", "What is 2 + 2?"),
    "a": ("assistant", "Four.\nIt is 4."),
}
SHAPES = ["u", "su", "uau", "suauau", "au", "auau", "sau", "uasu", "suasu", "ua", "suaua"]
"""First the usual ones; then as Ollama cuts them off, with a late system turn, and with an answer begun."""


def go_renders(template, messages):
    """What Go makes of a template of the constructs that ours have: if eq, range, variables and texts."""
    parts = re.split(r"\{\{ (.*?) \}\}", template)
    steps = [step for step in itertools.chain(*zip(parts[::2], [*parts[1::2], ""], strict=True))]
    variables, out = {}, []

    def value(word, turn):
        if word.startswith('"'):
            return word[1:-1].replace('\\"', '"')
        return variables[word] if word.startswith("$") else turn[word.removeprefix(".").lower()]

    def run(at, turn, live):
        """Do the steps from `at` on up to the end of the block, or an else of it."""
        while at < len(steps):
            text, action = steps[at], steps[at + 1]
            if live:
                out.append(text)
            if action == "end" or action.startswith("else"):
                return at + 1, action
            at += 2
            if action.startswith("range"):
                begin, turns = at, messages if live else []
                at, _ = run(begin, None, False)
                for one in turns:
                    run(begin, one, True)
                at += 1
            elif action.startswith("if "):
                at = branch(at, action, turn, live)
            elif live and (found := re.fullmatch(r"(\$\w+) :?= (.*)", action)):
                variables[found[1]] = value(found[2], turn)
            elif live and action:
                out.append(value(action, turn))
        return at, ""

    def branch(at, action, turn, live):
        done = False
        while True:
            test = re.search(r"if eq (\S+) (\S+)$", action)
            holds = live and not done and (not test or value(test[1], turn) == value(test[2], turn))
            done = done or holds
            at, action = run(at, turn, holds)
            at += 1
            if action == "end":
                return at

    run(0, None, True)
    return "".join(out)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", TEMPLATES)
def test_ollama_reads_what_the_model_was_trained_on(tokenizer, name, shape):
    own = copy.deepcopy(tokenizer)
    own.chat_template = TEMPLATES[name]
    turns = [dict(zip(("role", "content"), SAID[one], strict=True)) for one in shape]
    parts = chat_parts(own)
    assert parts is not None
    found = go_renders(parts.go_template(), turns)
    assert '"""' not in parts.go_template()
    assert found == parts.render(turns)
    asks = shape[-1] != "a"
    try:
        wanted = apply_template(own, turns, add_generation_prompt=asks)
    except InvalidData:  # the model's own template takes no such conversation
        wanted = None
    if wanted is not None:
        assert found == (
            wanted if asks else wanted[: wanted.rindex(turns[-1]["content"])] + turns[-1]["content"]
        )


def test_a_conversation_that_the_template_refuses_still_has_every_turn_behind_its_own_header(tokenizer):
    own = copy.deepcopy(tokenizer)
    own.chat_template = NO_LATE_SYSTEM
    late = [dict(zip(("role", "content"), SAID[one], strict=True)) for one in "uasu"]
    own_words = copy.deepcopy(tokenizer)
    assert go_renders(chat_parts(own).go_template(), late) == apply_template(
        own_words, late, add_generation_prompt=True
    )
    own.chat_template = IN_THE_QUESTION
    begun = go_renders(chat_parts(own).go_template(), [late[1], late[3]])
    assert begun == "[INST]  [/INST] Four.\nIt is 4.</s>[INST] What is 2 + 2? [/INST]"


def test_words_to_stop_at_are_written_as_ollama_reads_them(tiny_llama, tmp_path):
    """Its unquote() takes the quotation marks away and knows no escapes."""
    folder = shutil.copytree(tiny_llama, tmp_path / "base")
    tokenizer = load_tokenizer(folder)
    (line_end,) = tokenizer("\n", add_special_tokens=False)["input_ids"]
    settings = {"eos_token_id": [tokenizer.eos_token_id, line_end]}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    about = SimpleNamespace(base_template="", base_licence="")
    text, _ = _modelfile(SimpleNamespace(base_folder=folder, about=about), "./model.gguf")
    assert 'PARAMETER stop """\n"""\n' in text
    assert f'PARAMETER stop "{tokenizer.eos_token}"\n' in text
    assert r'PARAMETER stop "a\b"' in modelfile("./m", None, ["a\\b"], {}, 8, "")
