"""What chat templates of others do to the rows: text that they drop, BOS, tokens that end an answer."""

import copy

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from core.base_model.tokenizer import end_token_ids
from core.data.dataset_file import StoredRow
from core.data.formats import Example
from core.data.pieces import PieceEncoder
from core.data.rendering import Renderer
from core.data.token_report import token_findings, token_report
from core.data.token_view import check_template, row_view
from core.data.tokens import tokenised_in_memory
from core.errors import InvalidData
from tests.conftest import CHATML

ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
NO_SYSTEM = "{% for m in messages if m['role'] != 'system' %}" + TURN + "{% endfor %}" + ASK
NO_REASONING = CHATML.replace("message['content']", "message['content'].split('</think>')[-1]")
LAST_REASONING = (
    "{% for m in messages %}{% set c = m['content'] if loop.last else m['content'].split('</think>')[-1] %}"
    "<|im_start|>{{ m['role'] }}\n{{ c }}<|im_end|>\n{% endfor %}" + ASK
)
ONLY_BLOCKS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for block in m['content'] %}{{ block['text'] }}{% endfor %}<|im_end|>\n{% endfor %}" + ASK
)
CUTS = CHATML.replace("+ message['content']", "+ message['content'][:9]")
CHANGES = CHATML.replace("message['content']", "(message['content'] | upper)")
OPENS = NO_REASONING.replace("assistant\\n", "assistant\\n<think>\\n")
THOUGHT = "<think>\nFirst the tens, then the ones.\n</think>\n\n23"


def renderer(tokenizer, template):
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return Renderer(other)


def row(*turns):
    names = {"s": "system", "u": "user", "a": "assistant"}
    return Example(7, tuple({"role": names[role], "content": text} for role, text in turns))


@pytest.mark.parametrize(
    ("template", "turns", "said"),
    [
        (NO_SYSTEM, [("s", "Answer like a cook."), ("u", "Hi"), ("a", "Aye")], r"system turn \('Answer"),
        (NO_SYSTEM, [("s", "a"), ("u", "Hi"), ("a", "Aye")], r"the system turn \('a'\)"),
        (NO_SYSTEM, [("u", "Hi"), ("a", "Aye"), ("s", "Brief."), ("u", "So"), ("a", "No")], "system turn"),
        (NO_REASONING, [("u", "14 + 9?"), ("a", THOUGHT)], r"reasoning of turn 2, .* \('First the tens"),
        (NO_REASONING, [("u", "a</think>b"), ("a", "fine")], "part of turn 1, the user's"),
        (CUTS, [("u", "0123456789"), ("a", "x")], "turn 1"),
        (CHANGES, [("u", "Hi"), ("a", "Aye")], "turn 1"),
    ],
)  # fmt: skip
def test_text_that_a_template_leaves_out_is_refused_by_row(tokenizer, template, turns, said):
    with pytest.raises(InvalidData, match=f"^Row 7: This base's chat template .*{said}"):
        renderer(tokenizer, template).render(row(*turns))


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("message['content']", "(message['content'] | trim)"),
        CHATML.replace("message['role']", "(message['role'] | upper)")
        .replace("start|>a", "start|>A")
        .replace("Assistant\\n", "ASSISTANT\\n"),
        CHATML.replace("message['content']", "(message['content'] | tojson)"),
        CHATML.replace("message['content']", "message['content'].split() | join(' ')"),
        "{% set first = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
        "{% for m in messages if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n"
        "{% if loop.first %}{{ first }}\n\n{% endif %}{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}" + ASK,
        LAST_REASONING,
        ONLY_BLOCKS,
    ],
)
def test_what_a_template_trims_moves_or_escapes_is_not_left_out(tokenizer, template):
    turns = row(("s", ' Be "brief". '), ("u", "  How\n are you? "), ("a", "Fine.\n"))
    rendered = renderer(tokenizer, template).render(turns)
    assert rendered.supervised


def test_a_template_that_keeps_the_last_reasoning_trains_it(tokenizer):
    found = renderer(tokenizer, LAST_REASONING).render(row(("u", "14 + 9?"), ("a", THOUGHT)))
    assert tokenizer.decode(found.ids[slice(*found.spans[0])]) == f"{THOUGHT}<|im_end|>"


