"""The folds of a table: who is tested in which, and what may not be mixed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import cli
from data.listing import list_images
from experiments.folds import Splitting, folds
from utils import InputError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("flags", "tested"), [(["--folds", "3"], 14), (["--split", "10,2,2", "--repeats", "3"], 6), ([], 2)]
)
def test_folds_test_each_subject_once(tmp_path, flags, tested):
    options = cli.parse(Splitting, "", ["--data", str(ROOT / "dataset"), *flags])
    found = folds(options, tmp_path)
    subjects = []
    for fold in found:
        if fold.split_file is None:
            subjects += list_images(fold.data / "test")
        else:
            split = json.loads(fold.split_file.read_text())
            assert not set(split["test"]) & {*split["train"], *split["val"]}
            assert not set(split["val"]) & set(split["train"])
            assert len({*split["train"], *split["val"], *split["test"]}) == 14
            subjects += split["test"]
    assert len(subjects) == len(set(subjects)) == tested
    assert found == folds(options, tmp_path)


def test_two_data_sets_may_share_people_but_not_names(make_data, tmp_path):
    first = shutil.copytree(make_data(), tmp_path / "first")
    second = shutil.copytree(first, tmp_path / "second")
    assert len(folds(Splitting((first, second)), tmp_path / "splits")) == 2
    with pytest.raises(InputError, match="names a data set twice"):
        folds(Splitting((first, tmp_path / "second" / ".." / "first")), tmp_path / "splits")
    image, other = (second / "val" / "Img" / f"Subj_2slice_{k}.png" for k in (1, 2))
    shutil.copy(other, image)
    with pytest.raises(InputError, match=r"second: its subject 2 has other slices than that of .*first; give"):
        folds(Splitting((first, second)), tmp_path / "splits")


def test_a_split_of_other_subjects_is_not_mixed_in(make_data, tmp_path):
    """--folds again after a subject was added: the runs of the old folds must not join those of the new ones."""
    data = make_data({"train": ["1", "2"], "val": ["3"], "test": ["4"]})
    options = Splitting((data,), folds=3)
    before = folds(options, tmp_path)
    assert folds(options, tmp_path) == before
    texts = [fold.split_file.read_text() for fold in before]
    for path in sorted(data.glob("test/*/*.png")):
        shutil.copy(path, path.with_name(path.name.replace("Subj_4", "Subj_5")))
    with pytest.raises(InputError, match="was split from other subjects or groups than"):
        folds(options, tmp_path)
    assert [fold.split_file.read_text() for fold in before] == texts
