"""Finished runs with scores that can be added up by hand; networks without weights."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from config import Config
from experiments.results import Result, read_result
from experiments.rows import slug
from tests.helpers.results import scores_of

DICE = {
    "MS-Dual-Guided": {"1": (0.90, 0.80), "2": (0.70, 0.60), "3": (0.95, 0.85)},
    "DAF": {"1": (0.80, 0.70), "2": (0.65, 0.45), "3": (0.90, 0.90)},
}


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Make a run folder: what main.py writes with a seed, what evaluate.py writes without. Each has data of its own."""

    def make(
        name: str, rows: list[dict[str, object]], seed: int | None = None, flags: dict | None = None, **summary: object
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        with (folder / "test.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        cost = dict.fromkeys(("parameters", "epochs", "seconds", "memory_gib"))
        if seed is None:
            (folder / "evaluation.json").write_text("{}")
        else:
            cost = {"parameters": 1234567, "epochs": 4, "seconds": 3725.0, "memory_gib": 1.26}
            config = Config.of(**{"seed": seed, "data": Path(name)} | (flags or {}))
            (folder / "config.json").write_text(json.dumps(config.to_dict()))
            (folder / "log.csv").write_text("epoch,val_dsc,seconds\n1,0.5,1800\n2,0.75,900\n")
        (folder / "test.json").write_text(json.dumps(cost | summary))
        return folder

    return make


@pytest.fixture
def finished(make_run: Callable[..., Path]) -> dict[str, Path]:
    """Run folders with the scores above."""
    folders = {}
    for name, subjects in DICE.items():
        rows = [
            scores_of(subject, label, dsc)
            for subject, pair in subjects.items()
            for label, dsc in zip(("liver", "spleen"), pair, strict=True)
        ]
        folders[name] = make_run(slug(name), rows, seed=0)
    return folders


@pytest.fixture
def results(finished: dict[str, Path]) -> list[Result]:
    """The results of these runs, the proposed network's first."""
    return [read_result(name, [folder]) for name, folder in finished.items()]


@pytest.fixture
def no_initialization(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks whose parts are looked at need no weights; to draw them takes most of the time."""
    for name in ("kaiming_normal_", "kaiming_uniform_", "xavier_normal_", "normal_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)
