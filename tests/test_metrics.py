"""The metrics against medpy, against their formulas spelled out, and by hand."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from medpy.metric import binary

from metrics import (
    average_symmetric_surface_distance,
    dice,
    format_table,
    hausdorff_distance,
    mean_surface_distance,
    score,
    score_subject,
    summarize,
    volume_similarity,
)

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
DISTANCES = (mean_surface_distance, average_symmetric_surface_distance, hausdorff_distance)


@st.composite
def pairs(draw, dimensions=(3,), side=6):
    """Two non-empty masks, dense, solid or sparse, often touching the array's edge, and a spacing."""
    ndim = draw(st.sampled_from(dimensions))
    shape = draw(hnp.array_shapes(min_dims=ndim, max_dims=ndim, min_side=1, max_side=side))
    masks = []
    for _ in range(2):
        if draw(st.booleans()):
            mask = draw(hnp.arrays(bool, shape))
        else:
            corners = [sorted(draw(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)))) for n in shape]
            mask = np.zeros(shape, bool)
            mask[tuple(slice(low, high + 1) for low, high in corners)] = True
        assume(mask.any())
        masks.append(mask)
    spacing = draw(st.lists(st.floats(0.3, 8), min_size=ndim, max_size=ndim))
    return *masks, spacing


def brute_force_distances(a: np.ndarray, b: np.ndarray, spacing) -> np.ndarray:
    """Both directed sets of surface distances from all pairs of surface voxels, found neighbor by neighbor."""

    def points(mask: np.ndarray) -> np.ndarray:
        inside = set(map(tuple, np.argwhere(mask).tolist()))
        steps = [tuple(row) for row in np.vstack([np.eye(mask.ndim, dtype=int), -np.eye(mask.ndim, dtype=int)])]
        border = [p for p in inside if any(tuple(np.add(p, step).tolist()) not in inside for step in steps)]
        return np.array(border) * np.asarray(spacing, float)

    pairwise = np.sqrt(((points(a)[:, None] - points(b)[None]) ** 2).sum(-1))
    return np.concatenate([pairwise.min(1), pairwise.min(0)])


def cube(shape: tuple[int, ...], low: tuple[int, ...], size: int) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(start, start + size) for start in low)] = True
    return mask


def same(ours: dict[str, float], theirs: dict[str, float]) -> None:
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert value == pytest.approx(theirs[key], abs=1e-9, nan_ok=True), key


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(pairs())
def test_equal_to_medpy(pair):
    a, b, spacing = pair
    expected = {"msd": binary.assd(a, b), "hd95": binary.hd95(a, b)}
    expected |= {"msd_mm": binary.assd(a, b, spacing), "hd95_mm": binary.hd95(a, b, spacing)}
    expected |= {"assd": expected["msd"], "assd_mm": expected["msd_mm"], "dsc": binary.dc(a, b)}
    sizes = int(a.sum()), int(b.sum())
    expected["vs"] = 2 * min(sizes) / sum(sizes)
    same(score(a, b, spacing), {key: expected[key] for key in score(a, b, spacing)})
    assert hausdorff_distance(a, b, spacing, percentile=100) == pytest.approx(binary.hd(a, b, spacing), abs=1e-9)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(pairs(dimensions=(1, 2, 3), side=5), st.floats(0, 100))
def test_equal_to_all_pairs_of_surface_voxels(pair, percentile):
    a, b, spacing = pair
    for unit in (None, spacing):
        distances = brute_force_distances(a, b, [1] * a.ndim if unit is None else unit)
        assert mean_surface_distance(a, b, unit) == pytest.approx(distances.sum() / len(distances), abs=1e-9)
        expected = np.percentile(distances, percentile)
        assert hausdorff_distance(a, b, unit, percentile) == pytest.approx(expected, abs=1e-9)
    assert dice(a, b) == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert volume_similarity(a, b) == pytest.approx(1 - abs(int(a.sum()) - int(b.sum())) / (a.sum() + b.sum()))


@settings(max_examples=60, deadline=None)
@given(pairs(dimensions=(2, 3)), st.integers(1, 4), st.permutations(range(3)))
def test_symmetry_and_invariance(pair, margin, axes):
    a, b, spacing = pair
    expected = score(a, b, spacing)
    same(score(b, a, spacing), expected)
    same(score(np.pad(a, margin), np.pad(b, margin), spacing), expected)
    axes = [axis for axis in axes if axis < a.ndim]
    same(score(a.transpose(axes), b.transpose(axes), [spacing[axis] for axis in axes]), expected)
    same(score(a.astype(np.uint8), b.astype(np.int64), np.array(spacing)), expected)
    same(score(a, a, spacing), dict.fromkeys(expected, 0.0) | {"dsc": 1.0, "vs": 1.0})