def test_chat_goes_on_where_earlier_reasoning_is_taken_out_and_never_without_the_system_prompt(tokenizer):
    asked = row(("u", "14 + 9?"), ("a", THOUGHT), ("u", "Sure?"))
    ids = renderer(tokenizer, LAST_REASONING).encode_prompt(asked.messages)
    assert "<think>" not in tokenizer.decode(ids)
    with pytest.raises(InvalidData, match="leaves out the system turn"):
        renderer(tokenizer, NO_SYSTEM).encode_prompt(row(("s", "Be brief."), ("u", "Hi")).messages)


@pytest.mark.parametrize("template", [OPENS, CHATML.replace("assistant\\n", "assistant\\n<think>\\n")])
def test_a_prompt_that_opens_the_reasoning_has_it_closed(tokenizer, template):
    found = renderer(tokenizer, template)
    for answer, learnt in ((THOUGHT, THOUGHT.removeprefix("<think>\n")), ("23", "\n</think>\n\n23")):
        talk = row(("u", "14 + 9?"), ("a", answer))
        rendered = found.render(talk)
        assert tokenizer.decode(rendered.ids[slice(*rendered.spans[0])]) == f"{learnt}<|im_end|>"
        assert rendered.ids[: rendered.spans[0][0]] == found.encode_prompt(talk.messages[:1])
        assert [code for code, _ in rendered.notes] == ["thinking_closed"] * (answer == "23")


def test_the_check_of_a_template_looks_for_the_text(tokenizer):
    def failing(template):
        checks = check_template(renderer(tokenizer, template), {tokenizer.eos_token_id})
        return {check.title: check.detail for check in checks if not check.passed}

    assert failing(CHATML) == failing(LAST_REASONING) == {}
    assert "leaves out the system turn" in failing(NO_SYSTEM)["Takes a system prompt"]
    assert "leaves out the reasoning of turn 2" in failing(NO_REASONING)["Keeps the reasoning of an answer"]
    assert not any("Row 0" in detail for detail in failing(OPENS).values())


# BOS.


def with_bos(scheme=None):
    """A tokenizer whose post-processor puts <s> before any text; by scheme with a space in front of it."""
    bare = Tokenizer(models.BPE(unk_token="<unk>"))
    bare.pre_tokenizer = (
        pre_tokenizers.Metaspace(prepend_scheme=scheme) if scheme else pre_tokenizers.ByteLevel(False)
    )
    specials = ["<unk>", "<s>", "</s>"]
    corpus = ["user assistant hello there my friend \n How are you? Fine, thanks. </s <s >"] * 9
    alphabet = [] if scheme else pre_tokenizers.ByteLevel.alphabet()
    bare.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=alphabet)
    )
    bare.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bare, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


PLAIN_TURN = "{% for m in messages %}{{ m['role'] }}\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
PLAIN_ASK = "{% if add_generation_prompt %}assistant\n{% endif %}"


@pytest.mark.parametrize("scheme", [None, "first", "always"])
@pytest.mark.parametrize("bos", ["", "{{ bos_token }}", "\n<s>"])
def test_bos_stands_once_as_the_tokenizer_puts_it(scheme, bos):
    tokenizer = with_bos(scheme)
    found = renderer(tokenizer, bos + PLAIN_TURN + PLAIN_ASK)
    talk = row(("u", "hello there"), ("a", "Fine, thanks."))
    rendered, prompt = found.render(talk), found.encode_prompt(talk.messages[:1])
    text = "user\nhello there</s>\nassistant\nFine, thanks.</s>\n"
    written = bos.replace("{{ bos_token }}", "<s>")
    assert rendered.ids == tokenizer(written + text, add_special_tokens=not written)["input_ids"]
    assert [token.id for token in row_view(found, talk).sequences[0].tokens] == rendered.ids
    assert rendered.ids.count(1) == prompt.count(1) == 1
    assert rendered.ids[: len(prompt)] == prompt
    assert found.render(Example(1, text="hello there")).ids[:-1] == tokenizer("hello there")["input_ids"]


