"""Finished runs as rows of a table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.given_rows import parse_rows
from experiments.results import MEAN, read_result
from experiments.tables import Table
from tests.helpers.errors import assert_one_line
from tests.helpers.results import scores_of
from utils import InputError

PATHS = st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join), unique=True, max_size=5)


# ---------------------------------------------------------------- the grammar of rows


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["runs/a", "runs/b"], [("a", ["runs/a"]), ("b", ["runs/b"])]),
        (["x/a", "y/a", "y/b"], [("x/a", ["x/a"]), ("y/a", ["y/a"]), ("b", ["y/b"])]),
        (["x/a,x/b", "x/c"], [("a", ["x/a", "x/b"]), ("c", ["x/c"])]),
        (["Our network=x/a, x/b", "nnU-Net=y/a"], [("Our network", ["x/a", "x/b"]), ("nnU-Net", ["y/a"])]),
        (["a=x/b", "x/a"], [("a", ["x/b"]), ("x/a", ["x/a"])]),  # the user's name comes first
        (["lr=0.1,wd=1"], [("lr=0.1,wd=1", ["lr=0.1,wd=1"])]),  # such a folder is there
        (["A=B=lr=0.1,wd=1"], [("A=B", ["lr=0.1,wd=1"])]),
        (["sub/lr=1,sub/lr=2"], [("lr=1", ["sub/lr=1", "sub/lr=2"])]),
    ],
)
def test_rows_by_hand(tmp_path, monkeypatch, texts, expected):
    monkeypatch.chdir(tmp_path)
    for folder in ("lr=0.1,wd=1", "sub/lr=1", "sub/lr=2"):
        (tmp_path / folder).mkdir(parents=True)
    rows = parse_rows(texts)
    assert [(row.name, [str(folder) for folder in row.folders]) for row in rows] == expected


@given(PATHS)
def test_names_of_rows_never_collide(paths):
    rows = parse_rows(paths)
    assert len({row.name for row in rows}) == len(paths)
    for row, path in zip(rows, paths, strict=True):
        assert str(Path(path).resolve()).endswith(f"/{row.name}")
        shorter = row.name.partition("/")[2]
        ends = [str(Path(other).resolve()) for other in paths if other != path]
        assert not shorter or any(end.endswith(f"/{shorter}") for end in ends), "a shorter end would do"


def test_folders_of_many_folds():
    """Together they are longer than any path may be."""
    folders = [f"reproduced/runs/ms-dual-guided/dataset-fold-{k}-of-100-seed-0" for k in range(100)]
    (row,) = parse_rows([f"Mine={','.join(folders)}"])
    assert (row.name, [str(folder) for folder in row.folders]) == ("Mine", folders)


def test_the_folder_itself_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [row.name for row in parse_rows([".", "../b"])] == [tmp_path.name, "b"]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["runs/a", "runs/a"], "runs/a: is given twice"),
        (["runs/a,runs/b", "runs/a,runs/c"], "runs/a: is given twice"),
        (["A=runs/a,./runs/../runs/a"], "runs/../runs/a: is given twice"),
        (["A=runs/a", "A=runs/b"], "A: two rows have this name"),
        (["A="], "A=: must be"),
        (["=runs/a"], "=runs/a: must be"),
        (["A=runs/a,,runs/b"], "must be"),
        ([""], "must be"),
    ],
)
def test_rows_that_are_refused(texts, expected):
    with pytest.raises(InputError) as caught:
        parse_rows(texts)
    assert_one_line(caught.value, expected)


# ---------------------------------------------------------------- folds, seeds, groups, regions


def test_folds_join_subjects_and_average_repeated_ones(finished):
    joined = read_result("both", list(finished.values()))
    assert joined.values["liver", "dsc"] == pytest.approx({"1": 85, "2": 67.5, "3": 92.5})
    assert (joined.runs, joined.folds, joined.seeds) == (2, 2, [0])
    for hours, dice in joined.curves:
        assert (hours.tolist(), dice.tolist()) == ([0.5, 0.75], [50, 75])


def test_seeds_that_all_test_every_subject_are_apart(make_run):
    """Seed 0 and seed 7, each on two folds; liver and spleen of each subject."""
    dsc = {(0, "1"): (0.9, 0.7), (0, "2"): (0.6, 0.4), (7, "1"): (0.5, 0.1), (7, "2"): (0.8, 0.8)}
    folders = []
    for (seed, subject), (liver, spleen) in dsc.items():
        rows = [scores_of(subject, "liver", liver), scores_of(subject, "spleen", spleen)]
        folders.append(make_run(f"{seed}-{subject}", rows, seed))
    result = read_result("a", folders)
    assert (result.runs, result.folds, result.seeds) == (4, 2, [0, 7])
    assert result.by_seed[0][MEAN, "dsc"] == pytest.approx({"1": 80, "2": 50})
    assert result.by_seed[7][MEAN, "dsc"] == pytest.approx({"1": 30, "2": 80})
    assert result.values[MEAN, "dsc"] == pytest.approx({"1": 55, "2": 65})
    assert result.values["liver", "dsc"] == pytest.approx({"1": 70, "2": 70})
    # Seed 7 tests only one of the subjects: a mean over seeds would be another for each subject.
    part = read_result("a", folders[:3])
    assert (part.seeds, part.left_out, part.runs, part.folds) == ([0], [7], 2, 2)
    assert part.values[MEAN, "dsc"] == pytest.approx({"1": 80, "2": 50})
    assert "a is without seed 7, of which a test subject is missing" in Table("Comparison", [part]).note
    # No seed tests all of them.
    mixed = read_result("a", [folders[0], folders[3]])
    assert (mixed.seeds, mixed.left_out, mixed.runs, mixed.folds) == ([], [], 2, 2)
    assert mixed.values[MEAN, "dsc"] == pytest.approx({"1": 80, "2": 80})


def test_folds_are_counted_once_whatever_runs_are_missing(make_run):
    """Two folds with two seeds each, and a third fold of which each seed lacks another subject's run."""
    runs = [(0, "1"), (1, "1"), (0, "2"), (1, "2"), (0, "3"), (1, "4")]
    folders = [make_run(f"{seed}-{subject}", [scores_of(subject, "liver", 0.8)], seed) for seed, subject in runs]
    result = read_result("a", folders)
    assert (result.runs, result.folds, list(result.by_seed)) == (6, 4, [None])


