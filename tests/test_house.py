"""The house itself: import directions, the README's commands, the package's contents."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "core": {"app", "storage", "gradio", "sqlmodel"},
    "storage": {"app", "core", "torch", "transformers", "gradio"},
    "app": set(),
}


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").split(".")[0]


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
