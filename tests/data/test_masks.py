"""Masks in colors and with palettes: a class is what the colors say, whatever the values in a file, or is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.folder import Identity, open_data
from tests.helpers.errors import assert_clear
from tests.helpers.png import GREY, encode, png, save_png, write_tree
from utils import InputError

COLORS = {"background": [0, 0, 0], "red": [255, 0, 0], "green": [0, 255, 0], "blue": [0, 0, 255], "grey": [9, 9, 9]}
TABLE = {"colors": {name: color for name, color in COLORS.items() if name != "background"}}
SLICES = ("train/GT/Subj_aslice_1.png", "val/GT/Subj_bslice_1.png", "test/GT/Subj_cslice_1.png")


def blocks(*classes: int) -> np.ndarray:
    """32 x 32 class indices: columns of 4 pixels, of these classes and then background."""
    mask = np.zeros((32, 32), np.uint8)
    for k, each in enumerate(classes):
        mask[:, 4 * k : 4 * k + 4] = each
    return mask


def save_colors(path: Path, classes: np.ndarray) -> None:
    """Write class indices as an RGB mask."""
    save_png(path, np.array(list(COLORS.values()), np.uint8)[classes])


def save_palette(path: Path, classes: np.ndarray, order: list[int]) -> None:
    """Write class indices as a palette mask whose index k is the color of class order[k]."""
    picture = Image.fromarray(np.argsort(order).astype(np.uint8)[classes])
    picture.putpalette(np.array(list(COLORS.values()), np.uint8)[order].tobytes())
    picture.save(path)


def colors_in(path: Path) -> np.ndarray:
    """The class of each pixel by its color, as Pillow reads it."""
    pixels = np.asarray(Image.open(path).convert("RGB")).tolist()
    known = list(COLORS.values())
    return np.array([[known.index(pixel) for pixel in row] for row in pixels])


@pytest.fixture
def root(tmp_path) -> Path:
    """A data set of three slices; the tests write the masks."""
    plain = png(encode(GREY))
    write_tree(tmp_path, plain, plain, list(range(256)))
    (tmp_path / "dataset.json").unlink()
    return tmp_path


def describe(root: Path, content: object = TABLE) -> None:
    """Write a dataset.json."""
    (root / "dataset.json").write_text(json.dumps(content))


def targets(root: Path) -> list[np.ndarray]:
    """Class indices of the three slices, as training takes them."""
    data = open_data(root)
    return [data.dataset(split)[0][1].numpy() for split in ("train", "val", "test")]


# ---------------------------------------------------------------- palettes and colors

orders = st.lists(st.permutations(range(5)), min_size=3, max_size=3)
contents = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=4), min_size=3, max_size=3)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(orders, contents, st.booleans())
def test_shuffled_palettes_never_give_another_class_than_the_colors(tmp_path_factory, orders, contents, same):
    """With a table, each class is its color's; without one, one value never means two colors, nor the reverse."""
    root = tmp_path_factory.getbasetemp() / "shuffled"
    plain = png(encode(GREY))
    write_tree(root, plain, plain, list(range(256)))
    contents[1].append(1)  # the validation mask is not empty
    for name, order, content in zip(SLICES, [orders[0]] * 3 if same else orders, contents, strict=True):
        save_palette(root / name, blocks(*content), order)
    truth = [colors_in(root / name) for name in SLICES]
    describe(root)
    for target, expected in zip(targets(root), truth, strict=True):
        np.testing.assert_array_equal(target, expected)
    (root / "dataset.json").unlink()
    try:
        found = targets(root)
    except InputError as error:
        assert_clear(error, str(root))
        return
    pairs = set(zip(np.ravel(found).tolist(), np.ravel(truth).tolist(), strict=True))
    assert len({of_file for of_file, _ in pairs}) == len({color for _, color in pairs}) == len(pairs)
    assert (0, 0) in pairs  # black is the background


