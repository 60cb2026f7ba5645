"""A kind of job that is one file outside the program: this one. It joins by the environment, and is used in
the service, the command line and the page's form.
"""

import json
from dataclasses import dataclass

import pytest
from typer.testing import CliRunner

from app.cli.main import app
from app.jobs.kinds import JOBS, JobKind
from app.shared.errors import JobFailed
from app.web.sections.home.other_jobs import render, start_job
from core.errors import InvalidConfig, InvalidData
from core.events import Progress
from core.options import Config, option
from core.seam import PLUGINS_VARIABLE
from storage.errors import NotFound
from storage.tables import Dataset, Job
from tests.workbenches import do_job


@dataclass(frozen=True)
class CountWordsOptions(Config):
    """What to count."""

    dataset: str = option("", "Data set", "Its name.")
    times: int = option(1, "Times", "How often to count each word.", minimum=1, maximum=9)


class CountWords(JobKind):
    """Counts words."""

    name, label = "count_words", "Count the words of a data set"
    help = "How many words its rows have."
    options = CountWordsOptions

    def title(self, arguments):
        return f"Count {arguments['dataset']}"

    def validate(self, context, arguments):
        found = super().validate(context, arguments)
        context.registry.find(Dataset, found["dataset"])
        return found

    def run(self, context, arguments):
        import torch  # what a head must not do

        rows = context.registry.find(Dataset, arguments["dataset"]).preview
        context.report(Progress("Counting", 0.5))
        texts = [message["content"] for row in rows for message in row["messages"]]
        words = torch.tensor([len(text.split()) for text in texts]).sum().item()
        if not words:
            raise InvalidData("There are no words.")
        return {"words": words * arguments["times"]}


KINDS = (CountWords(),)


@pytest.fixture(autouse=True)
def _joined(monkeypatch):
    monkeypatch.setenv(PLUGINS_VARIABLE, __name__)


@pytest.fixture
def expected(workbench):
    """The words of the rows that a data set shows."""
    rows = workbench.registry.find(Dataset, "data").preview
    return sum(len(message["content"].split()) for row in rows for message in row["messages"])


def _command(settings, *arguments):
    done = CliRunner().invoke(app, ["jobs", *arguments, "--home", str(settings.home), "--json"])
    return done.exit_code, json.loads(done.stdout)


def test_it_is_in_the_list_behind_the_program_s_own_and_gone_without_the_variable(monkeypatch):
    assert JOBS.names[0] == "add_model"
    assert JOBS.names[-1] == "count_words"
    monkeypatch.delenv(PLUGINS_VARIABLE)
    assert "count_words" not in JOBS.names


def test_the_service_starts_it_in_a_process_of_its_own(workbench, expected):
    job = workbench.jobs.start("count_words", {"dataset": "data", "times": "2"})
    assert (job.title, job.arguments) == ("Count data", {"dataset": "data", "times": 2})
    assert workbench.jobs.wait(job) == {"words": 2 * expected}


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"dataset": "absent"}, NotFound, "absent"),
        ({"dataset": "data", "times": 10}, InvalidConfig, "between 1 and 9"),
        ({"datset": "data"}, InvalidConfig, "Did you mean dataset"),
    ],
)
def test_what_it_cannot_use_is_refused_before_anything_starts(workbench, options, error, said):
    before = len(workbench.registry.all(Job))
    with pytest.raises(error, match=said):
        workbench.jobs.start("count_words", options)
    assert len(workbench.registry.all(Job)) == before


def test_it_starts_above_the_quota_since_it_keeps_nothing(workbench, expected):
    workbench.usage.set_quota(1e-6)
    job = workbench.jobs.start("count_words", {"dataset": "data"})
    assert workbench.jobs.wait(job) == {"words": expected}


def test_the_command_line_lists_starts_shows_and_refuses(settings, workbench, expected):
    _, listed = _command(settings, "kinds")
    (mine,) = [one for one in listed["rows"] if one["name"] == "count_words"]
    assert (mine["where"], mine["options"]) == ("jobs start count_words", "dataset, times")
    assert _command(settings, "start", "count_words", "--set", "dataset=data") == (0, {"words": expected})
    newest = _command(settings, "list")[1]["rows"][0]
    assert (newest["kind"], newest["state"], newest["title"]) == ("count_words", "finished", "Count data")
    assert _command(settings, "show", str(newest["id"]))[1]["result"] == {"words": expected}
    code, said = _command(settings, "start", "count_wrods")
    assert (code, "Did you mean count_words" in said["error"]) == (1, True)
    code, said = _command(settings, "start", "add_model")
    assert (code, "models add" in said["error"]) == (1, True)


def test_the_form_offers_and_starts_it(workbench, expected):
    (kind,) = workbench.jobs.offered()
    job = start_job(workbench, kind, ["dataset", "times"], ["data", 3])
    result = workbench.jobs.wait(job)
    assert f"<dd>{3 * expected}</dd>" in render(result)[0]


def test_the_page_has_a_form_only_where_a_kind_has_no_place_of_its_own(workbench, monkeypatch):
    from app.web.page import build_page

    def labels():
        found = [getattr(block, "label", None) for block in build_page(workbench).blocks.values()]
        return {one for one in found if one in ("Other jobs", "Data set", "Times")}

    assert labels() >= {"Other jobs", "Times"}
    monkeypatch.delenv(PLUGINS_VARIABLE)
    assert "Other jobs" not in labels()


def test_a_job_whose_kind_is_gone_fails_with_a_sentence(workbench, monkeypatch):
    monkeypatch.delenv(PLUGINS_VARIABLE)
    job = do_job(workbench, "count_words", {"dataset": "data"})
    assert job.state == "failed"
    assert job.message.startswith("There is no job 'count_words'")


def test_what_it_raises_is_the_job_s_sentence(workbench):
    empty = workbench.registry.find(Dataset, "data")
    empty.preview = []
    workbench.registry.save(empty)
    job = do_job(workbench, "count_words", {"dataset": "data", "times": 1})
    assert (job.state, job.message) == ("failed", "There are no words.")
    with pytest.raises(JobFailed, match="no words"):
        workbench.jobs.wait(job)
