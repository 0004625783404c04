"""Where a result comes from: commit, changes, command, processor, precision; and what a training says it does."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from config import Config
from data.description import Labels
from training.device import Machine
from training.environment import code_version, environment
from training.terminal import describe_choices, idle_flags


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout with one commit."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "t")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "t@example.org")
    (tmp_path / "code.py").write_text("1")
    for arguments in (["init", "-q"], ["add", "code.py"], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    return tmp_path


def test_code_version(checkout, tmp_path):
    head = (checkout / ".git" / "HEAD").read_text().split()[1]
    commit = (checkout / ".git" / head).read_text().strip()
    (checkout / "runs").mkdir()
    (checkout / "runs" / "log.csv").touch()  # a result is no change of the code
    assert code_version(checkout) == (commit, "no")
    (checkout / "mine.py").touch()  # a network of one's own is one
    assert code_version(checkout) == (commit, "yes")
    (checkout / "mine.py").unlink()
    (checkout / "code.py").write_text("2")
    assert code_version(checkout) == (commit, "yes")


def test_code_without_a_version(checkout, tmp_path, monkeypatch):
    """A copy of the code inside of another checkout must not get its commit."""
    (checkout / "copy").mkdir()
    assert code_version(checkout / "copy") == ("unknown", "unknown")
    monkeypatch.setenv("PATH", "/nowhere")
    assert code_version(checkout) == ("unknown", "unknown")


def test_environment(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/main.py", "--data", "my data"])
    machine = Machine(torch.device("cpu"), torch.bfloat16, workers=0)
    found = environment(machine)
    assert found["command"] == "main.py --data 'my data'"
    assert found["precision"] == "bfloat16"
    assert found["PyTorch"] == torch.__version__
    assert found["CPU cores"] == str(os.cpu_count())
    assert all(isinstance(value, str) and value for value in found.values())
    assert found["processes"] == "1"
    assert "precision" not in environment()


def test_choices_that_are_wrong_for_some_data_are_named():
    paper, labels = Config(), Labels.indexed(("background", "liver"), (0, 1))
    flipped = "training slices are flipped, which exchanges left and right (--flip_probability 0.5)"
    assert describe_choices(paper, labels) == flipped
    both = describe_choices(paper.change(largest_component=True), labels)
    assert both.endswith("; each class keeps only its largest piece (--largest_component)")
    assert describe_choices(paper.change(flip_probability=0.0), labels) == ""


def test_classes_that_flips_exchange_or_could_are_named():
    names = ("background", "Left eye", "liver", "right lung", "Liver", "left lung", "right eye", "right hand")
    labels, paper = Labels.indexed(names, tuple(range(8))), Config()
    assert describe_choices(paper, labels).endswith('(--mirror "right eye=Left eye, right lung=left lung" does)')
    mirrored = replace(labels, mirror=(("right lung", "left lung"), ("liver", "Liver")))
    assert describe_choices(paper, mirrored).endswith(
        ", and with them the classes right lung and left lung, liver and Liver"
    )
    still = paper.change(flip_probability=0.0, mirror="right lung=left lung")
    assert describe_choices(still, labels) == ""
    assert idle_flags(still) == ["--mirror without effect: only with flips"]
