"""What models write is shown as it was meant, and nothing of it acts."""

import random
import re
from html import unescape
from itertools import pairwise

import pytest

from app.web.parts.common_words import common_words
from app.web.parts.differences import differences_html
from app.web.parts.markdown import answer_html, markdown_html


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[x](javascript:alert(1))",
        "[x](vbscript:x) [y](data:text/html;base64,PHNjcmlwdD4=)",
        "![x](http://example.org/seen.png)",
        "`<b>` and <b onclick=alert(1)>bold</b>",
        '[x](http://a.b "onmouseover=alert(1)")\n\n<a href="javascript:x">y</a>',
        "<think><script>x</script></think><iframe src=//a.b></iframe>",
        "```\n</code></pre><script>x</script>\n```",
        '{"a": "</code></pre><script>x</script>"}',
    ],
)
def test_nothing_that_a_model_writes_becomes_markup_of_its_own(hostile):
    html = answer_html(hostile)
    for tag in ("<script", "<img", "<iframe", "<b onclick", "<b>", 'href="javascript', 'href="vbscript'):
        assert tag not in html.lower()
    assert 'href="data:' not in html


def test_lists_code_tables_and_links_are_drawn():
    html = markdown_html(
        "1. one\n2. two\n\n```python\nx < 1\n```\n\n|a|b|\n|-|-|\n|1|2|\n\n[there](https://a.b)"
    )
    for part in ("<ol>", "<pre><code", "x &lt; 1", "<table>", 'href="https://a.b"', 'rel="noopener'):
        assert part in html


@pytest.mark.parametrize(
    ("text", "folded", "shown"),
    [
        ("<think>hm</think>Yes.", "hm", "Yes."),
        ("hm, well</think>\n\nYes.", "hm, well", "Yes."),  # the template has begun to think for it
        ("<think>\n\n</think>\n\nYes.", None, "Yes."),
        ("<think>still at it", "still at it", None),
        ("Yes.", None, "Yes."),
    ],
)
def test_what_was_thought_is_folded_away(text, folded, shown):
    html = answer_html(text)
    details, _, rest = html.rpartition("</details>")
    assert ("<details" in html) == (folded is not None)
    assert folded is None or folded in details
    assert shown is None or shown in rest
    assert folded is None or shown is None or folded not in rest


@pytest.mark.parametrize(
    ("text", "is_code"),
    [
        ('{\n  "a": [1, 2]\n}\n', True),
        ('<think>hm</think>\n{"a": "<b>"}', True),
        ('{\n  "a": "on its w', True),
        ('[{"a": 1}]', True),
        ("[1] says so.", False),
        ('{"a": 1} is what it is.', False),
        ("{braces} in a sentence", False),
    ],
)
def test_an_answer_that_is_json_keeps_its_lines(text, is_code):
    html = answer_html(text)
    assert ("<pre><code class='language-json'>" in html) == is_code
    assert "<b>" not in html
    if is_code:
        shown = unescape(re.search(r"<code[^>]*>(.*)</code>", html, re.DOTALL)[1])
        assert shown == text.rpartition("</think>")[2].strip()


def test_differences_are_marked_word_by_word_and_escaped():
    html = differences_html("the <b>quick fox", "the slow fox")
    assert "<del>slow</del>" in html
    assert "<ins>&lt;b&gt;quick</ins>" in html
    assert "<b>" not in html
    assert "fox" in html
    assert "<ins>" not in differences_html("all the same", "all the same")


def test_a_space_between_words_that_differ_does_not_part_them():
    html = differences_html("the town of Leperde is known", "the townsfolk would take a liking")
    assert "the <del>townsfolk would take a liking</del><ins>town of Leperde is known</ins>" in html


def test_what_is_not_struck_out_is_the_text_and_what_is_not_marked_the_other():
    chance = random.Random(0)
    for _ in range(300):
        text, other = ("".join(chance.choices("ab <,\n", k=chance.randrange(12))) for _ in range(2))
        html = differences_html(text, other).removeprefix("<p class='as-written'>").removesuffix("</p>")
        assert unescape(re.sub("<del>.*?</del>|</?ins>", "", html, flags=re.DOTALL)) == text
        assert unescape(re.sub("<ins>.*?</ins>|</?del>", "", html, flags=re.DOTALL)) == other


def test_as_many_words_as_can_be_are_found_in_both():
    chance = random.Random(1)
    for _ in range(300):
        old, new = ("".join(chance.choices("abcd", k=chance.randrange(10))) for _ in range(2))
        pairs = common_words(old, new)
        assert all(old[left] == new[right] for left, right in pairs)
        assert all(one[0] < two[0] and one[1] < two[1] for one, two in pairwise(pairs))
        assert len(pairs) == _longest(old, new)


def _longest(old: str, new: str) -> int:
    """The length of the longest common subsequence, by the table."""
    row = [0] * (len(new) + 1)
    for one in old:
        above, row = row, [0]
        for at, other in enumerate(new):
            row.append(above[at] + 1 if one == other else max(above[at + 1], row[at]))
    return row[-1]


@pytest.mark.timeout(20)  # difflib takes minutes
def test_long_answers_that_go_round_in_circles_are_compared_at_once():
    html = differences_html("the sea was blue and " * 1200, "the sea is blue " * 1500)
    assert html.count("<del>") > 1000
