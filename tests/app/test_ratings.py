"""Bradley–Terry ratings: known results, a search by force, simulated votes, and votes that tell little."""

import itertools
import math

import numpy as np
import pytest

from app.service.ratings import MEAN, SCALE, Outcome, ratings, strengths


def _of(found, name):
    return next(one for one in found if one.name == name)


def _votes(a, b, first, second, ties=0):
    return [
        *[Outcome((a, b), a)] * first,
        *[Outcome((a, b), b)] * second,
        *[Outcome((a, b), None)] * ties,
    ]


def test_two_are_as_far_apart_as_the_odds_of_their_wins():
    found = ratings(_votes("a", "b", 30, 10))
    apart = _of(found, "a").rating - _of(found, "b").rating
    assert apart == pytest.approx(SCALE * math.log(3), abs=1e-6)
    # The error of a log-odds is √(1/30 + 1/10); each stands half of the distance from the mean.
    assert _of(found, "a").interval == pytest.approx(1.96 * SCALE * math.sqrt(1 / 30 + 1 / 10) / 2, rel=1e-6)
    assert not _of(found, "a").by_prior


def test_a_tie_is_half_a_win_each_way():
    tied = ratings(_votes("a", "b", 20, 0, ties=20))
    counted = ratings(_votes("a", "b", 30, 10))
    assert _of(tied, "a").rating == pytest.approx(_of(counted, "a").rating)
    assert not _of(tied, "a").by_prior
    alike = ratings(_votes("a", "b", 0, 0, ties=8))
    assert [one.rating for one in alike] == pytest.approx([MEAN, MEAN])
    assert all(one.interval > 50 for one in alike)  # eight ties are no certainty


def test_the_best_of_several_wins_against_each_and_the_rest_say_nothing_of_each_other():
    shown = ("a", "b", "c")
    found = ratings([*[Outcome(shown, "a")] * 6, *[Outcome(shown, "b")] * 3, *[Outcome(shown, "c")] * 3])
    assert _of(found, "b").rating == pytest.approx(_of(found, "c").rating)
    assert _of(found, "a").rating - _of(found, "b").rating == pytest.approx(SCALE * math.log(2), abs=1e-6)


def test_the_strengths_are_those_of_largest_likelihood():
    """Against a search that knows only the likelihood itself."""
    wins = np.array([[0, 6, 3, 1], [2, 0, 4.5, 2], [1, 2.5, 0, 3], [0, 1, 2, 0.0]])

    def likelihood(theta):
        beaten = np.log1p(np.exp(theta[None, :] - theta[:, None]))
        return -(wins * beaten).sum()

    best, width = np.zeros(4), 1.0
    while width > 1e-7:
        steps = [np.array(step) * width for step in itertools.product((-1, 0, 1), repeat=4)]
        better = max((best + step for step in steps), key=likelihood)
        if likelihood(better) <= likelihood(best):
            width /= 2
        best = better
    assert strengths(wins) == pytest.approx(best - best.mean(), abs=1e-5)


def _simulated(random, truth, votes, shown):
    names = list(truth)
    for _ in range(votes):
        some = tuple(random.choice(names, size=shown, replace=False).tolist())
        odds = np.exp([truth[name] for name in some])
        yield Outcome(some, str(random.choice(some, p=odds / odds.sum())))


@pytest.mark.parametrize("shown", [2, 4])
def test_simulated_votes_give_the_order_back_and_intervals_cover_as_often_as_they_say(shown):
    truth = {"a": 1.2, "b": 0.5, "c": 0.0, "d": -0.5, "e": -1.2}
    covered, orders, random = [], [], np.random.default_rng(7)
    for _ in range(120):
        found = ratings(list(_simulated(random, truth, 240, shown)))
        orders.append([one.name for one in found] == list(truth))
        covered += [abs(one.rating - MEAN - SCALE * truth[one.name]) < one.interval for one in found]
    assert np.mean(orders) > 0.85
    assert 0.92 < np.mean(covered) < 0.985


def test_one_that_always_won_is_held_by_a_prior_which_is_told():
    found = ratings(_votes("a", "b", 5, 0))
    assert all(one.by_prior for one in found)
    assert [one.name for one in found] == ["a", "b"]
    assert all(math.isfinite(one.rating) and one.interval > 50 for one in found)
    surer = ratings(_votes("a", "b", 50, 0))
    assert _of(surer, "a").rating > _of(found, "a").rating


def test_those_who_never_met_are_not_compared():
    found = ratings([*_votes("a", "b", 3, 2), *_votes("b", "c", 2, 2), *_votes("x", "y", 1, 3)])
    assert {one.name: one.part for one in found} == {"a": 0, "b": 0, "c": 0, "x": 1, "y": 1}
    for part in (0, 1):
        assert np.mean([one.rating for one in found if one.part == part]) == pytest.approx(MEAN)
    assert ratings([]) == []
