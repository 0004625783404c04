"""Help texts: a field's docstring is one paragraph, wherever the source breaks its lines."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import cli
import evaluate
import prepare
import reproduce
from config import Config

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")


def docstrings(file: str) -> dict[str, list[str]]:
    """Field -> its docstrings as one paragraph each, in the dataclasses of a file."""
    found = defaultdict(list)
    for kind in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(kind, ast.ClassDef):
            for field, text in zip(kind.body, kind.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    found[field.target.id].append(" ".join(text.value.value.split()))
    return found


COMMANDS = {"png": prepare.Png, "nifti": prepare.Nifti}


@pytest.mark.parametrize(
    ("show", "file"),
    [
        (lambda: cli.parse(Config, "", ["--help"]), "config.py"),
        (lambda: cli.parse(evaluate.Options, "", ["--help"]), "inference/evaluation.py"),
        (lambda: cli.parse(reproduce.Options, "", ["--help"]), "experiments/folds.py"),
        (lambda: cli.parse_command(COMMANDS, "", ["png", "--help"]), "prepare.py"),
    ],
)
def test_each_flag_is_explained_in_one_paragraph(show, file, capsys):
    with pytest.raises(SystemExit):
        show()
    shown = capsys.readouterr().out
    texts = docstrings(file)
    flags = [name for name in texts if f"--{name} " in shown or f"--{name}," in shown]
    assert len(flags) > 5
    assert [name for name in flags if not any(text in shown for text in texts[name])] == []


@pytest.mark.parametrize(
    "show",
    [
        lambda description: cli.parse(reproduce.Options, description, ["--help"]),
        lambda description: cli.parse_command(COMMANDS, description, ["--help"]),
    ],
)
def test_each_example_is_a_line(show, capsys):
    with pytest.raises(SystemExit):
        show("What it does.\n\npython a.py --flag\npython b.py x\n\nFlags are\nhanded on.\n")
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    start = lines.index("What it does.")
    assert [line for line in lines[start : start + 6] if line] == [
        "What it does.",
        "  python a.py --flag",
        "  python b.py x",
        "Flags are handed on.",
    ]
