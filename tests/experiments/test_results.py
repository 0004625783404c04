"""Finished runs as rows of a table."""

from __future__ import annotations

import pytest

from experiments.results import read_result
from utils import InputError


def test_folds_join_subjects_and_average_repeated_ones(finished):
    joined = read_result("both", list(finished.values()))
    assert joined.values["liver", "DSC"] == pytest.approx({"1": 85, "2": 67.5, "3": 92.5})
    assert joined.runs == 2
    for hours, dice in joined.curves:
        assert (hours.tolist(), dice.tolist()) == ([0.5, 0.75], [50, 75])


def test_a_run_without_its_test_is_not_finished(finished):
    (finished["DAF"] / "test.csv").unlink()
    with pytest.raises(InputError, match=r"daf: not a finished run of main\.py"):
        read_result("both", list(finished.values()))