@pytest.mark.parametrize("k", [1, 3, 7])
def test_voxels_apart(k):
    """Two single voxels k apart along the second axis: every distance is k, or k times that axis's spacing."""
    a, b = cube((3, 9, 4), (1, 1, 2), 1), cube((3, 9, 4), (1, 1 + k, 2), 1)
    distances = {"msd": k, "assd": k, "hd95": k, "msd_mm": 2.5 * k, "assd_mm": 2.5 * k, "hd95_mm": 2.5 * k}
    same(score(a, b, (7, 2.5, 0.5)), {"dsc": 0.0, "vs": 1.0, **distances})


def test_shifted_cubes():
    """3x3x3 cubes one voxel apart along an axis: 27 voxels, 26 of them surface, overlap 18.

    The 9 voxels of the first cube that the second lacks are 1 from it. Of the 17 others, the second's surface lacks
    only its own center, which for the first is a face's center: 1 from the nearest. So 10 of 26 are 1, the rest 0.
    """
    a, b = cube((5, 5, 6), (1, 1, 1), 3), cube((5, 5, 6), (1, 1, 2), 3)
    same(
        score(a, b, (9, 9, 2)),
        {"dsc": 2 / 3, "vs": 1.0, "msd": 10 / 26, "assd": 10 / 26, "hd95": 1.0}
        | {"msd_mm": 20 / 26, "assd_mm": 20 / 26, "hd95_mm": 2.0},
    )


def test_distances_are_pooled_not_averaged_by_direction():
    """A voxel at 0 against voxels at 0 and 10: distances {0} and {0, 10}. Directed means average to 2.5."""
    a, b = np.zeros((2, 12), bool), np.zeros((2, 12), bool)
    a[0, 0] = b[0, 0] = b[0, 10] = True
    assert mean_surface_distance(a, b) == pytest.approx(10 / 3)
    assert hausdorff_distance(a, b) == pytest.approx(9.0)  # of 0, 0, 10; the larger directed percentile is 9.5
    assert volume_similarity(a, b) == pytest.approx(2 / 3)


def test_the_edge_of_the_array_is_outside():
    """A full array's surface is its edge, so the middle voxel is 1 from it; with border value 1 it has no surface."""
    full, middle = np.ones((3, 3), bool), cube((3, 3), (1, 1), 1)
    assert mean_surface_distance(full, middle) == pytest.approx((4 * 1 + 4 * math.sqrt(2) + 1) / 9)


def test_empty_masks():
    empty, one = np.zeros((2, 3, 4), bool), cube((2, 3, 4), (0, 1, 1), 1)
    spacing = (2, 1, 1)
    assert all(math.isnan(value) for value in score(empty, empty, spacing).values())
    assert math.isnan(dice(empty, empty))
    assert math.isnan(volume_similarity(empty, empty))
    for pair in ((empty, one), (one, empty)):
        values = score(*pair, spacing)
        assert (values.pop("dsc"), values.pop("vs")) == (0.0, 0.0) == (dice(*pair), volume_similarity(*pair))
        assert len(values) == 6
        assert all(math.isnan(value) for value in values.values())
    for metric in DISTANCES:
        assert all(math.isnan(metric(*pair)) for pair in ((empty, one), (one, empty), (empty, empty)))


def test_mistakes():
    a, b = np.ones((2, 3), bool), np.ones((2, 4), bool)
    for metric in (dice, volume_similarity, *DISTANCES, score):
        with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
            metric(a, b)
    for spacing in ((1,), (1, 1, 1), (1, 0), (1, -2), (1, math.nan), (math.inf, 1), 2):
        for metric in (*DISTANCES, score):
            for mask in (a, np.zeros_like(a)):
                with pytest.raises(ValueError, match="expected 2 positive numbers"):
                    metric(mask, a, spacing)
    names = ["background", "liver"]
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        score_subject(a.astype(int), b.astype(int), names)
    for label in (2, -1):
        with pytest.raises(ValueError, match="2 class names"):
            score_subject(a.astype(int), a * label, names)