def test_what_somebody_wrote_is_no_bos():
    found = renderer(with_bos(), "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}")
    rendered = found.render(row(("u", "<s>hello"), ("a", "<s>there")))
    assert rendered.ids[0] == 1
    assert rendered.ids.count(1) == 1


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_special_tokens_in_a_text_add_no_space(scheme):
    """The same row with a text of the same characters that no special token stands in is the measure."""
    tokenizer = with_bos(scheme)
    found = renderer(tokenizer, PLAIN_TURN + PLAIN_ASK)
    rendered = found.render(row(("u", "hello"), ("a", "Fine </s> thanks")))
    without = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    without.encode_special_tokens = True
    start, stop = rendered.spans[0]
    said = "".join(tokenizer.convert_ids_to_tokens(rendered.ids[start : stop - 1]))
    assert said == "Fine▁</s>▁thanks"
    assert rendered.ids.count(2) == 2
    assert found.encode_prompt(row(("u", "hello")).messages) == rendered.ids[:start]


def test_a_tokenizer_file_that_cuts_or_fills_up_does_not_touch_the_rows(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.enable_truncation(5)
    other.backend_tokenizer.enable_padding(length=200)
    talk = row(("u", "hello there how are you"), ("a", "fine thanks"))
    assert Renderer(other).render(talk) == Renderer(tokenizer).render(talk)


# What ends an answer.


def test_the_token_behind_an_answer_ends_it_whatever_the_eos_is(tokenizer, tmp_path):
    other = copy.deepcopy(tokenizer)
    other.eos_token = "<|endoftext|>"
    im_end, end_of_text = other.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 7]}')
    ends = end_token_ids(tmp_path, Renderer(other))
    assert ends == {0, 7, im_end, end_of_text}
    checks = check_template(Renderer(other), ends)
    assert all(check.passed for check in checks), checks
    other.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    assert Renderer(other).end_ids == {end_of_text}


def test_an_end_token_that_nobody_called_special_is_trained(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.add_tokens([AddedToken("<end>", special=False, normalized=False)])
    found = renderer(other, CHATML.replace("<|im_end|>", "<end>"))
    rendered = found.render(row(("u", "hello"), ("a", "fine")))
    assert other.decode(rendered.ids[slice(*rendered.spans[0])]) == "fine<end>"
    assert found.end_ids == {other.convert_tokens_to_ids("<end>")}


# Tokenizers that break down.


class PanicException(BaseException):
    """As libraries written in Rust raise it: no Exception."""


def test_a_panic_of_the_tokenizer_is_a_sentence_about_its_row(tokenizer, monkeypatch):
    found, encode = Renderer(tokenizer), PieceEncoder._encode

    def breaks(self, rows):
        if any("bad" in piece.text for row in rows for piece in row):
            raise PanicException("index out of bounds")
        return encode(self, rows)

    monkeypatch.setattr(PieceEncoder, "_encode", breaks)
    rows = [Example(at, row(("u", "bad" if at == 3 else "good"), ("a", "fine")).messages) for at in range(6)]
    rendered = list(found.render_many(rows))
    assert [isinstance(one, InvalidData) for one in rendered] == [at == 3 for at in range(6)]
    assert str(rendered[3]).startswith(
        "Row 3: This base's tokenizer fails with the text of this row (index out"
    )
    with pytest.raises(InvalidData, match="tokenizer fails with"):
        found.encode_prompt(rows[3].messages[:1])


def test_a_token_that_a_vocabulary_has_not_is_a_sentence_about_its_row():
    words = {word: at for at, word in enumerate(["hello", "fine", "a", "A", "Hello", "world"])}
    bare = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    found = list(
        Renderer(tokenizer).render_many([row(("u", "hello"), ("a", "fine")), row(("u", "x"), ("a", "fine"))])
    )
    assert "Row 7: This base's tokenizer fails with the text of this row" in str(found[1])
    assert not isinstance(found[0], InvalidData)


def test_where_every_row_is_refused_the_reason_is_the_rows_own(tokenizer):
    rows = [StoredRow(at, 0, Example(at, row(("u", "What?"), ("a", "This.")).messages)) for at in (1, 2)]
    file, keep = tokenised_in_memory(rows, renderer(tokenizer, CHANGES)), np.array([True, True])
    found = token_findings(file, keep, 64, {2})
    with pytest.raises(
        InvalidData, match=r"^Row 1: .*leaves out a part of turn 1.*No other of the 2 rows can"
    ):
        token_report(file, keep, ~keep, 64, found)
