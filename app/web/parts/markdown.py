"""What a model writes, as HTML: CommonMark with tables, nothing of it taken as markup, nothing fetched."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import MutableMapping, Sequence
from html import escape
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import OptionsDict

_THINKING = re.compile(r"\A\s*(?:<think>)?(?P<thought>.*?)</think>(?P<rest>.*)\Z", re.DOTALL)
_BEGINS_JSON = re.compile(r'[\[{]\s*(?:["\[\]{}]|\Z)')
_STILL_THINKING = re.compile(r"\A\s*<think>(?P<thought>.*)\Z", re.DOTALL)


class _Renderer(RendererHTML):
    """Links lead to a window of their own and tell nobody where they were followed."""

    def link_open(
        self, tokens: Sequence[Token], index: int, options: OptionsDict, env: MutableMapping[str, Any]
    ) -> str:
        """A link's beginning."""
        tokens[index].attrSet("rel", "noopener noreferrer nofollow")
        tokens[index].attrSet("target", "_blank")
        return self.renderToken(tokens, index, options, env)


@functools.cache
def _reader() -> MarkdownIt:
    """Markup is shown as text, and pictures as they were written: they would be fetched from anywhere."""
    reader = MarkdownIt("commonmark", {"html": False, "breaks": True}, renderer_cls=_Renderer)
    return reader.enable(["table", "strikethrough"]).disable(["image"])


def markdown_html(text: str) -> str:
    """Markdown as HTML."""
    return str(_reader().render(text))


def answer_html(text: str) -> str:
    """An answer: what it thought before, between `<think>` and `</think>`, is folded away. One that is JSON
    keeps its lines.
    """
    if (found := _THINKING.match(text)) is not None:
        return _folded(found["thought"]) + _said(found["rest"].strip())
    if (found := _STILL_THINKING.match(text)) is not None:
        return _folded(found["thought"], is_open=True)
    return _said(text)


def _said(text: str) -> str:
    if not _is_json(text.strip()):
        return markdown_html(text)
    return f"<pre><code class='language-json'>{escape(text.strip())}</code></pre>"


def _is_json(text: str) -> bool:
    """Whether it is an object or a list of JSON, or may become one: it comes token by token."""
    if not _BEGINS_JSON.match(text):
        return False
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return True
    return end == len(text)


def _folded(thought: str, *, is_open: bool = False) -> str:
    if not thought.strip():
        return ""
    opened = " open" if is_open else ""
    inner = markdown_html(thought.strip())
    return f"<details class='thinking'{opened}><summary>Thinking</summary>{inner}</details>"


def plain_html(text: str) -> str:
    """Text with its line breaks, and nothing else."""
    return f"<p class='as-written'>{escape(text)}</p>"
