"""What a training shows while it runs, and that the training goes on where it cannot be shown."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from tests.helpers import runs
from tests.helpers.processes import command, run_to_end
from utils import harmless, read_csv


def test_tensorboard_has_the_scalars_of_the_log_and_overlays(run):
    events = EventAccumulator(str(run / "tensorboard"), {"images": 0, "scalars": 0})
    events.Reload()
    log = read_csv(run / "log.csv")
    assert set(events.Tags()["scalars"]) == log[0].keys() - {"epoch"}
    for key in log[0].keys() - {"epoch"}:
        found = [(event.step, event.value) for event in events.Scalars(key)]
        assert found == [(int(row["epoch"]), pytest.approx(float(row[key]), rel=1e-5, nan_ok=True)) for row in log]
    (tag,) = events.Tags()["images"]
    images = events.Images(tag)
    assert [image.step for image in images] == [1, 2]
    assert (images[0].width, images[0].height) == (2 * 64, 48)


# ---------------------------------------------------------------- what cannot be written


PARTS = {"report.html", "test.png", "tensorboard"}


def check_warnings(printed: str, out: Path, part: str, count: int) -> None:
    """Each failure is one line that names the file; the run has its scores, and the other parts of its report."""
    warnings = [line for line in printed.splitlines() if "warning" in line]
    assert len(warnings) == count, printed
    for line in warnings:
        assert line.startswith(f"warning: {out / part}: could not be written (")
        assert line.endswith("); all else goes on")
    assert "Traceback" not in printed
    assert f"Everything is in {out}" in printed
    assert {"test.json", "test.csv", "last.pt", "best.pt", "predictions"} <= {path.name for path in out.iterdir()}
    for other in PARTS - {part}:
        assert (out / other).is_dir() == (other == "tensorboard")


@pytest.mark.slow
@pytest.mark.parametrize(("part", "count"), [("report.html", 3), ("test.png", 1), ("tensorboard", 1)])
def test_a_name_that_is_taken_is_a_warning(make_data, tmp_path, part, count):
    """The page is written after each of two epochs and after the test."""
    out, log = tmp_path / "run", tmp_path / "log"
    out.mkdir()
    if part == "tensorboard":
        (out / part).write_text("a file")
    else:
        (out / part).mkdir()
    assert run_to_end(command, runs.arguments(make_data(), out, "--epochs", "2"), output=log) == 0
    check_warnings(log.read_text(), out, part, count)


@pytest.mark.parametrize(
    ("part", "place", "count"),
    [
        ("report.html", "reporting.run_page.view", 3),
        ("report.html", "reporting.run_page.look_inside", 1),  # only after the test
        ("test.png", "reporting.figures._draw", 1),
        ("tensorboard", "reporting.run_report.overlays", 2),
    ],
)
def test_a_mistake_of_the_program_is_a_warning(make_data, tmp_path, tiny, monkeypatch, capsys, part, place, count):
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(place, fail)
    out = runs.run(make_data(), tmp_path / "run", "--epochs", "2")
    printed = capsys.readouterr().out
    check_warnings(printed, out, part, count)
    assert r"(division\nby zero)" in printed


@pytest.mark.parametrize("method", ["add_scalar", "add_image", "close"])
def test_curves_that_fail_later_are_a_warning(make_data, tmp_path, tiny, monkeypatch, capsys, method):
    def fail(*_: object, **__: object) -> None:
        raise OSError

    monkeypatch.setattr(SummaryWriter, method, fail)
    out = runs.run(make_data(), tmp_path / "run", "--epochs", "1")
    printed = capsys.readouterr().out
    check_warnings(printed, out, "tensorboard", 1)
    assert "(OSError)" in printed


def test_without_tensorboard_there_are_no_curves(make_data, tmp_path, tiny, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    out = runs.run(make_data(), tmp_path / "run", "--epochs", "1")
    check_warnings(capsys.readouterr().out, out, "tensorboard", 1)


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit])
def test_who_ends_the_program_is_heard(tmp_path, ending):
    with pytest.raises(ending), harmless(tmp_path):
        raise ending
