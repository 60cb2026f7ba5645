"""An answer token by token: how likely each was, what else was likely, and how far the base was moved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from core.generate.scores import Scored, TokenScore

_MOST_KL = 2.0
"""Nats from which on a token has the full colour."""


def tokens_html(scored: Scored) -> str:
    """All tokens; each tells on hover, and by its title, what was likely there."""
    tokens = "".join(_token(one) for one in scored.tokens)
    mean = math.fsum(one.kl for one in scored.tokens) / max(1, len(scored.tokens))
    said = (
        f"log-probability {scored.total:.2f} · perplexity {scored.perplexity:.3g} · KL from the base "
        f"{mean:.3f} nats a token. The stronger the colour, the further the base was moved."
    )
    return f"<p class='as-written scored'>{tokens}</p><p class='hint'>{said}</p>"


def _token(one: TokenScore) -> str:
    share = min(1.0, one.kl / _MOST_KL)
    others = "\n".join(f"{100 * math.exp(value):5.1f} %  {text!r}" for text, value in one.likeliest)
    title = f"{100 * math.exp(one.logprob):.1f} % here · KL {one.kl:.3f} nats\n{others}"
    told = f"style='--moved:{share:.2f}' title='{escape(title, quote=True)}'"
    return f"<span tabindex='0' {told}>{escape(one.text)}</span>"


def scores_html(names: Sequence[str], scored: Sequence[Scored]) -> str:
    """A reference answer under every column."""
    lines = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td>{one.total:.2f}</td><td>{one.perplexity:.3g}</td>"
        f"<td>{len(one.tokens):,}</td></tr>"
        for name, one in zip(names, scored, strict=True)
    )
    names_of = ("Column", "Log-probability (nats)", "Perplexity", "Tokens")
    head = "".join(f"<th scope='col'>{one}</th>" for one in names_of)
    return f"<table class='rows'><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
