"""The house itself: import directions, the README's commands, the package's contents."""

import ast
import re
import tomllib
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
