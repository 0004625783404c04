"""The numbers of a table by hand, and the paper's own."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.results import MEAN
from experiments.rows import ROWS
from experiments.tables import PAPER, Table


def test_table_by_hand(results):
    rows = {(row["row"], row["metric"]): row for row in Table("I", results).rows()}
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
    value = {(name, "DSC"): {"1": 50.0} for name in (*names, MEAN)}
    result = results[0]._replace(classes=list(names), values=value)
    table = Table("VII", [result])
    for name, theirs in zip(names, printed, strict=True):
        wanted = PAPER["tables"]["VII"]["rows"]["MS-Dual-Guided"][theirs]["DSC"]
        assert table.printed("MS-Dual-Guided", (name, "DSC")) == tuple(wanted)


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
