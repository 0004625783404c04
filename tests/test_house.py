"""The house: which part may import which, how long functions are, how long the README is."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = {"cli", "config", "losses", "metrics", "utils"}
COMMANDS = {path.stem for path in ROOT.glob("*.py")} - SHARED
# Part -> the parts that it may import besides itself, utils, and config, whose types hold no behavior.
RULES = {
    "utils": set(),
    "cli": set(),
    "config": {"cli"},
    "metrics": set(),
    "models": set(),
    "data": set(),
    "losses": {"models"},
    "training": {"losses", "models", "data", "metrics"},
    "inference": {"training", "models", "data", "metrics"},
    "experiments": {"training", "data", "metrics"},
    "reporting": {"inference", "experiments", "training", "models", "data", "metrics"},
}
FILES = [path for name in RULES for path in (*ROOT.glob(f"{name}.py"), *ROOT.glob(f"{name}/**/*.py"))]
CODE = [*FILES, *(ROOT / f"{name}.py" for name in COMMANDS), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("docs/*.py")]


def imported(path: Path) -> set[str]:
    """The first names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]


def test_the_root_has_the_commands_and_what_all_parts_share():
    assert {path.stem for path in ROOT.glob("*.py")} == COMMANDS | SHARED
    assert {"main", "prepare", "predict", "evaluate", "reproduce", "report"} <= COMMANDS
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "docs", "benchmarks"}
    assert packages == RULES.keys() - SHARED


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_parts_import_only_what_lies_below_them(path):
    part = part_of(path)
    below = RULES[part] | {part, "utils"}
    if part != "utils":
        below |= {"config"}
    ours = imported(path) & (RULES.keys() | COMMANDS)
    assert ours <= below


def test_nobody_imports_a_command():
    offenders = {path: imported(path) & COMMANDS for path in CODE}
    assert not {path: names for path, names in offenders.items() if names}


def test_tests_do_not_import_tests():
    for path in ROOT.glob("tests/**/test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests"):
                assert node.module.startswith("tests.helpers"), path


def test_functions_fit_a_screen():
    lengths = {}
    for path in CODE:
        for function in functions(path):
            lengths[f"{path.relative_to(ROOT)}:{function.name}"] = function.end_lineno - function.lineno + 1
    assert not {name: lines for name, lines in lengths.items() if lines > 60}


def test_functions_have_at_most_six_parameters():
    """Constructors of networks and of the loss name their options, as those of libraries do."""
    many = set()
    for path in CODE:
        for function in functions(path):
            names = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
            names = [name for name in names if name not in ("self", "cls", "ctx")]
            if len(names) > 6:
                many.add(f"{path.relative_to(ROOT)}:{function.name}")
    assert many <= {"models/ms_dual_guided.py:__init__", "losses.py:__init__"}


def test_main_and_readme_are_read_in_minutes():
    assert len((ROOT / "main.py").read_text().splitlines()) < 130
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_libraries_do_not_speak_of_flags():
    """Commands, and the training that they set up, know flags; what others may use from Python does not."""
    for path in FILES:
        if part_of(path) in ("models", "losses", "metrics", "data"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Raise):
                    texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                    assert not any("--" in text for text in texts if isinstance(text, str)), (path, node.lineno)
