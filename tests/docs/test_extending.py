"""docs/extending.md: its code, applied to a copy of the repository, does what the page says."""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^<!-- test: (\S+) -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PLACE = re.compile(r"# (\S+\.py), (?:(new)|(below|above|instead of): (.+))")


class Block(NamedTuple):
    """A piece of code of the page."""

    name: str
    code: str


BLOCKS = [Block(*found) for found in BLOCK.findall(PAGE)]
OWN = re.compile(r"# (\S+\.py), yours\n")
YOURS = [block for block in BLOCKS if OWN.match(block.code)]
CHANGES = [block for block in BLOCKS if PLACE.match(block.code)]
CHECKS = [block for block in BLOCKS if block not in YOURS and block not in CHANGES]


def apply(root: Path, block: Block) -> None:
    """Make the change that a block of the page says."""
    first, _, code = block.code.partition("\n")
    name, new, where, text = PLACE.fullmatch(first).groups()
    path = root / name
    if new:
        assert not path.exists()
        path.write_text(code, encoding="utf-8")
        return
    lines = path.read_text(encoding="utf-8").split("\n")
    start, end = place(lines, text)
    if where == "below":
        start = end
    elif where == "above":
        end = start
    lines[start:end] = code.removesuffix("\n").split("\n")
    path.write_text("\n".join(lines), encoding="utf-8")


def place(lines: list[str], text: str) -> tuple[int, int]:
    """The lines, from start up to end, of the statement that begins with `text`: with the string that explains it."""
    found = [number for number, line in enumerate(lines) if line.strip().startswith(text)]
    assert len(found) == 1, f"{text!r} begins {len(found)} lines"
    start = found[0]
    for node in ast.walk(ast.parse("\n".join(lines))):
        body = getattr(node, "body", None)
        for statement, after in zip(body, [*body[1:], None], strict=True) if isinstance(body, list) else ():
            decorators = getattr(statement, "decorator_list", [])
            if statement.lineno == start + 1:
                begins = decorators[0].lineno - 1 if decorators else start
                explained = isinstance(statement, ast.AnnAssign) and isinstance(after, ast.Expr)
                return begins, (after if explained else statement).end_lineno
    return start, start + 1  # a line inside a statement


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run Python in the copy."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def run(folder: Path, *arguments: str) -> None:
    """Run Python in the copy, where it must end well."""
    done = start(folder, *arguments)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository's code with all additions of the page."""
    root = tmp_path_factory.mktemp("copy") / "repository"
    left_out = shutil.ignore_patterns(".*", "__pycache__", "tests", "docs", "dataset", "benchmarks", "runs")
    shutil.copytree(ROOT, root, ignore=left_out)
    for block in CHANGES:
        apply(root, block)
    return root


@pytest.fixture(scope="module")
def outcome(copy: Path) -> str:
    """What the checks of the page print, one after the other in one process: their names, and what went wrong."""
    lines = ["import traceback"]
    for block in CHECKS:
        code = "\n".join(f"    {line}" for line in block.code.split("\n"))
        lines += ["try:", code, f"    print('passed {block.name}')", "except Exception:", "    traceback.print_exc()"]
    (copy / "checks.py").write_text("\n".join(lines), encoding="utf-8")
    done = start(copy, "checks.py")
    return done.stdout + done.stderr


def test_every_piece_of_code_is_tested():
    assert PAGE.count("```python") == len(BLOCKS) == len({block.name for block in BLOCKS})
    sections = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    assert len(CHECKS) + 1 == len(sections) == 8  # the first section has commands in the place of a check


@pytest.mark.slow
@pytest.mark.parametrize("name", [block.name for block in CHECKS])
def test_checks_of_the_page_pass(outcome: str, name: str):
    assert f"passed {name}\n" in outcome, outcome


