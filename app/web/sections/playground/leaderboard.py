"""The leaderboard of a base as a table."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from app.service.judging import Standing
from app.web.parts.markup import empty
from app.web.parts.routes import link
from app.web.sections.playground.ballot_sheet import rating_words

_NONE = "No votes on this base yet. Ask something, and vote for the best answer."
_COLUMNS = ("Rating", "Votes", "Best", "Another best", "Tie", "All bad")
_PRIOR = (
    "* Somebody here has only won, or only lost, so far: a weak prior (one tie with an average opponent) "
    "holds these ratings, and more votes will move them."
)
_PARTS = "Ratings compare within a group only: between the groups there has been no vote yet."
_HOW = (
    "Bradley–Terry ratings with 95 % intervals; 1000 is the mean, and 400 more wins ten times as often. A "
    "tie, or all bad, is half a win each."
)


def leaderboard_html(lines: Sequence[Standing], known: set[str]) -> str:
    """Of the votes on a base's weights, with what their numbers mean. known: adapters that are here."""
    if not lines:
        return empty(_NONE)
    several = lines[-1].rating.part > 0
    head = "".join(f"<th scope='col' class='number'>{one}</th>" for one in _COLUMNS)
    body = "".join(_group(lines, at, several) + _line(one, known) for at, one in enumerate(lines))
    notes = [_HOW, *([_PRIOR] if any(one.rating.by_prior for one in lines) else [])]
    notes += [_PARTS] if several else []
    said = "".join(f"<p class='hint'>{escape(one)}</p>" for one in notes)
    return (
        "<div class='wide' tabindex='0'><table class='rows leaderboard'><thead><tr><th scope='col'>Who</th>"
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>{said}"
    )


def _group(lines: Sequence[Standing], at: int, several: bool) -> str:
    """The line above the first of each group, where there are several."""
    part = lines[at].rating.part
    if not several or (at and lines[at - 1].rating.part == part):
        return ""
    return f"<tr><th scope='rowgroup' colspan='{len(_COLUMNS) + 1}'>Group {part + 1}</th></tr>"


def _line(one: Standing, known: set[str]) -> str:
    name = link(one.name, "adapters", name=one.name) if one.name in known else escape(one.name)
    mark = " *" if one.rating.by_prior else ""
    counts = (one.votes, one.wins, one.losses, one.ties, one.all_bad)
    cells = "".join(f"<td class='number'>{count:,}</td>" for count in counts)
    about = f" title='{escape(one.digest)}'" if one.digest else ""
    rating = f"<td class='number'><b>{rating_words(one)}{mark}</b></td>"
    return f"<tr><th scope='row'{about}>{name}</th>{rating}{cells}</tr>"
