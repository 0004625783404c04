"""benchmarks/gpu.sh and what it trains in a given time, without a GPU."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import within
from tests.helpers.runs import TINY, run_flags

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_paper_and_the_modern_recipe_are_trained_in_a_given_time(make_data, tmp_path, monkeypatch, tiny):
    """In this process, with the tiny network: three epochs of each."""
    data = make_data({"train": ["1"], "val": ["2"], "test": ["3", "4"]}, numbers=(1, 2, 3))
    monkeypatch.setattr(within, "TINY", TINY)
    monkeypatch.setattr(within, "train", lambda folder, flags, deadline: run_flags([*flags, "--out", str(folder)]))
    out, work = tmp_path / "out", tmp_path / "work"
    within.main([str(data), "--limit", "200", "--out", str(out), "--work", str(work), "--tiny"])
    table = (out / "table.md").read_text()
    assert "| paper |" in table and "| modern |" in table
    for preset in ("paper", "modern"):
        planned = json.loads((work / f"{preset}.json").read_text())
        assert int(planned[planned.index("--epochs") + 1]) == 3
        summary = json.loads((out / f"{preset}-test.json").read_text())
        assert (summary["epochs"], summary["subjects"]) == (3, 2)


def test_the_script_says_how_it_is_used():
    done = subprocess.run(["benchmarks/gpu.sh"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "usage: benchmarks/gpu.sh check | train DIR\n"