@pytest.mark.slow
def test_two_ellipsoids_in_a_whole_volume_equal_medpy():
    grid = np.indices((256, 256, 40), dtype=np.float32)

    def ellipsoid(center, radii):
        return sum(((x - c) / r) ** 2 for x, c, r in zip(grid, center, radii, strict=True)) < 1

    def volume(offset):
        labels = ellipsoid((110 + offset, 120, 20), (70, 68 + offset, 14)).astype(np.uint8)
        labels[ellipsoid((220, 200 - offset, 4), (30, 25, 8 + offset / 2))] = 2  # cut by the volume's edge
        return labels

    target, prediction, spacing = volume(0), volume(4), (1.62, 1.62, 5.5)
    rows = score_subject(prediction, target, ("background", "liver", "spleen"), spacing)
    assert [row["class"] for row in rows] == ["liver", "spleen"]
    for k, row in enumerate(rows, 1):
        a, b = prediction == k, target == k
        assert row["dsc"] == pytest.approx(binary.dc(a, b), abs=1e-9)
        assert row["msd_mm"] == row["assd_mm"] == pytest.approx(binary.assd(a, b, spacing), abs=1e-9)
        if k == 1:
            assert row["hd95_mm"] == pytest.approx(binary.hd95(a, b, spacing), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rows_of_a_subject_are_the_scores_of_its_masks(data):
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=3, max_side=5).filter(lambda s: len(s) == 2 or s[0] > 1))
    dtype = data.draw(st.sampled_from([np.uint8, np.int64]))
    prediction, target = (data.draw(hnp.arrays(dtype, shape, elements=st.integers(0, 3))) for _ in range(2))
    spacing = data.draw(st.none() | st.just((3.0, 0.5, 1.5)[: len(shape)]))
    rows = score_subject(prediction, target, ["background", "x", "y", "z"], spacing)
    assert [row.pop("class") for row in rows] == ["x", "y", "z"]
    for k, row in enumerate(rows, 1):
        a, b = prediction == k, target == k
        assert row.pop("missed") is bool(b.any() and not a.any())
        assert row.pop("spurious") is bool(a.any() and not b.any())
        same(row, score(a, b, spacing))
        assert ("msd_mm" in row) == (spacing is not None)


ROWS = [
    {"subject": "1", "class": "liver", "missed": False, "spurious": False, "dsc": 0.9, "msd": 1.0},
    {"subject": "1", "class": "spleen", "missed": True, "spurious": False, "dsc": 0.0, "msd": math.nan},
    {"subject": "2", "class": "liver", "missed": False, "spurious": False, "dsc": 0.8, "msd": 2.0},
    {"subject": "2", "class": "spleen", "missed": False, "spurious": False, "dsc": 0.6, "msd": 4.0},
    {"subject": "3", "class": "liver", "missed": False, "spurious": True, "dsc": 0.0, "msd": math.nan},
    {"subject": "3", "class": "spleen", "missed": False, "spurious": False, "dsc": math.nan, "msd": math.nan},
]  # fmt: skip


@pytest.mark.parametrize("spacing", [None, (9.0, 0.5, 2.0)])
def test_a_volume_of_one_slice_is_scored_as_an_image(spacing):
    """A square and itself a pixel to the right, against all pairs of pixels of their outlines."""
    prediction, target = np.zeros((2, 1, 12, 12), np.uint8)
    prediction[0, 2:8, 2:8] = target[0, 2:8, 3:9] = 1
    (row,) = score_subject(prediction, target, ["background", "a"], spacing)
    outline = np.array([(y, x) for y in range(2, 8) for x in range(2, 8) if {y, x} & {2, 7}])
    for suffix, unit in {"": (1.0, 1.0), "_mm": spacing and spacing[1:]}.items():
        if unit is None:
            continue
        distances = np.linalg.norm((outline[:, None] - outline - (0, 1)) * unit, axis=2)
        expected = np.concatenate([distances.min(0), distances.min(1)])
        assert row[f"msd{suffix}"] == pytest.approx(expected.mean())
        assert row[f"hd95{suffix}"] == pytest.approx(np.percentile(expected, 95))
    flat = format_table(summarize([{"subject": "1", **row}]) | {"per_image": True})
    assert ("MSD pixels" if spacing is None else "MSD mm") in flat


