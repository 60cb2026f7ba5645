"""The sheet in which answers are judged: nothing that names those who answer reaches it before the vote."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from app.service.judging import LETTERS, Standing, key_of, without_names
from app.service.workbench import Workbench
from app.shared.disk import plain_sentence
from app.shared.errors import USER_ERRORS
from app.shared.speakers import PLAIN_BASE
from app.web.parts.markdown import answer_html
from app.web.parts.panes import sheet
from app.web.parts.scripts import script
from storage.errors import NotFound
from storage.tables import Ballot

KEY = "ballot"
_HELP = "Read the answers and vote. Whose they are is told when you have voted."
Asked = Mapping[str, Any]
Answer = dict[str, Any]


def ballot_sheet(workbench: Workbench) -> gr.HTML:
    """Lay it out. Given `opened(ballot)`, it opens with that ballot."""
    judging = workbench.judging

    def look(asked: Asked) -> Answer:
        return shown(workbench, int(asked["ballot"]))

    def stop(asked: Asked) -> Answer:
        judging.stop(int(asked["ballot"]))
        return look(asked)

    def vote(asked: Asked) -> Answer:
        best = asked["best"]
        judging.vote(int(asked["ballot"]), str(asked["verdict"]), None if best is None else int(best))
        return look(asked)

    def ask_again(asked: Asked) -> Answer:
        return shown(workbench, judging.ask_again(int(asked["ballot"]), str(asked["prompt"])).id or 0)

    def following(asked: Asked) -> Answer:
        return shown(workbench, workbench.prompts.following(int(asked["run"])).id or 0)

    with sheet(KEY, "Which answer is best?", _HELP):
        return gr.HTML(
            value="",
            html_template="<div class='ballot-slot'></div>",
            js_on_load=script("ballot.js"),
            server_functions=[_refusing(workbench, one) for one in (look, stop, vote, ask_again, following)],
            elem_id="ballot-view",
        )


def opened(ballot: Ballot) -> str:
    """What a handler gives the sheet's component to open it with a ballot, also with the same one again."""
    return json.dumps({"ballot": ballot.id, "at": time.time()})


def shown(workbench: Workbench, ballot_id: int) -> Answer:
    """A ballot as the page may see it. Raises NotFound."""
    ballot, writing = workbench.judging.look(ballot_id)
    hidden = ballot.blind and not ballot.verdict
    *context, question = ballot.messages
    columns = [
        {"letter": letter, "html": answer_html(column["text"]), "finish": column["finish"]}
        for letter, column in zip(LETTERS, ballot.columns, strict=False)
    ]
    if not hidden:
        ratings = _ratings(workbench, ballot) if ballot.verdict else {}
        for told, column in zip(columns, ballot.columns, strict=True):
            told |= {"name": column["speaker"] or PLAIN_BASE, "rating": ratings.get(key_of(column))}
    return {
        "id": ballot.id,
        "title": "prompt" if ballot.prompt is None else f"prompt {ballot.prompt + 1}",
        "context": context,
        "prompt": question["content"],
        "columns": columns,
        "writing": writing,
        "error": without_names(ballot.error, ballot) if hidden else ballot.error,
        "verdict": ballot.verdict,
        "best": ballot.best,
        "run": ballot.prompt_run_id,
        "left": _left(workbench, ballot),
    }


def _left(workbench: Workbench, ballot: Ballot) -> int:
    """How many prompts of the same run are still to be judged; none where its answers have been removed."""
    if ballot.prompt_run_id is None:
        return 0
    try:
        return workbench.prompts.left_to_judge(workbench.prompts.matrix(ballot.prompt_run_id))
    except NotFound:
        return 0


def _ratings(workbench: Workbench, ballot: Ballot) -> dict[str, str]:
    """After this vote, in a few words by who it is."""
    found = workbench.judging.standings_on(ballot.base_fingerprint)
    return {one.key: rating_words(one) for one in found}


def rating_words(one: Standing) -> str:
    """A rating with its interval."""
    rating, interval = one.rating.rating, one.rating.interval
    return "not comparable yet" if rating is None or interval is None else f"{rating:.0f} ± {interval:.0f}"


def _refusing(workbench: Workbench, act: Callable[[Asked], Answer]) -> Callable[[Asked], Answer]:
    """Answers a refusal as {"refused": sentence}, which names nobody where the names are hidden."""

    @functools.wraps(act)
    def answered(asked: Asked) -> Answer:
        try:
            return act(asked)
        except (*USER_ERRORS, OSError) as error:
            return {"refused": _nameless(workbench, asked, plain_sentence(error))}

    return answered


def _nameless(workbench: Workbench, asked: Asked, sentence: str) -> str:
    try:
        ballot, _ = workbench.judging.look(int(asked["ballot"]))
    except (*USER_ERRORS, TypeError):  # there is none, which the sentence tells
        return sentence
    return without_names(sentence, ballot) if ballot.blind else sentence
