"""Names of channels, from patterns and in names of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.channels import check_order, pattern_names
from utils import InputError

BRATS = ("flair", "t1", "t1ce", "t2")


@pytest.mark.parametrize(("patterns", "names"), [
    (["image_{subject}.nii.gz"], ()),
    (["{subject}/{subject}_flair.nii.gz", "{subject}/{subject}_t1.nii.gz"], ("flair", "t1")),
    (["FLAIR/{subject}.nii", "T1/{subject}.nii"], ("flair", "t1")),
    (["{subject}_0001.nii.gz", "{subject}_0000.nii.gz"], ("0001", "0000")),
    (["scan_{subject}_t1.nii.gz", "scan_{subject}_t1_gd.nii.gz"], ("scan_t1", "scan_t1_gd")),
    (["{subject}.nii.gz", "{subject}_b.nii.gz"], ()),
    (["{subject}_a.nii.gz", "{subject}-a.nii.gz"], ()),
])  # fmt: skip
def test_names_are_the_words_that_tell_patterns_apart(patterns, names):
    patterns = [pattern.replace("{subject}/{subject}", "{subject}/scan") for pattern in patterns]
    assert pattern_names(patterns) == names


RIGHT = [
    (BRATS, ["p1_flair.nii.gz", "p1_t1.nii.gz", "p1_t1ce.nii.gz", "p1_t2.nii.gz"]),
    (BRATS, ["/d/t1_flair/0001/flair.nii", "/d/t1_flair/0001/t1.nii", "/d/t1_flair/0001/t1ce.nii",
             "/d/t1_flair/0001/t2.nii"]),
    (BRATS, ["a.nii", "b.nii", "c.nii", "d.nii"]),
    (BRATS, ["p-t2f.nii.gz", "p-t1n.nii.gz", "p-t1c.nii.gz", "p-t2w.nii.gz"]),
    (("T1 (post)", "T1w"), ["s_post_T1.nii", "s_T1w.nii"]),
    (("T1", "T2"), ["case_0000.nii.gz", "case_0001.nii.gz"]),
    (("T1", "T2"), ["0001_T1_0001.nii.gz", "0001_T2_0000.nii.gz"]),
    (("T1", "T2"), ["pat_0007.nii.gz", "pat_0003.nii.gz"]),
    ((), ["flair.nii", "t1.nii"]),
    (BRATS, ["t1.nii.gz"]),
]  # fmt: skip
WRONG = [
    (BRATS, ["p1_t1.nii.gz", "p1_flair.nii.gz", "p1_t1ce.nii.gz", "p1_t2.nii.gz"], "p1_t1.nii.gz"),
    (BRATS, ["FLAIR.nii", "T1ce.nii", "T1.nii", "T2.nii"], "T1ce.nii"),
    (BRATS, ["p/flair/x.nii", "p/t1/x.nii", "p/t2/x.nii", "p/t1ce/x.nii"], "p/t2/x.nii"),
    (("T1", "T2"), ["sub-1_T2w.nii", "sub-1_T1w.nii"], "sub-1_T2w.nii"),
    (("T1", "T2"), ["case_0001.nii.gz", "case_0000.nii.gz"], "case_0001.nii.gz"),
    (("T1", "T2"), ["T1_T2_0001.nii.gz", "T1_T2_0000.nii.gz"], "T1_T2_0001.nii.gz"),
    ((), ["case_0001.nii.gz", "case_0000.nii.gz"], "case_0001.nii.gz"),
    (("0001", "0000"), ["case_0000.nii.gz", "case_0001.nii.gz"], "case_0000.nii.gz"),
]


@pytest.mark.parametrize(("names", "files"), RIGHT)
def test_files_in_their_order_and_files_that_say_nothing(names, files):
    check_order(list(map(Path, files)), names)


@pytest.mark.parametrize(("names", "files", "first"), WRONG)
def test_files_in_another_order_are_refused(names, files, first):
    with pytest.raises(InputError) as caught:
        check_order(list(map(Path, files)), names)
    assert str(caught.value).startswith(f"{first}: ")
    assert "give the files in the order" in str(caught.value)
