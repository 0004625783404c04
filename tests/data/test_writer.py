"""What sources say of subjects and classes cannot make the writer write elsewhere, or something else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from data.preparation import Preparation
from data.sources import Case
from data.splits import read_split
from data.writer import Plan, write_data
from tests.helpers.errors import assert_clear
from tests.helpers.files import tree
from utils import InputError

SPLIT = {"train": ["a"], "val": ["b"], "test": ["c"]}
CLASSES = {0: "background", 1: "a"}


class OneScan:
    """A source whose subjects are called as the test wants."""

    def read(self, subject: str) -> Case:
        volume = sitk.GetImageFromArray(np.arange(2 * 32 * 32).reshape(2, 32, 32).astype(np.uint16) % 2)
        return Case([volume], volume, ["scan.nii.gz"])


def write(out: Path, split: dict[str, list[str]] = SPLIT, classes: dict[int, str] = CLASSES) -> None:
    """Write that source."""
    write_data(out, Plan(OneScan(), split, Preparation(), classes, {}))


@pytest.mark.parametrize("subject", ["../../x", "/tmp/x", "..", "a/b", "a b", "a\nb", "", "²", "\udcff"])
def test_subjects_cannot_leave_the_output_folder(tmp_path, subject):
    split = SPLIT | {"train": [subject]}
    with pytest.raises(InputError) as caught:
        write(tmp_path / "deep" / "out", split)
    assert_clear(caught.value, "letters, digits, underscores and dashes")
    assert not tree(tmp_path)
    (tmp_path / "split.json").write_text(json.dumps(split))
    with pytest.raises(InputError) as caught:
        read_split(tmp_path / "split.json")
    assert_clear(caught.value, "split.json", "letters, digits")


@pytest.mark.parametrize("others", [{1: "a", 2: "a"}, {1: "a\nb"}, {1: ""}, {10**9: "a"}, {-1: "a"}, {1: "background"}])
def test_classes_that_a_data_set_cannot_hold(tmp_path, others):
    with pytest.raises(InputError) as caught:
        write(tmp_path / "out", classes={0: "background"} | others)
    assert_clear(caught.value, "label value")
    assert not tree(tmp_path)


@pytest.mark.parametrize("target", ["elsewhere", "nowhere"])
def test_linked_outputs_are_left_alone(tmp_path, target):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(target)
    with pytest.raises(InputError) as caught:
        write(tmp_path / "out")
    assert_clear(caught.value, "out: exists already")
    assert tree(tmp_path) == {"elsewhere", "out"}
