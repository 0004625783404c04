"""The largest piece of each class, against a flood fill."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data.volumes import largest_components


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
