"""The house itself: import directions, the README's commands, the package's contents."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "core": {"app", "storage", "gradio", "sqlmodel"},
    "storage": {"app", "core", "torch", "transformers", "gradio"},
    "app": set(),
}


def _found_once(find):
    """What is found in a file, found once for all rules."""
    return functools.cache(lambda path: tuple(find(path)))


@_found_once
def _names(path):
    """Every name that a file imports, with its module's: core.errors.InvalidData."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _imports(path):
    return (name.split(".")[0] for name in _names(path))


def _room(name):
    """The room that something stands in: app.web for app.web.parts.shell. None for what stands in a wing
    itself, such as core.errors, on which all may build, and core.engine, which is built on all.
    """
    first_two = name.split(".")[:2]
    return ".".join(first_two) if (ROOT / Path(*first_two)).is_dir() else None


def _rooms():
    """Which rooms each room imports, with the first such import: {room: {other: "file imports name"}}."""
    found = {}
    for top in FORBIDDEN:
        for path in sorted((ROOT / top).glob("*/**/*.py")):
            file = path.relative_to(ROOT)
            here = ".".join(file.parts[:2])
            for name in _names(path):
                if (there := _room(name)) and there.count(".") and there != here:
                    found.setdefault(here, {}).setdefault(there, f"{file} imports {name}")
    return found


def _circle(rooms):
    """The imports of a circle of rooms, in order; empty if there is none."""
    done = set()

    def search(room, path):
        if room in path:
            return [*path[path.index(room) :], room]
        if room not in done:
            for other in rooms.get(room, {}):
                if circle := search(other, [*path, room]):
                    return circle
            done.add(room)
        return []

    for room in rooms:
        if circle := search(room, []):
            return [rooms[one][other] for one, other in pairwise(circle)]
    return []


def test_no_folders_import_each_other_in_a_circle():
    circle = _circle(_rooms())
    assert not circle, "These imports make a circle: " + "; ".join(circle)


def test_no_room_of_core_builds_on_the_engine_that_is_built_on_them():
    rooms = (ROOT / "core").glob("*/**/*.py")
    assert [str(path) for path in rooms if any(one.startswith("core.engine.") for one in _names(path))] == []


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_run_in_the_right_direction(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        wrong = set(_imports(path)) & FORBIDDEN[package]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_only_the_engine_and_jobs_import_torch_in_app():
    users = {path.name for path in (ROOT / "app").rglob("*.py") if "torch" in set(_imports(path))}
    assert users == {"process.py"}


def test_every_folder_with_code_is_a_package_and_shipped():
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    shipped = set(find_packages(str(ROOT), include=about["include"]))
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("app", "core", "storage", "assets")
        for path in (ROOT / top).rglob("*.py")
    }
    assert folders == shipped


def test_the_readme_has_its_two_commands_and_the_ci_runs_the_second():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"```sh\n(.+?)\n```", readme, flags=re.DOTALL)
    assert len(commands) == 2
    assert "lora-workbench" in commands[0]
    assert "pytest" in commands[1]
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", readme):
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize("wing", FORBIDDEN)
def test_the_readme_of_each_wing_names_its_folders_and_none_that_is_not_there(wing):
    top = ROOT / wing
    folders = {path.parent.relative_to(top).as_posix() for path in top.rglob("*.py")} - {"."}
    said = set(re.findall(r"`([\w/]+)/`", (top / "README.md").read_text(encoding="utf-8")))
    assert not folders - said, f"{wing}/README.md does not name {sorted(folders - said)}"
    gone = [name for name in said - folders if not (ROOT / name).is_dir()]
    assert not gone, f"{wing}/README.md names {gone}, which are not there"


@pytest.mark.parametrize("wing", FORBIDDEN)
def test_the_readme_of_each_wing_names_only_files_that_are_there(wing):
    said = re.findall(r"`([\w/]+\.py)`", (ROOT / wing / "README.md").read_text(encoding="utf-8"))
    files = [
        f"/{path.relative_to(ROOT)}" for top in (wing, "core", "tests") for path in (ROOT / top).rglob("*.py")
    ]
    gone = [name for name in said if not any(file.endswith(f"/{name}") for file in files)]
    assert not gone, f"{wing}/README.md names {gone}, which are not there"


# Rooms.

ROOMS = {
    "shared": {"shared"},
    "service": {"service", "shared"},
    "engine": {"engine", "shared"},
    "jobs": {"jobs", "shared"},
    "web": {"web", "service", "shared"},
    "cli": {"cli", "web", "service", "shared"},  # a command opens the page
}
HEADS = "app.jobs.kinds"  # what jobs there are; their work is imported where it is done
EXCEPTIONS = {
    ("app/jobs/evaluating.py", "app.engine.preparing"): "rows are judged as the engine renders them",
}


