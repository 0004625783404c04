"""Slices put together as volumes, and volumes in files."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from data.nifti import write_nifti
from data.volumes import assemble, largest_components
from utils import InputError


@pytest.mark.parametrize(
    ("numbers", "error"), [((1, 1), ValueError), ((1, 2, 3), ValueError), ((1, 20231124), InputError)]
)
def test_assemble_refuses_what_is_no_volume(numbers, error):
    with pytest.raises(error):
        assemble(numbers, [np.zeros((2, 2), np.uint8)] * 2)


@settings(deadline=None)
@given(st.permutations(range(-3, 4)), st.integers(1, 7))
def test_assemble_puts_each_slice_in_its_place(order, count):
    numbers = order[:count]
    volume = assemble(numbers, [np.full((2, 3), number + 10, np.uint8) for number in numbers])
    assert volume.shape == (max(numbers) - min(numbers) + 1, 2, 3)
    for number, plane in enumerate(volume, min(numbers)):
        assert (plane == (number + 10 if number in numbers else 0)).all()


def test_files_are_not_written_through_links(tmp_path):
    (tmp_path / "outside.nii.gz").write_bytes(b"kept")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.nii.gz").symlink_to("../outside.nii.gz")
    write_nifti(tmp_path / "out" / "a.nii.gz", sitk.GetImageFromArray(np.zeros((2, 3, 4), np.uint8)))
    assert (tmp_path / "outside.nii.gz").read_bytes() == b"kept"
    assert not (tmp_path / "out" / "a.nii.gz").is_symlink()


def flood(volume: np.ndarray, start: tuple[int, ...]) -> set[tuple[int, ...]]:
    """The voxels that hang together with `start` by faces."""
    found, edge = {start}, [start]
    while edge:
        voxel = edge.pop()
        for axis in range(3):
            for step in (-1, 1):
                near = tuple(c + step * (a == axis) for a, c in enumerate(voxel))
                inside = all(0 <= c < size for c, size in zip(near, volume.shape, strict=True))
                if inside and near not in found and volume[near] == volume[start]:
                    found.add(near)
                    edge.append(near)
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(1, 6)] * 3), st.integers(1, 3))
def test_largest_components_equal_a_flood_fill(seed, shape, classes):
    volume = np.random.default_rng(seed).integers(0, classes + 1, shape, np.uint8)
    kept, cleaned = volume.copy(), largest_components(volume)
    assert (volume == kept).all() and cleaned.dtype == np.uint8
    for k in range(1, classes + 1):
        pieces, seen = [], set()
        for voxel in map(tuple, np.argwhere(volume == k).tolist()):
            if voxel not in seen:
                pieces.append(flood(volume, voxel))
                seen |= pieces[-1]
        expected = max(pieces, key=len) if pieces else set()  # of equal ones the first
        assert set(map(tuple, np.argwhere(cleaned == k).tolist())) == expected
