"""Which state may follow which: the check that runs and jobs share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from storage.errors import InvalidTransition

Transitions = Mapping[str, Sequence[str]]
"""For each state those that may follow it."""


def require_follows(transitions: Transitions, named: str, state: str, wanted: str) -> None:
    """Raise InvalidTransition unless `wanted` may follow `state`; `named` is the row as a sentence begins."""
    possible = transitions[state]
    if wanted not in possible:
        then = f"from there it can become {_listed(possible)}" if possible else "nothing follows that"
        raise InvalidTransition(f"{named} is {state} and cannot become {wanted}; {then}.")


def _listed(states: Sequence[str]) -> str:
    *most, last = states
    return f"{', '.join(most)} or {last}" if most else f"only {last}"
