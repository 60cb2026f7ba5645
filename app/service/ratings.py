"""Bradley–Terry ratings of those who were voted on, with intervals.

Each vote is cut into pairs: the best column won against every other one, which keeps the estimate consistent
(Azari Soufiani et al., 2013, "Generalized method-of-moments for rank aggregation"). No preference (a tie, or
all bad) is half a win each way in every pair of those shown, as Elo and Chatbot Arena count it.

P(i beats j) = 1 / (1 + exp(θ_j − θ_i)) (Bradley and Terry, 1952). θ is the maximum of the likelihood, found
by Newton's method. It is finite exactly if no group of columns has always won against the rest (Ford, 1957).
Where one has, every column of that part is given a weak prior, a tie with an opponent of average strength,
and is told to have it. Those who never met, not even over others, cannot be compared: they stand in parts of
their own, each with the mean 1000.

Intervals are 95 % for the distance from the mean of the part: 1.96 standard errors, of the observed
information or of the sandwich with a cluster for each vote (White, 1982), whichever is wider. The pairs of
one vote depend on each other, which the information alone would not see; a few votes alike would seem certain
to the sandwich.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MEAN = 1000.0
SCALE = 400 / math.log(10)  # a column 400 above another wins ten times as often as it loses, as in Elo
_SURE = 1.96
_STEPS = 100
_PRIOR = 1.0  # votes, each half won, against an opponent of average strength
Matrix = NDArray[np.float64]
Pair = tuple[int, int, float]


@dataclass(frozen=True)
class Outcome:
    """One vote: who was shown, and who of them was best; None for no preference."""

    shown: tuple[str, ...]
    best: str | None


@dataclass(frozen=True)
class Rating:
    """How strong one is, from all votes together."""

    name: str
    rating: float | None
    """None for one that no vote compares with any other."""
    interval: float | None
    """Half of its 95 % interval."""
    part: int
    """Ratings compare within a part only; 0 is the largest."""
    by_prior: bool = False
    """Whether a weak prior holds it: the votes alone would put it infinitely far away."""


def ratings(outcomes: Sequence[Outcome]) -> list[Rating]:
    """Of everybody who was shown, part by part, the strongest first."""
    names = sorted({name for one in outcomes for name in one.shown})
    place = {name: at for at, name in enumerate(names)}
    votes = [list(_pairs(one, place)) for one in outcomes]
    wins = np.zeros((len(names), len(names)))
    for i, j, share in itertools.chain.from_iterable(votes):
        wins[i, j] += share
        wins[j, i] += 1 - share
    found = []
    for part, members in enumerate(_parts(wins + wins.T)):
        rated = _rated([names[at] for at in members], part, wins[np.ix_(members, members)])
        found += rated if len(members) == 1 else _with_intervals(rated, members, wins, votes)
    return sorted(found, key=lambda one: (one.part, -(one.rating or 0.0), one.name))


def strengths(wins: Matrix, prior: float = 0.0) -> Matrix:
    """θ [n] of largest likelihood, with the mean 0; wins [n, n] of each row over each column.

    prior: so many votes, each half won, of everybody against an opponent at 0.
    """
    theta, games = np.zeros(len(wins)), wins + wins.T
    for _ in range(_STEPS):
        chance = _chances(theta)
        own = 1 / (1 + np.exp(-theta))
        score = (wins - games * chance).sum(1) + prior * (0.5 - own)
        step = np.linalg.pinv(information(theta, games, prior)) @ score
        step *= min(1.0, 2.0 / max(np.abs(step).max(), 1e-300))  # far away the curve is no parabola
        theta = theta + step
        theta -= 0.0 if prior else theta.mean()
        if np.abs(step).max() < 1e-10:
            break
    return theta - theta.mean()


def information(theta: Matrix, games: Matrix, prior: float = 0.0) -> Matrix:
    """The observed information [n, n] of θ; the sum of θ is not determined unless there is a prior."""
    weights = games * _chances(theta) * _chances(theta).T
    own = 1 / (1 + np.exp(-theta))
    return np.diag(weights.sum(1) + prior * own * (1 - own)) - weights


def _chances(theta: Matrix) -> Matrix:
    """[n, n], of each row to beat each column."""
    chances: Matrix = 1 / (1 + np.exp(theta[None, :] - theta[:, None]))
    return chances


def _pairs(outcome: Outcome, place: dict[str, int]) -> Iterator[Pair]:
    """(i, j, share): i has won this share of a comparison with j."""
    if outcome.best is None:
        yield from ((place[a], place[b], 0.5) for a, b in itertools.combinations(outcome.shown, 2))
        return
    for other in outcome.shown:
        if other != outcome.best:
            yield place[outcome.best], place[other], 1.0


def _parts(games: Matrix) -> list[list[int]]:
    """Who has met whom, over others too; the largest part first."""
    left, found = set(range(len(games))), []
    while left:
        part = _reached(games, min(left))
        left -= part
        found.append(sorted(part))
    return sorted(found, key=len, reverse=True)


def _reached(edges: Matrix, start: int) -> set[int]:
    seen, waiting = {start}, [start]
    while waiting:
        new = set(np.flatnonzero(edges[waiting.pop()]).tolist()) - seen
        seen |= new
        waiting += new
    return seen


def _is_one_sided(wins: Matrix) -> bool:
    """Whether somebody does not reach everybody along wins and ties, or is not reached: then some θ is
    infinite.
    """
    return any(len(_reached(edges, 0)) < len(wins) for edges in (wins, wins.T))


def _rated(names: list[str], part: int, wins: Matrix) -> list[Rating]:
    """Without intervals yet."""
    if len(names) == 1:
        return [Rating(names[0], None, None, part)]
    by_prior = _is_one_sided(wins)
    theta = strengths(wins, _PRIOR if by_prior else 0.0)
    return [
        Rating(name, MEAN + SCALE * float(at), None, part, by_prior)
        for name, at in zip(names, theta, strict=True)
    ]


def _with_intervals(
    rated: list[Rating], members: list[int], wins: Matrix, votes: list[list[Pair]]
) -> list[Rating]:
    theta = np.array([((one.rating or MEAN) - MEAN) / SCALE for one in rated])
    games = wins[np.ix_(members, members)]
    errors = _errors(theta, games + games.T, members, votes, _PRIOR if rated[0].by_prior else 0.0)
    return [
        Rating(one.name, one.rating, _SURE * SCALE * float(error), one.part, one.by_prior)
        for one, error in zip(rated, errors, strict=True)
    ]


def _errors(
    theta: Matrix, games: Matrix, members: list[int], votes: list[list[Pair]], prior: float
) -> Matrix:
    """Standard errors [n] of θ around its mean."""
    centre = np.eye(len(theta)) - 1 / len(theta)
    inverse = centre @ np.linalg.pinv(information(theta, games, prior))
    place, chances = {at: number for number, at in enumerate(members)}, _chances(theta)
    scores = []
    for vote in (vote for vote in votes if vote and vote[0][0] in place):
        score = np.zeros(len(theta))
        for i, j, share in ((place[a], place[b], share) for a, b, share in vote):
            score[i] += share - chances[i, j]
            score[j] -= share - chances[i, j]
        scores.append(score)
    spread = np.array(scores)
    sandwich = inverse @ (spread.T @ spread) @ inverse.T
    errors: Matrix = np.sqrt(np.maximum(np.diag(inverse @ centre), np.diag(sandwich)))
    return errors