def test_changed_files_keep_the_style(copy: Path):
    ruff = shutil.which("ruff", path=Path(sys.executable).parent) or shutil.which("ruff")
    if ruff is None:
        pytest.skip("no ruff")
    changed = sorted({PLACE.match(block.code)[1] for block in CHANGES})
    settings = ["--config", str(ROOT / "pyproject.toml"), "--no-cache", *changed]
    for command in (["check"], ["format", "--check", "--diff"]):
        done = subprocess.run([ruff, *command, *settings], cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_changed_files_keep_the_rules_of_the_house(copy: Path):
    (copy / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "test_house.py", copy / "tests")
    run(copy, "-m", "pytest", "-q", "tests/test_house.py")


@pytest.mark.slow
def test_the_commands_with_a_network_and_a_loss_of_ones_own(tmp_path: Path):
    """Run in a folder that has nothing but the page's files; of the data, two slices a subject."""
    data = tmp_path / "data"
    for path in (ROOT / "dataset").rglob("Subj_*"):
        if re.search(r"slice_[56]\.", path.name):
            target = data / path.relative_to(ROOT / "dataset")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    for block in YOURS:
        assert len(block.code.split("\n", 1)[1].split("class ")[1].splitlines()) <= 20
        (tmp_path / OWN.match(block.code)[1]).write_text(block.code, encoding="utf-8")
    section = PAGE.split("## Your own network or loss")[1].split("\n## ")[0]
    first, second, third = re.findall(r"^    python (\S+\.py) (.+)$", section, re.MULTILINE)
    for number, (command, flags) in enumerate((first, second)):
        given = shlex.split(flags.replace("DIR", str(data)))
        few = ["--epochs", "1", "--device", "cpu", "--preset", "quick", "--out", str(number)]
        run(tmp_path, str(ROOT / command), *given, *few)
        assert (tmp_path / str(number) / "test.json").exists()
    config = json.loads((tmp_path / "0" / "config.json").read_text())
    assert (config["model"], config["loss"]) == ("my_network:TwoScales", "my_loss:Focal(gamma=1.5)")
    given = shlex.split(third[1].replace("DIR", str(data)))
    few = ["--epochs", "1", "--device", "cpu", "--only", "PAM", "--loss", "my_loss:Nothing"]
    done = start(tmp_path, str(ROOT / third[0]), *given, *few)
    assert done.returncode == 2 and "has no class Nothing" in done.stderr, done.stderr  # the row's network is found


@pytest.mark.slow
def test_training_with_all_additions(copy: Path, tmp_path: Path):
    scans, data, out = tmp_path / "scans", tmp_path / "data", tmp_path / "run"
    scans.mkdir()
    rng = np.random.default_rng(0)
    for subject in range(4):
        label = np.zeros((3, 32, 32), np.uint8)
        label[:, 8:20, 6 + subject : 18 + subject] = 1
        image = label + rng.normal(0, 0.2, label.shape).astype(np.float32)
        np.savez(scans / f"{subject}.npz", image=image, label=label, spacing=(1.5, 1.5, 6.0))
    preparing = ["npz", str(scans), "--out", str(data), "--split", "2,1,1"]
    flags = (
        "--preset small --model plain --epochs 2 --batch_size 2 --weight_decay 0.01 --focal 1 --erase_probability 0.5"
    )
    training = ["--data", str(data), "--out", str(out), "--device", "cpu", *flags.split()]
    commands = f"prepare.main({preparing}); main.main(parse_config({training}))"
    run(copy, "-c", f"import main, prepare; from config import parse_config; {commands}")  # torch is loaded once
    last = torch.load(out / "last.pt", weights_only=True)
    assert len(last["optimization"]["optimizer"]["state"]) == 10  # tensors of weights, which were trained
    config = json.loads((out / "config.json").read_text())
    assert (config["preset"], config["model"], config["steps"]) == ("small", "plain", 1)
    assert (config["weight_decay"], config["focal"], config["erase_probability"]) == (0.01, 1.0, 0.5)
    with (out / "test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["lesion"] and 0 <= float(rows[0]["recall"]) <= 1
    assert "recall" in json.loads((out / "test.json").read_text())["overall"]


def test_a_value_out_of_its_range_is_refused(copy: Path):
    done = start(copy, "main.py", "--weight_decay", "-1")
    assert done.returncode == 2 and "--weight_decay -1.0: must be at least 0" in done.stderr
