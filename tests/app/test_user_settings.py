"""Settings of a home folder: one plain file, what wins over it, what is refused, what each does."""

from __future__ import annotations

import json
import os
import tomllib

import pytest
from typer.testing import CliRunner

from app.cli.main import app
from app.jobs.process import run_job
from app.service.workbench import Workbench
from app.shared.errors import QuotaExceeded
from app.shared.user_settings import Preferences, PreferenceStore
from core.data.hub import fetch_dataset
from core.errors import InvalidConfig, SourceUnreachable
from core.reporting import silent
from storage.tables import FAILED, Base, Job


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """Nothing that whoever runs the tests has set."""
    for name in [*(f"LORA_WORKBENCH_{one.name.upper()}" for one in Preferences.options()), "HF_HUB_OFFLINE"]:
        monkeypatch.setenv(name, "")


@pytest.fixture
def store(settings):
    return PreferenceStore(settings)


def sources(store):
    return {one.name: (one.value, one.source) for one in store.all()}


def test_the_command_line_wins_over_the_environment_that_over_the_file_and_that_over_the_defaults(
    settings, store, monkeypatch
):
    assert sources(store)["port"] == (7860, "default")
    settings.settings_file.write_text("port = 8001\n")
    assert sources(store)["port"] == (8001, "settings.toml")
    monkeypatch.setenv("LORA_WORKBENCH_PORT", "8002")
    assert sources(store)["port"] == (8002, "$LORA_WORKBENCH_PORT")
    assert store.find("port").overruled
    store.given({"port": 8003})
    assert sources(store)["port"] == (8003, "command line")
    assert store.values().port == 8003
    assert sources(store)["theme"] == ("system", "default")