@_found_once
def _modules(path):
    """The dotted names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_of_the_app_imports_only_what_it_may(room):
    for path in sorted((ROOT / "app" / room).rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        for module in _modules(path):
            if module.startswith("app.") and (file, module) not in EXCEPTIONS:
                allowed = module.split(".")[1] in ROOMS[room] or module.startswith(HEADS)
                assert allowed, f"{file} imports {module}"


def test_every_room_of_the_app_has_its_rule_and_every_exception_its_use():
    assert {path.parent.name for path in (ROOT / "app").glob("*/__init__.py")} == set(ROOMS)
    for file, module in EXCEPTIONS:
        assert module in set(_modules(ROOT / file)), f"{file} no longer imports {module}"


LIGHT = """
import importlib, pkgutil, sys

class Refusal:
    heavy = {"torch", "transformers", "gradio"}

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.heavy:
            raise RuntimeError(f"{name} is imported")  # no ImportError: nobody may go on without it

def everything(room):
    package = importlib.import_module(room)
    yield room
    for module in pkgutil.walk_packages(package.__path__, f"{room}."):
        if module.name != "storage.migrations.env":  # a script that alembic runs
            yield module.name

sys.meta_path.insert(0, Refusal())
light, seams, page = (names.split(",") for names in sys.argv[1:])
for room in light:
    for module in everything(room):
        importlib.import_module(module)
for folder in seams:
    package = importlib.import_module(folder)
    kinds = [one.all() for one in list(vars(package).values()) if type(one).__name__ == "Seam"]
    assert kinds and all(kinds), f"{folder} lists no kinds"
Refusal.heavy = {"torch", "transformers"}
for module in everything(*page):
    importlib.import_module(module)
"""
SEAMS = (
    "core.lora.kinds",
    "core.train.objectives",
    "core.export.formats",
    "core.combine.methods",
    "core.data.formats",
    "app.jobs.kinds",
)


def test_the_page_the_command_line_and_all_heads_need_neither_torch_nor_transformers():
    """In a process where they cannot be imported; Gradio neither but for the page."""
    light = ("storage", "app.shared", "app.service", "app.cli")
    seams = [folder for folder in SEAMS if (ROOT / folder.replace(".", "/")).is_dir()]
    command = [sys.executable, "-c", LIGHT, ",".join(light), ",".join(seams), "app.web"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


# Names.

FACES = {
    "__init__": "what a folder is",
    "section": "a section of the page, one in each folder",
    "errors": "the tree of errors of core, storage and the app",
    "process": "the main module of a process of its own",
    "files": "what the thing of that folder is on disk",
    "hub": "the hub, for models and for data",
    "import_form": "the form of a section by which things come in",
    "adapters": "adapters: their rows, the service, the commands, the work on them",
    "baselines": "the baselines beside a run: the service and the commands",
    "bases": "base models: their rows, and what every process does with them",
    "chats": "chats: their rows and the service",
    "checkpoints": "checkpoints: their rows, and how the engine writes and reads them",
    "config": "the configuration of that folder's subject, described field by field",
    "conversations": "conversations: as rows to train on, and as they are held in the playground",
    "datasets": "data sets: their rows and the service",
    "doctor": "what could be wrong: the service and the command",
    "exports": "exports: their rows and the service",
    "jobs": "jobs: their rows, the service and the commands",
    "models": "base models: the service and the commands",
    "presets": "presets: the service and the commands",
    "quickstart": "the whole journey in one go: the service and the command",
    "prompt_sets": "prompt sets: their rows and the service",
    "runs": "runs: their rows, the service and the commands",
    "turns": "the turns of a conversation, in data and in the playground",
    "user_settings": "what people set for a home folder: the file and the commands",
}


def test_no_two_files_share_a_name_that_means_two_things():
    files = defaultdict(list)
    for top in ("app", "core", "storage"):
        for path in (ROOT / top).rglob("*.py"):
            files[path.stem].append(path.relative_to(ROOT).as_posix())
    shared = {name: sorted(paths) for name, paths in files.items() if len(paths) > 1}
    unknown = {name: paths for name, paths in shared.items() if name not in FACES}
    assert not unknown, f"rename one, or say in FACES of which one subject they are faces: {unknown}"
    assert set(FACES) <= set(shared), f"no longer shared: {set(FACES) - set(shared)}"


def test_the_types_of_each_wing_are_shipped():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for wing in ("app", "core", "storage"):
        assert (ROOT / wing / "py.typed").is_file()
        assert "py.typed" in data[wing]
