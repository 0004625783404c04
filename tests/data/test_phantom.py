"""The generated sample data set: that dataset/ is what data/phantom.py writes, and that its anatomy makes sense."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from data import phantom
from data.folder import CHAOS_LABELS, open_data
from data.phantom import main, phantom_subject, write_dataset
from utils import InputError

DATASET = Path(__file__).parents[2] / "dataset"
ORGANS = [name for name in CHAOS_LABELS if name != "background"]


def read_files(root: Path) -> dict[str, np.ndarray]:
    """Path in the data set -> pixels, of every PNG."""
    return {str(path.relative_to(root)): np.asarray(Image.open(path)) for path in sorted(root.rglob("*.png"))}


def read_subjects(root: Path) -> dict[str, tuple[str, np.ndarray, np.ndarray]]:
    """Subject -> its split, its images and its masks, each uint8 (slices, H, W)."""
    data, found = open_data(root), {}
    for split in data.splits:
        items = data.dataset(split).slices
        for subject in {item.subject: None for item in items}:
            own = [(item.images[0], item.mask) for item in items if item.subject == subject]
            images, masks = (
                np.stack([np.asarray(Image.open(path)) for path in paths]) for paths in zip(*own, strict=True)
            )
            found[subject] = split, images, masks
    return found


@pytest.fixture(scope="module")
def subjects() -> dict[str, tuple[str, np.ndarray, np.ndarray]]:
    return read_subjects(DATASET)


@pytest.mark.slow
def test_the_committed_data_set_is_what_its_command_writes(tmp_path):
    described = json.loads((DATASET / "dataset.json").read_text())
    assert described["command"] == "python -m data.phantom --seed 0"
    main(["--out", str(tmp_path / "again"), "--seed", "0"])
    assert json.loads((tmp_path / "again" / "dataset.json").read_text()) == described
    committed, again = read_files(DATASET), read_files(tmp_path / "again")
    assert list(committed) == list(again)
    # Other versions of NumPy and SciPy may round otherwise: a pixel here and there, not a shape.
    for name, pixels in committed.items():
        if "/Img/" in name:
            assert np.abs(pixels.astype(float) - again[name]).mean() < 2, name
    old, new = (np.concatenate([files[name] for name in files if "/GT/" in name]) for files in (committed, again))
    for code in CHAOS_LABELS.values():
        assert 2 * np.sum((old == code) & (new == code)) / (np.sum(old == code) + np.sum(new == code)) > 0.99


def test_files_are_as_promised(subjects):
    described = json.loads((DATASET / "dataset.json").read_text())
    assert described["labels"] == CHAOS_LABELS
    assert list(described["subjects"]) == [str(k) for k in range(1, 15)]
    assert sum(path.stat().st_size for path in DATASET.rglob("*")) < 2e6
    assert [split for split, _, _ in subjects.values()] == ["train"] * 10 + ["val"] * 2 + ["test"] * 2
    counts = {len(masks) for _, _, masks in subjects.values()}
    assert len(counts) > 1
    assert counts <= set(range(12, 17))
    for _, images, masks in subjects.values():
        assert images.shape[1:] == masks.shape[1:] == (96, 96)
        assert images.dtype == masks.dtype == np.uint8
        assert set(np.unique(masks)) == set(CHAOS_LABELS.values())
        assert (images.min((1, 2)) == 0).all()
        assert (images.max((1, 2)) == 255).all()
    assert {path.suffix for path in DATASET.rglob("*") if path.is_file()} == {".png", ".json"}


def test_organs_are_whole_and_off_the_border(subjects):
    for _, _, masks in subjects.values():
        for name in ORGANS:
            organ = masks == CHAOS_LABELS[name]
            assert ndimage.label(organ)[1] == 1, name
            assert not organ[:, [0, -1]].any()
            assert not organ[:, :, [0, -1]].any()
            found = np.flatnonzero(organ.any((1, 2)))
            assert len(found) >= 4, name
            centers = [ndimage.center_of_mass(organ[z]) for z in found]
            assert all(np.any(organ[a] & organ[b]) for a, b in pairwise(found)), name
            assert max(np.hypot(*np.subtract(a, b)) for a, b in pairwise(centers)) < 10, name  # pixels


def test_organs_lie_where_they_belong(subjects):
    for _, images, masks in subjects.values():
        center = {name: np.array(ndimage.center_of_mass(masks == CHAOS_LABELS[name])) for name in ORGANS}
        volume = {name: np.sum(masks == CHAOS_LABELS[name]) for name in ORGANS}
        body = np.array(ndimage.center_of_mass(images > 60))  # z, y, x; z to the head, y to the back, x to the left
        assert center["liver"][2] < body[2] - 5
        assert center["right kidney"][2] < body[2] - 10
        assert center["left kidney"][2] > body[2] + 10
        assert center["spleen"][2] > center["left kidney"][2]
        for kidney in ("right kidney", "left kidney"):
            assert center[kidney][1] > max(body[1], center["liver"][1])
            assert center[kidney][0] < min(center["liver"][0], center["spleen"][0])
            assert volume["liver"] > 3 * volume[kidney]
        assert volume["liver"] > 5 * volume["spleen"]


def test_subjects_differ(subjects):
    middles = {subject: masks[len(masks) // 2] for subject, (_, _, masks) in subjects.items()}
    for a, first in middles.items():
        for b, second in middles.items():
            if a < b:
                union = np.sum((first > 0) | (second > 0))
                assert np.sum((first == second) & (first > 0)) / union < 0.9, (a, b)


def test_a_threshold_does_not_segment(subjects):
    """The best interval of grey values, chosen per organ and subject on the answer itself, still fails."""
    scores = []
    for _, images, masks in subjects.values():
        everything = np.append(0, np.bincount(images.ravel(), minlength=256).cumsum())
        for name in ORGANS:
            hits = np.append(0, np.bincount(images[masks == CHAOS_LABELS[name]], minlength=256).cumsum())
            within, size = hits[None] - hits[:, None], everything[None] - everything[:, None]
            scores.append(np.max(np.triu(2 * within) / np.maximum(hits[-1] + size, 1)))
    assert np.mean(scores) < 0.4
    assert np.max(scores) < 0.7


def test_one_subject():
    image, classes, spacing = phantom_subject(np.random.default_rng(5), size=40, slices=(3, 3))
    assert image.shape == classes.shape == (3, 40, 40)
    assert (image.dtype, classes.dtype) == (np.float32, np.uint8)
    assert image.min() >= 0
    assert spacing[0] == spacing[1] < spacing[2]
    same = phantom_subject(np.random.default_rng(5), size=40, slices=(3, 3))
    np.testing.assert_array_equal(image, same[0])
    np.testing.assert_array_equal(classes, same[1])


def test_tiny_sets_and_their_seeds(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_dataset(tmp_path / name, seed, subjects=(2, 1, 1), size=32, slices=(3, 4))
    a, b, c = (read_files(tmp_path / name) for name in "abc")
    assert list(a) == list(b)
    assert all((a[name] == b[name]).all() for name in a)
    assert any((a[name] != c[name]).any() for name in a.keys() & c.keys())
    assert list(read_subjects(tmp_path / "a")) == ["1", "2", "3", "4"]


def test_only_an_empty_folder_is_written_to(tmp_path, capsys, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(SystemExit) as stop:
        main(["--out", str(tmp_path / "full")])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "full: exists already" in error
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    with pytest.raises(InputError, match="exists already"):
        write_dataset(tmp_path / "full" / "mine.txt")

    (tmp_path / "empty").mkdir()
    write_dataset(tmp_path / "empty", subjects=(1, 1, 1), size=32, slices=(2, 2))
    assert len(read_files(tmp_path / "empty")) == 12

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(phantom, "write_json", fail)
    with pytest.raises(OSError, match="disk full"):
        write_dataset(tmp_path / "half", subjects=(1, 1, 1), size=32, slices=(2, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]
