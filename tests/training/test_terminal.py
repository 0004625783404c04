"""What a training says: a summary in 80 columns, a line for each epoch, and a bar in a terminal alone."""

from __future__ import annotations

import os
import pty
import re
import termios
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.description import Labels
from tests.helpers.processes import command, ended, run_to_end, start
from tests.helpers.runs import arguments
from training.epoch import Epoch
from training.run import Progress
from training.terminal import describe_data, epoch_line, line
from utils import duration


def test_duration():
    assert [duration(s) for s in (0, 59.4, 59.6, 3599, 3600, 90000)] == [
        "0 s", "59 s", "1 min 00 s", "59 min 59 s", "1 h 00 min", "25 h 00 min",
    ]  # fmt: skip


@given(st.lists(st.text("abc xyz-", min_size=1, max_size=60), min_size=1, max_size=40), st.text("abc/", min_size=1))
def test_the_summary_fits_80_columns_and_names_everything(names, path):
    labels = Labels.indexed(("background", *names), tuple(range(len(names) + 1)))
    slices = [SimpleNamespace(subject=subject) for subject in ("1", "2", "2")]
    facts = {"labels": labels, "channels": 2, "channel_names": ("t1", "flair"), "size": (128, 96)}
    data = SimpleNamespace(**facts, splits={"train": slices})
    rows = describe_data(data) | {"network": "unet", "results": "runs/001", "path": path}
    text = "\n".join(line(title, row) for title, row in rows.items())
    assert max(map(len, text.splitlines())) <= 80
    words = text.split()
    for word in " ".join(["train 2 subjects, 3 slices", "96 x 128", "runs/001", "(t1, flair),", *names]).split():
        assert any(word in there for there in words)


def test_the_time_left_follows_from_the_last_epochs():
    log = [
        {"epoch": k, "total": 12.345, "val_dsc": 0.5, "lr": 1e-3, "seconds": s} for k, s in enumerate([900, 60, 60], 1)
    ]
    assert epoch_line(Progress(Epoch(3), 0.75, log[1:]), 13) == (
        "epoch  3/13  loss 12.345  val DSC 50.00 (best 75.00)  lr 1.0e-03  1 min 00 s, 10 min 00 s left"
    )
    assert epoch_line(Progress(Epoch(3), 0.75, log), 3).endswith("1 min 00 s")
    unscored = [log[0] | {"val_dsc": float("nan")}]
    assert "val DSC   nan  lr" in epoch_line(Progress(Epoch(1), log=unscored), 2)


@pytest.mark.slow
def test_no_noise_where_the_output_is_no_terminal(make_data, tmp_path):
    flags = arguments(make_data(), tmp_path / "run", "--epochs", "2")
    assert run_to_end(command, flags, output=tmp_path / "out") == 0
    text = (tmp_path / "out").read_text()
    assert "\r" not in text and "\x1b" not in text
    assert "%|" not in text
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80 + len(str(tmp_path))
    assert sum(line.startswith("epoch ") for line in lines) == 2
    for title in ("data", "classes", "network", "device", "memory", "results"):
        assert sum(line.startswith(title) for line in lines) == 1
    assert any(line.startswith("mean ") for line in lines)


@pytest.mark.slow
def test_a_bar_with_loss_rate_and_time_left_in_a_terminal(make_data, tmp_path):
    terminal, slave = pty.openpty()
    termios.tcsetwinsize(slave, (40, 120))
    shown: list[bytes] = []

    def read() -> None:
        try:
            while part := os.read(terminal, 4096):
                shown.append(part)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    data = make_data(numbers=tuple(range(1, 13)))
    slow = ["--model", "ms_dual_guided", "--backbone", "resnet18", "--steps", "1", "--no_guidance"]  # the bar is drawn
    flags = arguments(data, tmp_path / "run", "--epochs", "1", *slow)  # ten times a second
    process = start(command, flags, output=Path(os.ttyname(slave)))
    code = ended(process)
    os.close(slave)
    reader.join(5)
    text = b"".join(shown).decode()
    assert code == 0, text
    assert re.search(r"epoch 1/1: +\d+%\|.*\d/6 \[\d\d:\d\d<\d\d:\d\d.*loss \d+\.\d{3}, lr 1\.0e-03\]", text), text