def test_a_structure_that_one_seed_misses(make_run):
    """The mean over those found is that of the other seed; the worst case is the mean of both."""
    lost = scores_of("1", "liver", 0.0, missed=True, msd="", hd95="", hd95_pooled="", msd_worst=60, hd95_worst=60)
    folders = [make_run("a", [scores_of("1", "liver", 0.8)], 0), make_run("b", [lost], 1)]
    result = read_result("a", folders)
    assert result.values["liver", "dsc"]["1"] == pytest.approx(40)
    assert result.values["liver", "msd"]["1"] == pytest.approx(1.2)
    assert result.values["liver", "msd_worst"]["1"] == pytest.approx((1.2 + 60) / 2)
    assert (result.missed, result.spurious, result.missing) == ({"liver": 1}, {"liver": 0}, True)


def test_regions_stand_beside_the_classes_and_not_in_their_mean(make_run):
    scores = {"left": 0.8, "right": 0.6, "kidneys": 0.1}
    rows = [scores_of("1", label, dsc, region=label == "kidneys") for label, dsc in scores.items()]
    result = read_result("a", [make_run("a", rows, 0)])
    assert (result.classes, result.regions) == (["left", "right"], ["kidneys"])
    assert result.values["kidneys", "dsc"] == pytest.approx({"1": 10})
    assert result.values[MEAN, "dsc"] == pytest.approx({"1": 70})


