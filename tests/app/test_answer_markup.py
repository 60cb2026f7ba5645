"""What models write is shown as it was meant, and nothing of it acts."""

import pytest

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
    ],
)
def test_nothing_that_a_model_writes_becomes_markup_of_its_own(hostile):
    html = answer_html(hostile)
    for tag in ("<script", "<img", "<iframe", "<b onclick", "<b>", 'href="javascript', 'href="vbscript'):
        assert tag not in html.lower()
    assert 'href="data:' not in html


def test_lists_code_tables_and_links_are_drawn():
    html = markdown_html("1. one\n2. two\n\n```python\nx < 1\n```\n\n|a|b|\n|-|-|\n|1|2|\n\n[there](https://a.b)")
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


def test_differences_are_marked_word_by_word_and_escaped():
    html = differences_html("the <b>quick fox", "the slow fox")
    assert "<del>slow</del>" in html
    assert "<ins>&lt;b&gt;quick</ins>" in html
    assert "<b>" not in html
    assert "fox" in html
    assert "<ins>" not in differences_html("all the same", "all the same")