def test_summary_by_hand():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = summarize(ROWS)
    assert list(summary) == ["per_class", "overall", "subjects"]
    assert summary["subjects"] == 3
    liver, spleen = summary["per_class"]["liver"], summary["per_class"]["spleen"]
    assert (liver["missed"], liver["spurious"], spleen["missed"], spleen["spurious"]) == (0, 1, 1, 0)
    assert list(liver) == ["dsc", "msd", "missed", "spurious"]
    # Of 0.9, 0.8, 0.0 the squared deviations from 17/30 are (100 + 49 + 289) / 900.
    same(liver["dsc"], {"mean": 17 / 30, "std": math.sqrt(438 / 900 / 2), "n": 3})
    same(liver["msd"], {"mean": 1.5, "std": math.sqrt(0.5), "n": 2})
    same(spleen["dsc"], {"mean": 0.3, "std": math.sqrt(0.18), "n": 2})
    same(spleen["msd"], {"mean": 4.0, "std": math.nan, "n": 1})
    # Subjects' means over classes: DSC 0.45, 0.7, 0.0; MSD 1, 3, none.
    same(summary["overall"]["dsc"], {"mean": 1.15 / 3, "std": math.sqrt((0.6925 - 1.15**2 / 3) / 2), "n": 3})
    same(summary["overall"]["msd"], {"mean": 2.0, "std": math.sqrt(2), "n": 2})


def test_summary_of_little():
    assert summarize([]) == {"per_class": {}, "overall": {}, "subjects": 0}
    nothing = summarize([{"subject": "1", "class": "liver", "dsc": math.nan}])
    same(nothing["overall"]["dsc"], {"mean": math.nan, "std": math.nan, "n": 0})
    assert (nothing["per_class"]["liver"]["missed"], nothing["subjects"]) == (0, 1)
    mixed = summarize([{**ROWS[0], "msd_mm": 3.0}, ROWS[2]])  # the second subject has no spacing
    same(mixed["overall"]["msd_mm"], {"mean": 3.0, "std": math.nan, "n": 1})
    assert mixed["overall"]["msd"]["n"] == 2
    for summary in (summarize([]), nothing, mixed):
        assert max(map(len, format_table(summary).splitlines())) <= 80


def rows_of(names, subjects=3, scale=1.0, unit=""):
    return [
        {"subject": str(s), "class": name, "missed": False, "spurious": False, "dsc": 0.8 + s / 20, "vs": 1.0 - s / 10}
        | {"msd": scale * (s + 1), "assd": scale * (s + 1), "hd95": scale * (9 + s)}
        | ({"msd_mm": 2.0 * scale * (s + 1), "hd95_mm": 2.0 * scale * (9 + s)} if unit else {})
        for s in range(subjects)
        for name in names
    ]


def test_table():
    lines = format_table(summarize(rows_of(["liver", "right kidney"], unit="mm"))).splitlines()
    assert lines[0].split() == ["class", "n", "DSC", "%", "VS", "%", "MSD", "mm", "HD95", "mm"]
    numbers = ["3", "85.00", "±", "5.00", "90.00", "±", "10.00", "4.00", "±", "2.00", "20.00", "±", "2.00"]
    assert [line.split() for line in lines[2:]] == [
        [*name.split(), *numbers] for name in ("liver", "right kidney", "mean")
    ]
    assert len({tuple(i for i, c in enumerate(line) if c == "±") for line in lines[2:]}) == 1
    voxels = format_table(summarize(rows_of(["liver"]))).splitlines()
    assert "MSD voxels" in voxels[0]
    assert "2.00 ±  1.00" in voxels[2]
    # A mean in mm over some subjects only would stand for all.
    mixed = [*rows_of(["liver"]), rows_of(["liver"], 1, unit="mm")[0] | {"subject": "x"}]
    assert "voxels" in format_table(summarize(mixed))
    single = format_table(summarize(rows_of(["liver"], subjects=1)))
    assert "±" not in single
    assert "nan" not in format_table(summarize(ROWS))
    assert format_table(summarize(ROWS)).endswith(
        "missed: spleen 1; spurious: liver 1 (left out of the distance means)"
    )
    assert "missed" not in single


@pytest.mark.parametrize("scale", [0.01, 1.0, 60.0, 5000.0])
def test_table_is_at_most_80_columns_wide(scale):
    names = ["left kidney of a very long name, upper pole", "left kidney of a very long name, lower pole", "y" * 200]
    rows = rows_of(names, subjects=12, scale=scale, unit="mm")
    rows = [row | {"missed": True} for row in rows]
    text = format_table(summarize(rows))
    assert max(map(len, text.splitlines())) <= 80
    assert all("…" in line for line in text.splitlines()[2:5])
