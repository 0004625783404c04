"""What sources say of subjects and classes cannot make the writer write elsewhere, or something else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from data.folder import open_data
from data.listing import LONGEST_SUBJECT
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


@pytest.mark.parametrize("kind", ["link", "link to a preparation", "folder", "file"])
def test_what_is_not_of_a_preparation_is_not_emptied(tmp_path, kind):
    """Only a folder with the lock of an earlier call is."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("kept")
    partial = tmp_path / ".out.partial"
    if kind.startswith("link"):
        partial.symlink_to("mine")
        if "preparation" in kind:
            (tmp_path / "mine" / ".lock").touch()
    elif kind == "folder":
        (tmp_path / "mine").rename(partial)
    else:
        partial.write_text("kept")
    before = tree(tmp_path)
    with pytest.raises(InputError) as caught:
        write(tmp_path / "out")
    assert_clear(caught.value, ".out.partial: is not of a preparation", "rename or remove it")
    assert tree(tmp_path) == before


def test_a_link_in_what_a_killed_preparation_left_is_not_followed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("kept")
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / ".lock").touch()
    (tmp_path / ".out.partial" / "train").symlink_to(tmp_path / "mine")
    write(tmp_path / "out")
    assert tree(tmp_path / "mine") == {"thesis.txt"} and not (tmp_path / "out" / "train").is_symlink()
    assert not (tmp_path / ".out.partial").exists()


def test_a_slice_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data.writer.Image.Image.save", fail)
    with pytest.raises(OSError) as caught:
        write(tmp_path / "out")
    assert caught.value.filename.endswith("slice_1.png")
    assert not tree(tmp_path)


def test_a_subject_whose_segmentation_could_not_be_written_is_refused(tmp_path):
    with pytest.raises(InputError) as caught:
        write(tmp_path / "out", SPLIT | {"train": ["x" * (LONGEST_SUBJECT + 1)]})
    assert_clear(caught.value, f"of at most {LONGEST_SUBJECT}")
    write(tmp_path / "out", SPLIT | {"train": ["x" * LONGEST_SUBJECT]})
    long = "y" * (LONGEST_SUBJECT + 1)
    for path in (tmp_path / "out").glob("test/*/*slice_1.png"):
        path.rename(path.with_name(f"Subj_{long}slice_1.png"))
    with pytest.raises(InputError) as caught:
        open_data(tmp_path / "out")
    assert_clear(caught.value, f"Subj_{long}slice_1.png: the subject's name has more than {LONGEST_SUBJECT} letters")