@pytest.mark.parametrize("write", [save_colors, lambda path, classes: save_palette(path, classes, [3, 0, 1, 2, 4])])
def test_a_table_of_colors_is_all_that_color_masks_need(root, write):
    masks = [blocks(1, 2), blocks(3, 1), blocks()]
    for name, mask in zip(SLICES, masks, strict=True):
        write(root / name, mask)
    describe(root)
    for target, mask in zip(targets(root), masks, strict=True):
        np.testing.assert_array_equal(target, mask)
    data = open_data(root)
    identity = data.identity()
    assert identity.labels.colors == (0, 0xFF0000, 0x00FF00, 0x0000FF, 0x090909)
    assert Identity.from_dict(json.loads(json.dumps(identity.to_dict()))) == identity
    describe(root, TABLE | {"labels": {"background": 0, "blue": 7, "green": 2, "red": 1, "grey": 3}})
    assert open_data(root).labels.codes == (0, 7, 2, 1, 3)
    np.testing.assert_array_equal(targets(root)[1], np.array([0, 3, 2, 1, 4])[masks[1]])


def test_masks_in_colors_are_refused_with_the_table_that_they_need(root):
    for name, mask in zip(SLICES, (blocks(1, 2), blocks(3, 1), blocks()), strict=True):
        save_colors(root / name, mask)
    with pytest.raises(InputError) as caught:
        open_data(root)
    assert_clear(caught.value, str(root / SLICES[0]), str(root / "dataset.json"), "a mask in colors")
    table = json.loads(str(caught.value).partition("such as ")[2])
    assert list(table["colors"]) == ["background", "class 1", "class 2", "class 3"]
    assert sorted(table["colors"].values()) == sorted(list(COLORS.values())[:4])
    describe(root, table)
    assert [np.count_nonzero(target) for target in targets(root)] == [256, 256, 0]


