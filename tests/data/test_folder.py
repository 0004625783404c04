"""The layout on disk: what is read, and what is refused and how."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.description import Labels
from data.folder import Identity, open_data
from tests.helpers.errors import assert_clear, assert_one_line
from tests.helpers.files import NO_FILES, remove
from tests.helpers.png import GREY, encode, flat, png, save_png, write_tree
from utils import InputError, printable


def test_slices_are_paired_by_name_and_sorted_by_number(make_data):
    root = make_data({"train": ["10", "2", "pat-a_1"], "val": ["7"], "test": ["8"]}, numbers=(10, 9, 100, -3))
    (root / "train" / "Img" / ".DS_Store").write_bytes(b"hidden")
    (root / "train" / "GT" / "Thumbs.db").write_bytes(b"foreign")
    (root / "train" / "GT" / "notes.png").write_bytes(b"foreign")
    data = open_data(root)
    train = data.dataset("train")
    assert list(train.subjects()) == ["2", "10", "pat-a_1"]
    assert [item.number for item in train.slices] == [-3, 9, 10, 100] * 3
    assert all(item.mask.name == item.images[0].name for item in train.slices)
    assert any("notes.png" in note for note in data.notes)
    assert sum("slice numbers are missing" in note for note in data.notes) == 5
    assert data.labels.names == ("background", "liver", "right kidney", "left kidney", "spleen")
    image, target = train[1]
    stored = np.asarray(Image.open(root / "train" / "Img" / "Subj_2slice_9.png"))
    codes = np.asarray(Image.open(root / "train" / "GT" / "Subj_2slice_9.png"))
    assert image.dtype == torch.float32
    np.testing.assert_array_equal(image[0].numpy() * 255, stored.astype(np.float32))
    assert target.dtype == torch.int64
    np.testing.assert_array_equal(target.numpy() * 63, codes)


def test_several_channels(make_data):
    root = make_data()
    for split in ("train", "val", "test"):
        shutil.copytree(root / split / "Img", root / split / "Img_2")
        for path in (root / split / "Img_2").iterdir():
            save_png(path, 255 - np.asarray(Image.open(path)))
    data = open_data(root)
    image, _ = data.dataset("val")[0]
    assert data.channels == 2
    torch.testing.assert_close(image[0] + image[1], torch.ones(40, 48))


# ---------------------------------------------------------------- groups, regions


def test_a_group_in_two_splits_is_refused(make_data):
    root = make_data({"train": ["1", "4"], "val": ["2"], "test": ["3"]})
    (root / "dataset.json").write_text(json.dumps({"groups": {"1": "Ann", "3": "Ann"}}))
    with pytest.raises(InputError) as caught:
        open_data(root)
    assert_clear(caught.value, str(root / "dataset.json"), "group 'Ann'", "subject 1 in train", "subject 3 in test")
    assert open_data(root, whole_groups=False).groups == {"1": "Ann", "3": "Ann"}
    together = {"train": ["1", "3"], "val": ["2"], "test": ["4"]}
    assert open_data(root, subjects=together).groups == {"1": "Ann", "3": "Ann"}
    assert open_data(root, subjects={"train": ["1"], "val": ["2"], "test": ["4"]}).splits["train"]
    with pytest.raises(InputError, match="subject 1 in train and subject 3 in val"):
        open_data(root, subjects={"train": ["1"], "val": ["3"], "test": ["4"]})


def test_classes_of_subjects(make_data):
    root = make_data({"train": ["1"], "val": ["2"], "test": ["3", "4"]})
    for subject, values in {"1": [63], "2": [252, 63], "3": []}.items():
        for path in root.glob(f"*/GT/Subj_{subject}slice_2.png"):
            mask = np.zeros((40, 48), np.uint8)
            mask.flat[: len(values)] = values
            save_png(path, mask)
            save_png(path.with_name(path.name.replace("slice_2", "slice_1")), np.zeros((40, 48), np.uint8))
    assert open_data(root).classes_of() == {"1": {1}, "2": {1, 4}, "3": set(), "4": {1, 2, 3, 4}}


def test_checkpoints_keep_regions_and_take_others(make_data):
    root = make_data()
    labels = {"labels": {"background": 0, "liver": 63, "right": 126, "left": 189, "spleen": 252}}
    (root / "dataset.json").write_text(json.dumps(labels))
    before = open_data(root).identity()
    described = labels | {"regions": {"kidneys": ["right", "left"]}, "tolerances": {"kidneys": 2}}
    (root / "dataset.json").write_text(json.dumps(described | {"groups": {"1": "Ann"}}))
    identity = open_data(root).identity()
    assert before.difference(identity) is None
    kept = Identity.from_dict(json.loads(json.dumps(identity.to_dict()))).labels
    assert (kept.regions, kept.tolerances) == ({"kidneys": ("right", "left")}, {"kidneys": 2.0})


# ---------------------------------------------------------------- labels


def write_masks(root: Path, values: list[int]) -> None:
    """Let every mask begin with these values; the rest is 0."""
    for path in root.glob("*/GT/*.png"):
        mask = np.zeros((40, 48), np.uint8)
        mask.flat[: len(values)] = values
        save_png(path, mask)


@pytest.mark.parametrize(
    ("values", "names", "codes"),
    [
        ([0, 1, 2], ("background", "class 1", "class 2"), (0, 1, 2)),
        ([0, 255], ("background", "foreground"), (0, 255)),
        ([0, 63], ("background", "liver", "right kidney", "left kidney", "spleen"), (0, 63, 126, 189, 252)),
    ],
)
def test_labels_that_need_no_table(make_data, values, names, codes):
    root = make_data()
    write_masks(root, values)
    assert open_data(root).labels == Labels(names, codes, tuple(range(len(names))))


def test_table_in_dataset_json(make_data):
    root = make_data()
    write_masks(root, [0, 4, 200])
    describe(root, {"labels": {"background": 0, "b": 200, "a": 4}, "subjects": {"1": {"spacing": [1, 2, 3.5]}}})
    data = open_data(root)
    assert data.labels == Labels(("background", "b", "a"), (0, 200, 4), (0, 1, 2))
    assert data.dataset("train")[0][1].flatten()[:3].tolist() == [0, 2, 1]
    assert data.geometry["1"].spacing == (1, 2, 3.5)


def test_unknown_mask_value_says_which_where_and_how_many(make_data):
    root = make_data()
    describe(root, {"labels": {"background": 0, "liver": 63}})
    write_masks(root, [0, 63])
    mask = np.zeros((40, 48), np.uint8)
    mask[20, 30:33] = 64
    save_png(root / "val/GT/Subj_2slice_2.png", mask)
    with pytest.raises(InputError) as caught:
        open_data(root)
    parts = ("val/GT/Subj_2slice_2.png", "value 64", "row 20, column 30", "3 pixels", "[0, 63]")
    assert_one_line(caught.value, *parts)


# ---------------------------------------------------------------- what is refused


def describe(root: Path, content: object) -> None:
    """Write a dataset.json."""
    (root / "dataset.json").write_text(content if isinstance(content, str) else json.dumps(content))


IMG, GT = "train/Img/Subj_1slice_1.png", "train/GT/Subj_1slice_1.png"
BAD = {
    "no split folder": (lambda r: remove(r / "val"), ["val", "no such folder"]),
    "no Img": (lambda r: remove(r / "test/Img"), ["test/Img", "no such folder"]),
    "no GT": (lambda r: remove(r / "test/GT"), ["test/GT", "no such folder"]),
    "empty split": (lambda r: [remove(p) for p in r.glob("val/*/*")], ["val", "holds no slices"]),
    "image without mask": (lambda r: remove(r / GT), [IMG, "has no mask"]),
    "mask without image": (lambda r: remove(r / IMG), [GT, "has no image"]),
    "second channel lacks one": (lambda r: (r / "train/Img_2").mkdir(), [GT, "has no image", "Img_2"]),
    "channel left out": (lambda r: (r / "train/Img_3").mkdir(), ["train/Img_2", "is missing", "Img_3"]),
    "channels differ": (lambda r: save_png(r / IMG, np.zeros((40, 48, 3), np.uint8)), ["channels", "alike"]),
    "image of another size": (lambda r: save_png(r / IMG, np.zeros((40, 40), np.uint8)), [IMG, "40 x 40", "40 x 48"]),
    "subject of two sizes": (
        lambda r: [save_png(r / p, np.zeros((64, 48), np.uint8)) for p in (IMG, GT)],
        ["Subj_1", "64 x 48", "40 x 48", "one size"],
    ),
    "too small": (
        lambda r: [save_png(p, np.zeros((31, 48), np.uint8)) for p in r.glob("*/*/*")], ["31 x 48", "at least 32"],
    ),
    "no PNG": (lambda r: (r / IMG).write_bytes(b"GIF89a"), [IMG, "not a readable PNG"]),
    "truncated": (lambda r: (r / IMG).write_bytes((r / IMG).read_bytes()[:500]), [IMG, "not a readable PNG"]),
    "empty file": (lambda r: (r / GT).write_bytes(b""), [GT, "not a readable PNG"]),
    "padded duplicate": (
        lambda r: [shutil.copy(r / p, r / p.replace("slice_1", "slice_01")) for p in (IMG, GT)],
        ["slice_1.png", "slice_01.png", "the same slice"],
    ),
    "subject in two splits": (
        lambda r: [shutil.copy(r / p, r / p.replace("train", "test")) for p in (IMG, GT)],
        ["subject 1", "train", "test"],
    ),
    "masks that explain nothing": (lambda r: write_masks(r, [0, 3, 7]), ["0, 3, 7", "dataset.json"]),
    "empty masks": (lambda r: write_masks(r, [0]), ["every mask is empty"]),
    "nothing to validate on": (
        lambda r: [save_png(p, np.zeros((40, 48), np.uint8)) for p in r.glob("val/GT/*")],
        ["all masks of the validation subjects are background"],
    ),
    "json": (lambda r: describe(r, "{labels:"), ["dataset.json", "JSON"]),
    "json list": (lambda r: describe(r, []), ["dataset.json", "object"]),
    "labels list": (lambda r: describe(r, {"labels": ["background", "liver"]}), ["labels", "value in the masks"]),
    "labels without background": (lambda r: describe(r, {"labels": {"liver": 1, "spleen": 2}}), ["background"]),
    "labels twice": (lambda r: describe(r, {"labels": {"background": 0, "a": 1, "b": 1}}), ["same value"]),
    "spacing": (lambda r: describe(r, {"subjects": {"1": {"spacing": [1, 0, 2]}}}), ["subject 1", "spacing"]),
    "geometry of other slices": (
        lambda r: describe(r, {"subjects": {"1": {"size": [40, 48, 2]}}}),
        ["subject 1", "slices have 48 x 40 pixels, and 40 x 48 in dataset.json"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(make_data, case):
    root = make_data()
    spoil, expected = BAD[case]
    spoil(root)
    with pytest.raises(InputError) as caught:
        open_data(root)
    assert_one_line(caught.value, *expected)


@pytest.mark.parametrize("case", NO_FILES)
@pytest.mark.parametrize("kind", ["Img", "GT"])
def test_things_that_are_no_files(tmp_path, case, kind):
    make, expected = NO_FILES[case]
    plain = png(encode(GREY))
    path = write_tree(tmp_path, plain, plain, list(range(256))) / "train" / kind / "Subj_aslice_1.png"
    path.unlink()
    make(path)
    with pytest.raises(InputError) as caught:
        open_data(tmp_path)
    assert_clear(caught.value, str(path), expected)
    remove(path)
    path.with_name("elsewhere").write_bytes(plain)
    path.symlink_to("elsewhere")  # a good link is as good as the file
    assert len(open_data(tmp_path).dataset("train")) == 1


def test_numbers_that_make_no_volume_are_refused_before_training(tmp_path):
    plain = png(encode(GREY))
    root = write_tree(tmp_path, plain, plain, list(range(256)))
    for kind in ("Img", "GT"):
        (root / "val" / kind / f"Subj_bslice_{'9' * 20}.png").write_bytes(flat(0))
    with pytest.raises(InputError) as caught:
        open_data(root)
    assert_clear(caught.value, f"Subj_bslice_{'9' * 20}.png", "number the slices one by one")


# ---------------------------------------------------------------- generated names

ASCII_DIGITS = "0123456789"
WORD = ASCII_DIGITS + "_-abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Arabic digits, superscripts, a line break, an escape, a right-to-left mark, a byte that is no text, globs, quotes.
odd_text = st.text(
    st.sampled_from([*"aB7_-", "٣", "²", "é", "\n", "\x1b", "\u202e", "\udcff", " ", ".", "*", "[", "'"])
)
subject_names = st.one_of(st.sampled_from(["1", "01", "a", "slice_1", "-", "Subj_1"]), odd_text)
numbers = st.one_of(
    st.sampled_from(["1", "2", "01", "-1", "-0", "0", "٣", "²", "", "--1", "+1", "1.5", "9" * 20, "9" * 120]),
    st.integers(-20, 20).map(str),
)
endings = st.sampled_from([".png", ".png", ".png", ".png", ".PNG", ".png.png", ".jpg", ".png\n", ""])
file_names = st.builds("Subj_{}slice_{}{}".format, subject_names, numbers, endings)


def slice_of(name: str) -> tuple[str, int] | None:
    """Subject and number by the README, without a regular expression."""
    if not name.startswith("Subj_") or not name.endswith(".png"):
        return None
    subject, found, number = name[5:-4].rpartition("slice_")
    digits = number.removeprefix("-")
    if not (found and subject and digits and set(subject) <= set(WORD) and set(digits) <= set(ASCII_DIGITS)):
        return None
    value = 0
    for digit in digits:
        value = 10 * value + ASCII_DIGITS.index(digit)
    return subject, -value if number.startswith("-") else value


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One folder for all examples."""
    return tmp_path_factory.mktemp("names")


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(st.lists(file_names, min_size=1, max_size=6, unique=True), st.data())
def test_pairs_are_of_one_subject_and_number_whatever_the_names(folder, names, data):
    """Image and mask of a slice hold one value of its own, so that any other pair would show."""
    root = write_tree(folder, b"", b"", list(range(256)))
    keys = {name: slice_of(name) for name in names}
    values = {key: 7 + k for k, key in enumerate(dict.fromkeys(key for key in keys.values() if key))}
    for kind in ("Img", "GT"):
        for path in (root / "train" / kind).iterdir():  # of an earlier example, too
            path.unlink()
        for name in data.draw(st.permutations(names)):
            (root / "train" / kind / name).write_bytes(flat(values.get(keys[name], 0)))
    found = [key for key in keys.values() if key]
    spans = [abs(m - n) for s, m in found for t, n in found if s == t]
    bad = not found or len(set(found)) < len(found) or max(spans) >= 10_000 or {s for s, _ in found} & {"b", "c"}
    try:
        opened = open_data(root)
    except InputError as error:
        assert bad
        assert_clear(error, printable(str(root / "train")))
        return
    assert not bad
    assert all(note.isprintable() for note in opened.notes)
    train = opened.dataset("train")
    assert sorted((item.subject, item.number) for item in train.slices) == sorted(found)
    for item, (image, target) in zip(train.slices, train, strict=True):
        own = {values[item.subject, item.number]}
        assert set((image * 255).unique().tolist()) == own
        assert set(target.unique().tolist()) == own