def test_what_is_changed_is_read_back_and_what_people_wrote_around_it_stays(settings, store):
    settings.settings_file.write_text('# mine\ntheme = "dark"  # at night\n\nport = 8001\n')
    store.change({"density": "compact", "quota": "2.5", "notifications": "off"})
    assert store.values().quota == 2.5
    store.change({"theme": "light"})
    text = settings.settings_file.read_text()
    assert "# mine" in text
    assert "# at night" in text
    assert tomllib.loads(text) == {
        "theme": "light", "port": 8001, "density": "compact", "quota": 2.5, "notifications": False,
    }  # fmt: skip
    store.reset(["theme", "port"])
    assert store.values().port == 7860
    assert "port" not in settings.settings_file.read_text()
    assert settings.settings_file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("thme = 'dark'", "There is no setting 'thme'. Did you mean theme?"),
        ("theme = 'blue'", "theme must be one of system, light, dark, not 'blue'."),
        ("theme = 3", "theme must be one of system, light, dark, not '3'."),
        ("port = 99999", "port must be between 1 and 65,535, not 99999."),
        ("quota = -1", "quota must be at least 0, not -1.0."),
        ("offline = 'maybe'", "offline must be true or false, not 'maybe'."),
        ("host = 'http://me'", "host must be an address or a name alone"),
        ("[page]\ntheme = 'dark'", "There is no setting 'page'. Known settings: theme,"),
        ("theme = dark", "is not valid TOML"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_file_and_can_be_mended_by_command(settings, store, text, said):
    settings.settings_file.write_text(text)
    with pytest.raises(InvalidConfig) as refused:
        store.values()
    assert str(settings.settings_file) in str(refused.value)
    assert said in str(refused.value)
    if "not valid" not in said:
        store.reset([next(iter(tomllib.loads(text)))])
        assert store.values() == Preferences()


def test_a_refused_change_leaves_the_file_as_it_was(settings, store):
    store.change({"theme": "dark"})
    before = settings.settings_file.read_bytes()
    for values in ({"theme": "blue"}, {"density": "compact", "port": 0}, {"colour": "red"}):
        with pytest.raises(InvalidConfig):
            store.change(values)
    with pytest.raises(InvalidConfig, match="no setting 'colour'"):
        store.reset(["colour"])
    assert settings.settings_file.read_bytes() == before


def test_a_link_to_the_file_stays_a_link(settings, store, tmp_path):
    kept = tmp_path / "dotfiles.toml"
    kept.write_text("theme = 'dark'\n")
    settings.settings_file.symlink_to(kept)
    store.change({"port": 8001})
    assert settings.settings_file.is_symlink()
    assert tomllib.loads(kept.read_text()) == {"theme": "dark", "port": 8001}


def test_a_quota_from_before_there_was_the_file_counts_until_it_is_set_anew(settings):
    settings.quota_file.write_text("3")
    workbench = Workbench(settings)
    assert workbench.usage.quota() == 3
    assert sources(workbench.preferences)["quota"] == (3.0, "quota")
    workbench.preferences.change({"theme": "dark"})
    assert workbench.usage.quota() == 3
    workbench.usage.set_quota(0)
    assert (workbench.usage.quota(), settings.quota_file.exists()) == (None, False)
    settings.quota_file.write_text("much")
    workbench.preferences.reset(["quota"])
    assert workbench.usage.quota() is None
    settings.quota_file.write_text("much")
    with pytest.raises(InvalidConfig, match="quota holds no number of GB; set it anew"):
        workbench.usage.require_room()
    workbench.close()


def test_a_quota_in_the_file_is_kept_to(workbench):
    workbench.preferences.change({"quota": 1e-6})
    with pytest.raises(QuotaExceeded, match="are allowed"):
        workbench.jobs.start("add_model", {"origin": "starter", "name": "starter"})


def test_offline_fetches_nothing_and_says_how_to_switch_it_off(workbench, monkeypatch, tmp_path):
    workbench.preferences.change({"offline": True})
    for origin, what in (("owner/name", "The model owner/name"), ("starter", "The starter model")):
        arguments = {"origin": origin, "name": origin.replace("/", "-")}
        job = workbench.registry.save(Job(kind="add_model", title="", arguments=arguments))
        run_job(workbench.settings, job.id)
        job = workbench.registry.get(Job, job.id)
        assert job.state == FAILED
        assert f"{what} is not fetched: the workbench is set to be offline" in job.message
    with pytest.raises(SourceUnreachable, match="The data set owner/rows is not fetched"):
        fetch_dataset("owner/rows", tmp_path, silent)
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    workbench.preferences.change({"offline": False})
    assert not workbench.preferences.values().offline
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert workbench.preferences.find("offline").source == "$HF_HUB_OFFLINE"


def test_the_default_base_is_one_that_is_here_and_commands_start_from_it(workbench):
    home = ["--home", str(workbench.settings.home)]
    asked = CliRunner().invoke(app, ["chat", "--prompt", "hello", *home])
    assert (asked.exit_code, "settings set default_base NAME" in asked.stderr) == (1, True)
    with pytest.raises(InvalidConfig, match="no base model called 'lama'; there are: llama"):
        workbench.preferences.change({"default_base": "lama"})
    workbench.preferences.change({"default_base": "llama"})
    assert workbench.preferences.find("default_base").choices == ("", "llama")
    answered = CliRunner().invoke(app, ["chat", "--prompt", "hello", "--max-tokens", "2", "--json", *home])
    assert json.loads(answered.stdout)["base"] == "llama", answered.stderr
    workbench.registry.bases.remove(workbench.registry.find(Base, "llama"))
    assert workbench.preferences.find("default_base").choices == ("", "llama")


def test_the_command_lists_sets_and_unsets(settings, monkeypatch):
    def run(*arguments):
        done = CliRunner().invoke(app, ["settings", *arguments, "--home", str(settings.home), "--json"])
        return done.exit_code, json.loads(done.stdout)

    assert run("set", "theme", "dark")[1]["value"] == "dark"
    rows = {row["setting"]: row for row in run()[1]["rows"]}
    assert (rows["theme"]["value"], rows["theme"]["source"]) == ("dark", "settings.toml")
    assert rows["port"]["allowed"] == "a whole number between 1 and 65,535"
    assert set(rows) == {one.name for one in Preferences.options()}
    assert run("set", "join_key", "between-us")[1]["value"] == "set, not shown"
    assert "between-us" not in str(run())
    assert run("unset", "theme")[1]["source"] == "default"
    code, said = run("set", "theme", "blue")
    assert (code, said["kind"], "one of system, light, dark" in said["error"]) == (1, "InvalidConfig", True)
    monkeypatch.setenv("LORA_WORKBENCH_THEME", "light")
    told = CliRunner().invoke(app, ["settings", "set", "theme", "dark", "--home", str(settings.home)])
    assert "that counts and not the file" in told.stderr


def test_of_two_lines_that_are_wrong_each_is_mended_by_command_and_the_other_is_told(settings, store):
    def run(*arguments):
        done = CliRunner().invoke(app, ["settings", *arguments, "--home", str(settings.home), "--json"])
        return done.exit_code, json.loads(done.stdout)

    settings.settings_file.write_text("theme = 'blue'\nport = 99999\n")
    code, said = run("set", "theme", "dark")
    assert (code, said["setting"]) == (0, "theme")
    assert "port must be between 1 and 65,535, not 99999." in said["fault"]
    assert run("set", "port", "0")[0] == 1
    assert (run("unset", "port")[0], store.values().theme, store.values().port) == (0, "dark", 7860)


def test_a_page_notices_that_the_file_was_changed(workbench):
    before = workbench.changes()
    workbench.preferences.change({"theme": "dark"})
    assert workbench.changes() != before