def test_smooth_colors_are_no_table(root):
    save_png(root / SLICES[0], np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    with pytest.raises(InputError) as caught:
        open_data(root)
    assert_clear(caught.value, str(root / SLICES[0]), "colors were found")
    assert len(str(caught.value)) < 1000


def test_an_unknown_color_says_which_and_where(root):
    for name in SLICES:
        save_colors(root / name, blocks(1))
    pixels = np.asarray(Image.open(root / SLICES[1])).copy()
    pixels[20, 30:] = (255, 0, 1)
    save_png(root / SLICES[1], pixels)
    describe(root)
    with pytest.raises(InputError) as caught:
        open_data(root)
    assert_clear(caught.value, str(root / SLICES[1]), "color [255, 0, 1]", "row 20, column 30", "2 pixels")


@pytest.mark.parametrize(("first", "second", "expected"), [
    ([0, 1, 2, 3, 4], [0, 2, 1, 3, 4], "value 1 is shown in the color [0, 255, 0]"),
    ([0, 1, 3, 2, 4], [0, 1, 2, 3, 4], "the color [0, 0, 255] is value 3"),  # of green, neither file has a pixel
])  # fmt: skip
def test_palettes_that_differ_are_refused_by_two_files(root, first, second, expected):
    mask = blocks(1, 2) if first[2] == 2 else blocks(1, 3)
    for name, order in zip(SLICES, (first, second, second), strict=True):
        save_palette(root / name, mask, order)
    with pytest.raises(InputError) as caught:
        open_data(root)
    assert_clear(caught.value, *(str(root / name) for name in SLICES[:2]), expected, '"colors"')


def test_palettes_that_agree_are_indices(root):
    """Also where files hold other colors, or have colors more that no pixel has."""
    for name, mask in zip(SLICES, (blocks(1, 2), blocks(1, 2, 3), blocks()), strict=True):
        save_palette(root / name, mask, [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(targets(root)[1], blocks(1, 2, 3))
    describe(root, {"labels": {"background": 0, "c": 3, "b": 2, "a": 1}})
    np.testing.assert_array_equal(targets(root)[1], blocks(3, 2, 1))


def test_black_that_is_not_value_0_is_no_background_without_a_table(root):
    for name in SLICES:
        save_palette(root / name, blocks(1), [1, 0, 2, 3, 4])
    with pytest.raises(InputError) as caught:
        open_data(root)
    assert_clear(caught.value, str(root / SLICES[0]), "value 0 is shown in the color [255, 0, 0]", '"colors"')
    describe(root, {"labels": {"background": 1, "a": 0}})
    np.testing.assert_array_equal(targets(root)[0], blocks(1))


def test_grey_beside_palettes_means_its_color(root):
    """An optimizer of PNG files writes black and white as grey of one bit, whose 1 is white and not index 1."""
    for name in SLICES[:2]:
        save_palette(root / name, blocks(1), [0, 1, 2, 3, 4])
    save_png(root / SLICES[2], np.zeros((32, 32), bool))
    np.testing.assert_array_equal(targets(root)[2], 0)
    save_png(root / SLICES[2], blocks(1).astype(bool))
    with pytest.raises(InputError) as caught:
        open_data(root)
    assert_clear(caught.value, str(root / SLICES[2]), str(root / SLICES[0]), "[255, 255, 255]", "[255, 0, 0]")
    describe(root, {"colors": {"lesion": [255, 0, 0], "white": [255, 255, 255]}})
    np.testing.assert_array_equal(targets(root)[2], 2 * blocks(1))


@pytest.mark.parametrize("write", [lambda mask: mask * np.uint8(255), lambda mask: mask.astype(np.uint16) * 9])
def test_values_that_differ_between_files_are_refused_by_two_files(root, write):
    for name in SLICES[:2]:
        save_png(root / name, blocks(1))
    save_png(root / SLICES[2], write(blocks(1)))
    with pytest.raises(InputError) as caught:
        open_data(root)
    assert_clear(caught.value, str(root / SLICES[0]), str(root / SLICES[2]), "holds 0, 1 and")


def test_grey_of_16_bits_is_a_color_only_where_8_bits_have_it(root):
    for name in SLICES:
        save_png(root / name, blocks(1).astype(np.uint16) * (9 * 257))
    describe(root)
    np.testing.assert_array_equal(targets(root)[0], 4 * blocks(1))
    save_png(root / SLICES[0], blocks(1).astype(np.uint16) * 9)
    with pytest.raises(InputError) as caught:
        open_data(root)
    assert_clear(caught.value, str(root / SLICES[0]), "between those of 8 bits")


@pytest.mark.parametrize(("content", "expected"), [
    ({"colors": {"a": [255, 0]}}, "red, green and blue"),
    ({"colors": {"a": [256, 0, 0]}}, "red, green and blue"),
    ({"colors": {"a": [True, 0, 0]}}, "red, green and blue"),
    ({"colors": ["a"]}, "red, green and blue"),
    ({"colors": {}}, "2 to 255 classes"),
    ({"colors": {"a": [0, 0, 0]}}, "the same color"),
    ({"colors": {"a": [1, 2, 3]}, "labels": {"background": 0, "b": 1}}, "each class of labels"),
    ({"labels": {"background": 0, "a": 9, "Ignore": 255}}, "'Ignore' must be called ignore"),
    ({"labels": {"background": 0, "ignore": 255}}, "2 to 255 classes"),
    ({"labels": {"background": 0, "a": 9}, "regions": {"ignore": ["a"]}}, "nobody annotated"),
    ({"channels": ["t1", "t1"]}, "names that differ"),
    ({"channels": ["t1", "t2"]}, "names 2 channels (t1, t2), and the images have 1"),
])  # fmt: skip
def test_tables_that_say_nothing_are_refused(root, content, expected):
    for name in SLICES:
        save_png(root / name, blocks(1))
    describe(root, content)
    with pytest.raises(InputError) as caught:
        open_data(root)
    assert_clear(caught.value, str(root / "dataset.json"), expected)
