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


def docstrings(file: str) -> dict[str, list[str]]:
    """Field -> its docstrings as one paragraph each, in the dataclasses of a file."""
    found = defaultdict(list)
    for kind in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(kind, ast.ClassDef):
            for field, text in zip(kind.body, kind.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    found[field.target.id].append(" ".join(text.value.value.split()))
    return found


@pytest.mark.parametrize(
    ("show", "file"),
    [
        (lambda: cli.parse(Config, ["--help"], default=Config()), "config.py"),
        (lambda: cli.parse(evaluate.Options, ["--help"]), "inference/evaluation.py"),
        (lambda: cli.parse(reproduce.Options, ["--help"]), "experiments/folds.py"),
        (lambda: cli.parse_command({"png": prepare.Png, "nifti": prepare.Nifti}, ["png", "--help"]), "prepare.py"),
    ],
)
def test_each_flag_is_explained_in_one_paragraph(show, file, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        show()
    shown = capsys.readouterr().out
    texts = docstrings(file)
    flags = [name for name in texts if f"--{name} " in shown or f"--{name}," in shown]
    assert len(flags) > 5
    assert [name for name in flags if not any(text in shown for text in texts[name])] == []