def test_groups_are_those_of_any_run_and_may_not_differ(make_run):
    def row(group: str) -> list[dict]:
        return [scores_of("1", "liver", 0.5, group=group)]

    named, without = make_run("a", row("patient 1"), 0), make_run("b", [scores_of("1", "liver", 0.5)], 1)
    assert read_result("a", [without, named]).groups == {"1": "patient 1"}
    assert read_result("a", [make_run("c", row(""), 0)]).groups == {}
    alone = make_run("e", row("1"), 0)  # which stands for no group, too
    assert read_result("a", [alone, named]).groups == read_result("a", [named, alone]).groups == {"1": "patient 1"}
    with pytest.raises(InputError, match="subject 1: is of group 'patient 1' in one place, 'patient 2' in another"):
        read_result("a", [named, make_run("d", row("patient 2"), 0)])


@pytest.mark.parametrize(("last", "in_mm"), [({}, True), ({"msd_worst_mm": "", "msd_mm": ""}, False)])
def test_in_mm_where_all_subjects_have_a_spacing(make_run, last, in_mm):
    mm = dict.fromkeys(("nsd_mm", "msd_mm", "hd95_mm", "hd95_pooled_mm", "msd_worst_mm", "hd95_worst_mm"), 0.5)
    missed = mm | {"msd_mm": "", "msd": "", "missed": True}
    empty = mm | {"msd_mm": "", "msd_worst_mm": "", "msd": "", "msd_worst": "", "dsc": ""}
    kinds = [("1", mm), ("2", missed), ("3", empty), ("4", mm | last)]
    with_mm = make_run("a", [scores_of(subject, "liver", 0.5, **values) for subject, values in kinds], 0)
    assert read_result("a", [with_mm]).in_mm == in_mm
    without = make_run("b", [scores_of("1", "liver", 0.5)], 0)
    assert not read_result("a", [with_mm, without]).in_mm


# ---------------------------------------------------------------- files


def test_predictions_that_were_only_scored_have_no_cost(make_run):
    evaluated = make_run("a", [scores_of("1", "liver", 0.5)])
    result = read_result("a", [evaluated])
    assert [result.parameters, result.epochs, result.seconds, result.memory] == [None] * 4
    assert (result.curves, result.seeds) == ([], [])
    trained = make_run("b", [scores_of("2", "liver", 0.5)], 0)
    assert read_result("a", [evaluated, trained]).parameters is None  # not of all runs
    (evaluated / "evaluation.json").unlink()
    with pytest.raises(InputError, match=r"it has no log\.csv"):
        read_result("a", [evaluated])


def test_a_run_without_its_test_is_not_finished(finished):
    (finished["DAF"] / "test.csv").unlink()
    with pytest.raises(InputError, match=r"daf: not a finished run of main\.py"):
        read_result("both", list(finished.values()))


def test_runs_of_one_row_are_alike(make_run):
    first = make_run("a", [scores_of("1", "liver", 0.5)], 0, tolerances_mm={"liver": 1.0})
    other = make_run("b", [scores_of("1", "spleen", 0.5)], 0, tolerances_mm={"liver": 1.0})
    wider = make_run("c", [scores_of("1", "liver", 0.5)], 0, tolerances_mm={"liver": 2.0})
    larger = make_run("d", [scores_of("1", "liver", 0.5)], 0, tolerances_mm={"liver": 1.0}, parameters=7)
    with pytest.raises(InputError, match=r"d: is of another network than .*a; give each network its own row"):
        read_result("row", [first, larger])
    with pytest.raises(InputError, match=r"b: has other classes than .*a; they cannot be one row"):
        read_result("row", [first, other])
    with pytest.raises(InputError, match=r"c: its NSD has other tolerances than that of .*a"):
        read_result("row", [first, wider])


@pytest.mark.parametrize("change", ["twice", "not all classes", "without NSD"])
def test_scores_that_are_not_whole_are_refused(make_run, change):
    """A run of an earlier version has another HD95, and no NSD: such columns must not stand beside each other."""
    rows = [scores_of(subject, label, 0.5) for subject in "12" for label in ("liver", "spleen")]
    if change == "twice":
        rows.append(rows[-1])
    elif change == "not all classes":
        rows.pop()
    else:
        rows = [{key: value for key, value in row.items() if key != "nsd"} for row in rows]
    expected = "has no column nsd" if change == "without NSD" else "must have one row for each subject and class"
    with pytest.raises(InputError, match=rf"test\.csv: {expected}"):
        read_result("a", [make_run("a", rows, 0)])


