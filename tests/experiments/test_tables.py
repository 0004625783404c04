"""The numbers of a table by hand, and the paper's own."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from experiments.results import MEAN, Result, read_result
from experiments.rows import ROWS
from experiments.tables import PAPER, Table
from tests.helpers.results import scores_of
from utils import InputError, OptionError


def test_table_by_hand(results):
    table = Table("I", results)
    assert [metric.title for metric in table.metrics] == ["DSC %", "VS %", "MSD voxels"]
    rows = {(row["row"], row["metric"]): row for row in table.rows()}
    # Means over the two classes: 85, 65, 90 and 75, 55, 90.
    assert rows["MS-Dual-Guided", "DSC"]["mean"] == pytest.approx(80)
    assert rows["MS-Dual-Guided", "DSC"]["std"] == pytest.approx(np.sqrt((25 + 225 + 100) / 2))
    assert rows["DAF", "DSC"]["mean"] == pytest.approx(220 / 3)
    assert rows["DAF", "DSC"]["paper_mean"] == 82.48
    assert rows["DAF", "DSC"]["difference"] == pytest.approx(220 / 3 - 82.48)
    assert rows["DAF", "DSC"]["paired_difference"] == pytest.approx(-20 / 3)
    assert rows["DAF", "DSC"]["pairs"] == 3
    assert rows["DAF", "MSD"]["mean"] == pytest.approx(2 - 2.2 / 3)


@pytest.mark.parametrize(
    ("names", "printed"),
    [
        (("necrotic and non-enhancing", "edema", "enhancing"), ("TC", "oedema", "enhancing")),  # prepare.py brats
        (("edema", "non-enhancing tumor", "enhancing tumour"), ("oedema", "TC", "enhancing")),  # the Decathlon
    ],
)
def test_classes_of_brats_are_those_of_the_paper(results, names, printed):
    value = {(name, key): {"1": 50.0} for name in (*names, MEAN) for key in ("dsc", "vs", "msd")}
    result = replace(results[0], classes=list(names), values=value, by_seed={0: value})
    table = Table("VII", [result])
    for name, theirs in zip(names, printed, strict=True):
        wanted = PAPER["tables"]["VII"]["rows"]["MS-Dual-Guided"][theirs]["DSC"]
        assert table.printed("MS-Dual-Guided", (name, "dsc")) == tuple(wanted)
    enhancing = next(name for name in names if name.startswith("enhancing"))
    assert table.mark("MS-Dual-Guided", (enhancing, "dsc")) == "1"
    assert [table.mark("MS-Dual-Guided", (name, "dsc")) for name in names].count("1") == 1
    assert "2285" in table.footnotes()[0][2]
    region = Table("VII", [replace(result, classes=list(names[:2]), regions=[names[2]])])
    assert region.printed("MS-Dual-Guided", (names[2], "dsc")) is None
    assert [label for label, key in region.columns if key == "dsc"] == [*names, MEAN]


# ---------------------------------------------------------------- rows, seeds and groups


@pytest.fixture
def seeded(make_run) -> list[Result]:
    """Two rows of two seeds each, and one of other subjects; subjects 1 and 2 are of one patient."""
    dsc = {
        "A": {0: (0.9, 0.8, 0.5, 0.6), 1: (0.7, 0.6, 0.9, 0.8)},
        "B": {0: (0.5, 0.3, 0.2, 0.6), 1: (0.3, 0.1, 0.4, 0.4)},
    }
    results = []
    for name, of_seeds in dsc.items():
        folders = []
        for seed, values in of_seeds.items():
            groups = ("p", "p", "q", "r")
            scores = zip("1234", values, groups, strict=True)
            rows = [scores_of(subject, "liver", value, group=group) for subject, value, group in scores]
            folders.append(make_run(f"{name}{seed}", rows, seed))
        results.append(read_result(name, folders))
    return [*results, read_result("C", [make_run("C", [scores_of("9", "liver", 0.5), scores_of("8", "liver", 0.7)])])]


def test_deviations_over_subjects_and_over_seeds(seeded):
    table = Table("Comparison", seeded)
    numbers = table.statistics(table.results[0], (MEAN, "dsc"))
    subjects = [80, 70, 70, 70]  # means over the two seeds
    assert numbers == pytest.approx((72.5, np.std(subjects, ddof=1), 4, np.std([70, 75], ddof=1)))
    assert np.isnan(table.statistics(table.results[2], (MEAN, "dsc")).seed_std)


def test_tests_pair_groups_and_never_a_row_with_itself(seeded):
    more = [replace(seeded[1], name="B too")]
    table = Table("Comparison", [*seeded, *more])
    # Of A: 80, 70, 70, 70; of B: 40, 20, 30, 50. Patient p has subjects 1 and 2.
    of_groups = [(40 + 20 - 80 - 70) / 2, 30 - 70, 50 - 70]
    p = stats.wilcoxon(of_groups).pvalue
    for column in table.columns:
        assert table.comparisons[column].keys() == {"B", "B too"}
    test = table.comparisons["liver", "dsc"]["B"]
    assert (test.pairs, test.subjects) == (3, 4)
    assert (test.p, test.p_holm) == pytest.approx((p, min(1, 2 * p)))  # two rows are tested, not three
    assert test.difference == pytest.approx(35 - 72.5)


def test_groups_of_one_row_hold_for_all(seeded):
    """Predictions that were only scored know of no patients."""
    without = replace(seeded[1], groups={})
    table = Table("Comparison", [without, seeded[0]])
    assert table.comparisons[MEAN, "dsc"]["A"].pairs == 3
    with pytest.raises(InputError, match="subject 1: is of group 'p' in one place, 'x' in another"):
        Table("Comparison", [seeded[0], replace(seeded[1], groups={"1": "x"})])


def test_the_note_says_where_rows_have_other_subjects(seeded, make_run):
    told = "Rows have different test subjects"
    assert told not in Table("Comparison", seeded[:2]).note
    assert told in Table("Comparison", seeded).note
    fewer = read_result("fewer", [make_run("fewer", [scores_of(name, "liver", 0.9) for name in "123"])])
    table = Table("Comparison", [seeded[0], fewer])
    assert table.disjoint == []
    assert told in table.note


def test_rows_stand_as_they_are_given_and_against_names_the_reference(seeded):
    table = Table("Comparison", seeded, "B")
    assert [result.name for result in table.results] == ["A", "B", "C"]
    assert table.reference.name == "B"
    assert table.disjoint == ["C"]
    assert table.comparisons[MEAN, "dsc"]["A"].difference == pytest.approx(72.5 - 35)
    assert Table("Comparison", seeded).reference.name == "A"
    assert Table("I", seeded).reference.name == "C"  # no row is called as the paper's network
    with pytest.raises(OptionError, match="against D: no row has this name; there are A, B, C"):
        Table("Comparison", seeded, "D")


def test_rows_that_cannot_share_a_table(seeded):
    first, second, _ = seeded
    for other in (replace(second, classes=["spleen"]), replace(second, regions=["whole"])):
        with pytest.raises(InputError, match="B: has other classes or regions than A"):
            Table("Comparison", [first, other])
    with pytest.raises(InputError, match="two of its rows have the same name"):
        Table("Comparison", [first, first])
    wider = replace(second, tolerances={"liver": 2.0})
    assert Table("Comparison", [first, wider]).metrics[2].key == "nsd"  # of one voxel in both
    with pytest.raises(InputError, match="B: its NSD has other tolerances than that of A"):
        Table("Comparison", [replace(first, in_mm=True), replace(wider, in_mm=True)])


# ---------------------------------------------------------------- units and missing structures


@pytest.fixture
def missing(make_run) -> list[Result]:
    """Liver and spleen in mm, of two voxels a mm; the spleen of subject 2 is missed by B, and spurious there once."""
    results = []
    for name in "AB":
        rows = []
        for subject, label in itertools.product("12", ("liver", "spleen")):
            lost = name == "B" and (subject, label) == ("2", "spleen")
            row = scores_of(
                subject, label, 0.0 if lost else 0.5, missed=lost, spurious=name == "B" and label == "liver"
            )
            if lost:
                row |= {"msd": math.nan, "msd_worst": 80.0}
            halves = {f"{key}_mm": row[key] / 2 for key in row if key.startswith(("msd", "hd95"))}
            rows.append(row | halves | {"nsd_mm": row["nsd"]})
        results.append(read_result(name, [make_run(name, rows, 0, tolerances_mm={"liver": 1.0, "spleen": 3.0})]))
    return results


def test_both_policies_stand_side_by_side_where_something_was_missed(missing):
    table = Table("Comparison", missing)
    titles = ["DSC %", "VS %", "NSD %", "MSD mm", "HD95 mm", "MSD worst case mm", "HD95 worst case mm"]
    assert [metric.title for metric in table.metrics] == titles
    found, worst = (table.statistics(table.results[1], ("spleen", key)) for key in ("msd_mm", "msd_worst_mm"))
    assert (found.mean, found.n) == (0.75, 1)
    assert (worst.mean, worst.n) == ((0.75 + 40) / 2, 2)
    assert table.comparisons["spleen", "msd_mm"]["B"].pairs == 1
    assert table.comparisons["spleen", "msd_worst_mm"]["B"].pairs == 2
    assert [table.counts(table.results[1], label) for label in ("liver", "spleen", MEAN)] == [(0, 2), (1, 0), (1, 2)]
    assert table.best["spleen", "msd_worst_mm"] == {"A"}
    assert 'in the columns "worst case" means with the diagonal' in table.note
    assert "NSD with a tolerance of 1 mm (spleen: 3 mm)" in table.note
    rows = {(row["row"], row["class"], row["metric"], row["unit"]): row for row in table.rows()}
    assert [rows["B", "spleen", "MSD", "mm"][key] for key in ("n", "missed", "spurious")] == [1, 1, 0]


def test_nothing_missed_is_said(missing):
    table = Table("Comparison", missing[:1])
    assert [metric.title for metric in table.metrics] == ["DSC %", "VS %", "NSD %", "MSD mm", "HD95 mm"]
    assert "No structure was missed or spurious" in table.note


def test_the_papers_distances_are_in_voxels_and_ours_in_mm_beside(missing):
    table = Table("V", [replace(missing[0], name="DAF"), replace(missing[1], name="MS-Dual-Guided")])
    titles = ["VS %", "MSD voxels", "MSD mm", "MSD worst case voxels", "MSD worst case mm"]
    assert [metric.title for metric in table.metrics] == titles
    printed = PAPER["tables"]["V"]["rows"]["DAF"]["liver"]["MSD"]
    assert table.printed("DAF", ("liver", "msd")) == tuple(printed)
    for key in ("msd_mm", "msd_worst", "msd_worst_mm"):
        assert table.printed("DAF", ("liver", key)) is None
    one_in_voxels = Table("V", [replace(missing[0], in_mm=False), missing[1]])
    assert [metric.title for metric in one_in_voxels.metrics] == ["VS %", "MSD voxels", "MSD worst case voxels"]


def test_single_images_are_in_pixels(seeded):
    table = Table("Comparison", [replace(result, per_image=True) for result in seeded])
    assert [metric.title for metric in table.metrics[3:]] == ["MSD pixels", "HD95 pixels"]
    assert "test images in 2D" in table.note and "a tolerance of one pixel" in table.note


# ---------------------------------------------------------------- the paper


def test_paper_tables_are_whole():
    """Means over classes in the paper's own tables, within what printing two decimals can hide; its slips excepted."""
    slips = {(note["row"], note["class"], note["metric"]) for note in PAPER["footnotes"] if note.get("class")}
    for name, table in PAPER["tables"].items():
        for row, classes in table["rows"].items():
            assert row in ROWS
            for metric in classes["mean"]:
                parts = [values[metric][0] for label, values in classes.items() if label != "mean"]
                if parts and (row, "mean", metric) not in slips:
                    assert np.mean(parts) == pytest.approx(classes["mean"][metric][0], abs=0.011), (name, row, metric)