def test_runs_of_other_settings_and_repeated_ones_are_no_row(make_run):
    """Folds and seeds make a row: other data, split files, seeds, weights to start from, devices."""
    rows = [scores_of("1", "liver", 0.5)]
    first = make_run("a", rows, 0)
    for name, flags in (("b", {"epochs": 7}), ("c", {"lr": 0.1, "flip_probability": 0.0})):
        with pytest.raises(InputError, match=rf"{name}: was trained otherwise than .*a \(") as caught:
            read_result("row", [first, make_run(name, rows, 1, flags)])
        assert all(flag in str(caught.value) for flag in flags)
    free = {"split_file": Path("s.json"), "init": Path("w.pt"), "device": "cuda:1", "workers": 3, "recompute": True}
    assert read_result("row", [first, make_run("d", rows, 0, free)]).runs == 2
    with pytest.raises(InputError, match=r"e: repeats .*a, with its seed"):
        read_result("row", [first, make_run("e", rows, 0, {"data": Path("a").absolute()})])
    assert read_result("row", [first, make_run("f", rows, 1, {"data": Path("a")})]).seeds == [0, 1]
    other = [scores_of("2", "liver", 0.5)]
    assert read_result("row", [first, make_run("g", other, 0, {"data": Path("a")})]).folds == 2


def test_people_of_one_name_are_told_apart(make_run):
    rows = [scores_of(subject, "liver", 0.5) for subject in ("1", "2")]
    slices = {"a": "y", "b": "y", "c": "z"}
    runs = [make_run(name, rows, k, slices={"1": "x", "2": slices[name]}) for k, name in enumerate(slices)]
    unknown = make_run("d", rows, 3)
    assert read_result("row", [*runs[:2], unknown]).slices == {"1": "x", "2": "y"}
    with pytest.raises(InputError, match=r"c: its subject 2 has other slices than that of .*a; give different people"):
        read_result("row", [runs[0], unknown, runs[2]])
    results = [read_result(str(k), [run]) for k, run in enumerate(runs)]
    assert "Subjects 2 have other slices in some rows than in others" in Table("t", results).note
    assert "other slices" not in Table("t", results[:2]).note


def test_a_table_says_which_commits_its_runs_are_of(make_run):
    rows = [scores_of("1", "liver", 0.5)]
    made_by = [
        {"commit": letter * 40, "changed since": changed}
        for letter, changed in (("a", "no"), ("a", "yes"), ("b", "no"))
    ]
    runs = [make_run(f"r{k}", rows, k, environment=each) for k, each in enumerate(made_by)]
    runs += [make_run("scored", rows, environment=made_by[2]), make_run("old", rows, 5)]
    results = [read_result(run.name, [run]) for run in runs]
    assert "Commits of the code: aaaaaaaaa, aaaaaaaaa with changes, bbbbbbbbb" in Table("t", results).note
    assert "Commits" not in Table("t", [results[0], *results[3:]]).note  # evaluate.py's is not that of a training


@pytest.mark.parametrize(("key", "value"), [("dsc", 86.27), ("vs", -0.1), ("hd95_worst", -5.0), ("nsd", 1.01)])
def test_scores_that_no_mask_has_are_a_line(make_run, key, value):
    folder = make_run("a", [scores_of("1", "liver", 0.5, **{key: value})], 0)
    with pytest.raises(InputError) as caught:
        read_result("a", [folder])
    assert_one_line(caught.value, f"test.csv: {key} cannot be {value}; it was changed")


@pytest.mark.parametrize("value", [[], {"liver": "1"}, {"liver": True}])
def test_damaged_tolerances_are_a_line(make_run, value):
    folder = make_run("a", [scores_of("1", "liver", 0.5)], 0)
    summary = json.loads((folder / "test.json").read_text())
    (folder / "test.json").write_text(json.dumps(summary | {"tolerances_mm": value}))
    with pytest.raises(InputError) as caught:
        read_result("a", [folder])
    assert_one_line(caught.value, "test.json: tolerances_mm must be numbers")
