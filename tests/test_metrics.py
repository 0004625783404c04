"""The metrics against medpy and MONAI, against their formulas spelled out, and by hand."""

from __future__ import annotations

import base64
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from medpy.metric import binary
from scipy.spatial.distance import cdist

from metrics import (
    METRICS,
    average_symmetric_surface_distance,
    dice,
    hausdorff_distance,
    mean_surface_distance,
    metrics_in,
    normalized_surface_dice,
    pooled_hausdorff_distance,
    score,
    score_subject,
    shown_metrics,
    summarize,
    volume_similarity,
)
from reporting.score_table import format_table

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
REFERENCE = Path(__file__).parent / "reference" / "metrics.json"
DISTANCES = (
    mean_surface_distance,
    average_symmetric_surface_distance,
    hausdorff_distance,
    pooled_hausdorff_distance,
)


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


def brute_force_distances(a: np.ndarray, b: np.ndarray, spacing) -> tuple[np.ndarray, np.ndarray]:
    """Both directed sets of surface distances from all pairs of surface voxels, found neighbor by neighbor."""

    def points(mask: np.ndarray) -> np.ndarray:
        inside = set(map(tuple, np.argwhere(mask).tolist()))
        steps = [tuple(row) for row in np.vstack([np.eye(mask.ndim, dtype=int), -np.eye(mask.ndim, dtype=int)])]
        border = [p for p in inside if any(tuple(np.add(p, step).tolist()) not in inside for step in steps)]
        return np.array(border) * np.asarray(spacing, float)

    pairwise = cdist(points(a), points(b))
    return pairwise.min(1), pairwise.min(0)


def brute_force_scores(a: np.ndarray, b: np.ndarray, spacing, tolerance: float) -> dict[str, float]:
    """What `score` gives in one unit, of two masks that are not empty."""
    directed = brute_force_distances(a, b, spacing)
    pooled = np.concatenate(directed)
    msd, hd95 = pooled.sum() / len(pooled), max(np.percentile(distances, 95) for distances in directed)
    within = sum(np.sum(distances <= tolerance + 1e-6 * tolerance) for distances in directed)
    return {"nsd": within / len(pooled), "msd": msd, "hd95": hd95, "hd95_pooled": np.percentile(pooled, 95)} | {
        "msd_worst": msd,
        "hd95_worst": hd95,
    }


def unpack(bits: str, shape: list[int]) -> np.ndarray:
    """A mask of tests/reference/metrics.json."""
    packed = np.frombuffer(base64.b64decode(bits), np.uint8)
    return np.unpackbits(packed, count=math.prod(shape)).astype(bool).reshape(shape)


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
    values = score(a, b, spacing)
    for suffix, unit in {"": None, "_mm": spacing}.items():
        assert values[f"msd{suffix}"] == pytest.approx(binary.assd(a, b, unit), abs=1e-9)
        assert values[f"hd95_pooled{suffix}"] == pytest.approx(binary.hd95(a, b, unit), abs=1e-9)
    assert values["dsc"] == pytest.approx(binary.dc(a, b), abs=1e-9)
    for metric in (hausdorff_distance, pooled_hausdorff_distance):
        assert metric(a, b, spacing, percentile=100) == pytest.approx(binary.hd(a, b, spacing), abs=1e-9)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(pairs(dimensions=(1, 2, 3), side=6), st.floats(0, 100), st.floats(0, 10))
def test_equal_to_all_pairs_of_surface_voxels(pair, percentile, tolerance):
    a, b, spacing = pair
    expected = brute_force_scores(a, b, [1] * a.ndim, 1)
    expected |= {f"{key}_mm": value for key, value in brute_force_scores(a, b, spacing, tolerance).items()}
    expected["dsc"] = 2 * (a & b).sum() / (a.sum() + b.sum())
    expected["vs"] = 2 * min(a.sum(), b.sum()) / (a.sum() + b.sum())
    same(score(a, b, spacing, tolerance), expected)
    directed = brute_force_distances(a, b, spacing)
    larger = max(np.percentile(distances, percentile) for distances in directed)
    assert hausdorff_distance(a, b, spacing, percentile) == pytest.approx(larger, abs=1e-9)
    pooled = np.percentile(np.concatenate(directed), percentile)
    assert pooled_hausdorff_distance(a, b, spacing, percentile) == pytest.approx(pooled, abs=1e-9)
    assert mean_surface_distance(a, b, spacing) == pytest.approx(expected["msd_mm"], abs=1e-9)
    assert normalized_surface_dice(a, b, tolerance, spacing) == pytest.approx(expected["nsd_mm"], abs=1e-9)
    assert dice(a, b) == pytest.approx(expected["dsc"])
    assert volume_similarity(a, b) == pytest.approx(expected["vs"])


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
    ones = dict.fromkeys(("dsc", "vs", "nsd", "nsd_mm"), 1.0)
    same(score(a, a, spacing), dict.fromkeys(expected, 0.0) | ones)
    assert list(expected) == list(METRICS)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_voxels_apart(k):
    """Two single voxels k apart along the second axis: every distance is k, or k times that axis's spacing."""
    a, b = cube((3, 9, 4), (1, 1, 2), 1), cube((3, 9, 4), (1, 1 + k, 2), 1)
    distances = {key: k for key, metric in METRICS.items() if metric.unit == "voxels"}
    distances |= {key: 2.5 * k for key, metric in METRICS.items() if metric.unit == "mm"}
    nsd = {"nsd": float(k == 1), "nsd_mm": 0.0}
    same(score(a, b, (7, 2.5, 0.5)), {"dsc": 0.0, "vs": 1.0} | nsd | distances)


def test_shifted_cubes():
    """3x3x3 cubes one voxel apart along an axis: 27 voxels, 26 of them surface, overlap 18.

    The 9 voxels of the first cube that the second lacks are 1 from it. Of the 17 others, the second's surface lacks
    only its own center, which for the first is a face's center: 1 from the nearest. So 10 of 26 are 1, the rest 0.
    """
    a, b = cube((5, 5, 6), (1, 1, 1), 3), cube((5, 5, 6), (1, 1, 2), 3)
    values = score(a, b, (9, 9, 2))
    assert (values["dsc"], values["vs"], values["nsd"]) == (pytest.approx(2 / 3), 1.0, 1.0)
    assert (values["msd"], values["msd_mm"]) == (pytest.approx(10 / 26), pytest.approx(20 / 26))
    assert values["nsd_mm"] == pytest.approx(16 / 26)  # what is 2 mm away is out of 1 mm
    for key in ("hd95", "hd95_pooled", "hd95_worst"):
        assert (values[key], values[f"{key}_mm"]) == (1.0, 2.0)


def test_a_distance_that_is_the_tolerance_is_within_it():
    """Three voxels of 0.1 mm are 0.30000000000000004 mm in float64; a file's 0.2 is 0.200000003 in float32."""
    a, b = cube((9,), (1,), 1), cube((9,), (4,), 1)
    assert normalized_surface_dice(a, b, 0.3, [0.1]) == 1.0
    assert normalized_surface_dice(a, b, 0.6, [float(np.float32(0.2))]) == 1.0
    assert normalized_surface_dice(a, b, 0.2999, [0.1]) == 0.0
    assert (normalized_surface_dice(a, b, 3), normalized_surface_dice(a, b, 2)) == (1.0, 0.0)
    assert (normalized_surface_dice(a, a, 0), normalized_surface_dice(a, b, 0)) == (1.0, 0.0)
    half = cube((9,), (1,), 1) | cube((9,), (7,), 1)  # distances 0 there, 0 and 6 back
    assert normalized_surface_dice(a, half, 1) == pytest.approx(2 / 3)


def test_distances_are_pooled_not_averaged_by_direction():
    """A voxel at 0 against voxels at 0 and 10: distances {0} and {0, 10}. Directed means average to 2.5."""
    a, b = np.zeros((2, 12), bool), np.zeros((2, 12), bool)
    a[0, 0] = b[0, 0] = b[0, 10] = True
    assert mean_surface_distance(a, b) == pytest.approx(10 / 3)
    assert pooled_hausdorff_distance(a, b) == pytest.approx(9.0)  # of 0, 0, 10
    assert hausdorff_distance(a, b) == pytest.approx(9.5)  # the larger of 0 and that of 0, 10
    assert volume_similarity(a, b) == pytest.approx(2 / 3)


def test_the_edge_of_the_array_is_outside():
    """A full array's surface is its edge, so the middle voxel is 1 from it; with border value 1 it has no surface."""
    full, middle = np.ones((3, 3), bool), cube((3, 3), (1, 1), 1)
    assert mean_surface_distance(full, middle) == pytest.approx((4 * 1 + 4 * math.sqrt(2) + 1) / 9)


def test_empty_masks():
    empty, one = np.zeros((2, 3, 4), bool), cube((2, 3, 4), (0, 1, 1), 1)
    spacing = (2, 1, 1)
    assert list(score(empty, empty, spacing)) == list(METRICS)
    assert all(math.isnan(value) for value in score(empty, empty, spacing).values())
    diagonals = {"": math.sqrt(4 + 9 + 16), "_mm": math.sqrt(16 + 9 + 16)}
    for pair in ((empty, one), (one, empty)):
        expected = dict.fromkeys(METRICS, math.nan) | dict.fromkeys(("dsc", "vs", "nsd", "nsd_mm"), 0.0)
        expected |= {f"{key}_worst{unit}": value for key in ("msd", "hd95") for unit, value in diagonals.items()}
        same(score(*pair, spacing), expected)
        assert dice(*pair) == volume_similarity(*pair) == normalized_surface_dice(*pair, 9) == 0.0
    for metric in (dice, volume_similarity, *DISTANCES, lambda a, b: normalized_surface_dice(a, b, 1)):
        assert math.isnan(metric(empty, empty))
    for metric in DISTANCES:
        assert all(math.isnan(metric(*pair)) for pair in ((empty, one), (one, empty)))


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
    for tolerance in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="tolerance"):
            normalized_surface_dice(a, a, tolerance)
    names = ["background", "liver"]
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        score_subject(a.astype(int), b.astype(int), names)
    for label in (2, -1):
        with pytest.raises(ValueError, match="2 class names"):
            score_subject(a.astype(int), a * label, names)
    for part in ("spleen", "background"):
        with pytest.raises(ValueError, match=part):
            score_subject(a.astype(int), a.astype(int), names, regions={"all": ["liver", part]})
    with pytest.raises(ValueError, match="spleen"):
        score_subject(a.astype(int), a.astype(int), names, tolerances={"spleen": 2.0})
    for values in (a * 0.5, np.where(a, math.nan, 0), a.astype(str), a.astype(complex)):
        with pytest.raises(ValueError, match="whole numbers"):
            score_subject(values, a.astype(int), names)


@pytest.mark.parametrize("kind", [bool, np.float16, np.float64, np.uint64, np.int8])
def test_class_indices_in_any_kind_of_number(kind):
    """As nibabel's get_fdata gives them in float64."""
    a, b = (np.random.default_rng(seed).integers(0, 2, (4, 5, 6)) for seed in (0, 1))
    expected = score_subject(a, b, ["background", "x"], (2.0, 1.0, 1.0))
    assert score_subject(a.astype(kind), b, ["background", "x"], (2.0, 1.0, 1.0)) == expected
    assert score_subject(a, b.astype(kind), ["background", "x"], (2.0, 1.0, 1.0)) == expected


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
        assert row["msd_mm"] == pytest.approx(binary.assd(a, b, spacing), abs=1e-9)
        if k == 1:
            assert row["hd95_pooled_mm"] == pytest.approx(binary.hd95(a, b, spacing), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rows_of_a_subject_are_the_scores_of_its_masks(data):
    shapes = hnp.array_shapes(min_dims=2, max_dims=3, max_side=5)
    shape = data.draw(shapes.filter(lambda s: len(s) == 2 or s.count(1) != 1))  # one axis of one: a slice
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


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_region_is_scored_as_one_class(data):
    prediction, target = (data.draw(hnp.arrays(np.uint8, (3, 4, 4), elements=st.integers(0, 3))) for _ in range(2))
    names, spacing = ["background", "x", "y", "z"], data.draw(st.none() | st.just((3.0, 0.5, 1.5)))
    regions, tolerances = {"yz": ["z", "y"], "all": ["x", "y", "z"]}, {"y": 3.5, "all": 0.0}
    rows = score_subject(prediction, target, names, spacing, regions, tolerances)
    assert [row.pop("class") for row in rows] == ["x", "y", "z", "yz", "all"]
    assert [row.pop("region") for row in rows] == [False] * 3 + [True] * 2
    expected = score_subject(prediction, target, names, spacing, tolerances={"y": 3.5})
    for members in ([2, 3], [1, 2, 3]):
        masks = [np.isin(volume, members).astype(int) for volume in (prediction, target)]
        expected += score_subject(*masks, names[:2], spacing, tolerances={"x": 0.0} if 1 in members else {})
    for row, (name, *_), theirs in zip(rows, ["x", "y", "z", "yz", "all"], expected, strict=True):
        assert theirs.pop("class")[0] in (name, "x")
        same(row, theirs)


def test_tolerances_are_those_of_each_class():
    """Two classes, each 2 mm off along the last axis, and in the first axis a spacing of 5 mm."""
    target = np.zeros((3, 8, 9), np.uint8)
    target[1, 1, 1], target[1, 6, 3] = 1, 2
    prediction = np.roll(target, 1, axis=2)
    names, spacing, regions = ["background", "a", "b"], (5, 1, 2), {"both": ["a", "b"]}
    rows = score_subject(prediction, target, names, spacing, regions, {"b": 2.0, "both": 2.5})
    assert [row["nsd_mm"] for row in rows] == [0.0, 1.0, 1.0]
    assert [row["nsd"] for row in rows] == [1.0, 1.0, 1.0]  # one voxel, whatever the tolerances


def test_the_worst_case_is_the_diagonal_of_the_whole_image():
    target = np.zeros((4, 12, 6), np.uint8)
    target[1:3, 2:4, 2:4] = 1
    prediction = np.zeros_like(target)
    prediction[1:3, 2:4, 2] = 2
    found = np.where(target == 1, 1, prediction)
    names = ["background", "missed", "spurious", "nowhere"]
    rows = score_subject(prediction, target, names, (2, 0.5, 1))
    for row, is_missed in zip(rows[:2], (True, False), strict=True):
        assert (row["missed"], row["spurious"]) == (is_missed, not is_missed)
        assert row["dsc"] == row["vs"] == row["nsd"] == row["nsd_mm"] == 0.0
        assert math.isnan(row["msd"]) and math.isnan(row["hd95_mm"])
        assert row["msd_worst"] == row["hd95_worst"] == pytest.approx(14.0)  # 4, 12, 6: 16 + 144 + 36 = 196
        assert row["msd_worst_mm"] == row["hd95_worst_mm"] == pytest.approx(math.sqrt(64 + 36 + 36))
    assert all(math.isnan(rows[2][key]) for key in METRICS)
    assert not (rows[2]["missed"] or rows[2]["spurious"])
    (row, *_) = score_subject(found, target, names, (2, 0.5, 1))
    assert row["msd_worst"] == row["msd"] == row["hd95_worst_mm"] == row["hd95_mm"] == 0.0
    # A single slice has the diagonal of its two axes.
    (row, *_) = score_subject(prediction[1:2], target[1:2], names, (2, 0.5, 1))
    assert (row["msd_worst"], row["hd95_worst_mm"]) == (pytest.approx(math.sqrt(180)), pytest.approx(math.sqrt(72)))


def test_a_single_slice_is_scored_in_2d_whichever_axis_it_lies_across():
    rng = np.random.default_rng(0)
    a, b = (np.kron(rng.random((5, 6)) > 0.5, np.ones((4, 4), bool)) for _ in range(2))
    flat = score(a, b, (0.5, 2.0))
    for across in range(3):
        prediction, target = (np.expand_dims(each.astype(np.uint8), across) for each in (a, b))
        spacing = np.insert([0.5, 2.0], across, 7.0)
        (row,) = score_subject(prediction, target, ["background", "x"], spacing)
        assert {key: row[key] for key in flat} == pytest.approx(flat)


def test_equal_to_stored_values_of_other_libraries():
    """By MONAI, whose numbers are float32, and medpy: single voxels, noise, blobs and boxes at the borders."""
    cases = json.loads(REFERENCE.read_text())["cases"]
    assert len(cases) > 90
    for case in cases:
        a, b = (unpack(text, case["shape"]) for text in case["masks"])
        spacing = case["spacing"]
        ours = {
            "hd95": hausdorff_distance(a, b, spacing),
            "hd100": hausdorff_distance(a, b, spacing, percentile=100),
            "nsd": normalized_surface_dice(a, b, case["tolerance"], spacing),
            "msd": mean_surface_distance(a, b, spacing),
            "hd95_pooled": pooled_hausdorff_distance(a, b, spacing),
        }
        assert {key: ours[key] for key in case["monai"]} == pytest.approx(case["monai"], rel=1e-6), case["name"]
        assert {key: ours[key] for key in case["medpy"]} == pytest.approx(case["medpy"], abs=1e-9), case["name"]


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
        assert row[f"hd95_pooled{suffix}"] == pytest.approx(np.percentile(expected, 95))
        assert row[f"hd95{suffix}"] == pytest.approx(np.percentile(distances.min(0), 95))  # the same both ways
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


def test_numbers_of_any_kind_are_summarized():
    """As metrics of one's own may give them."""
    kinds = {"a": np.float32, "b": int, "c": np.int64}
    rows = [{"subject": k, "class": 1} | {key: kind(k) for key, kind in kinds.items()} for k in (1, 2, 6)]
    summary = summarize(rows)
    assert {key: summary["overall"][key]["mean"] for key in kinds} == dict.fromkeys(kinds, 3.0)
    assert summary["overall"].keys() == summary["per_class"][1].keys() - {"missed", "spurious"} == kinds.keys()


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


def test_regions_are_summarized_beside_the_classes():
    def row(subject, name, dsc, msd, region, **counts):
        return {"subject": subject, "class": name, "region": region, "dsc": dsc, "msd": msd, **counts}

    rows = [
        row("1", "a", 0.5, 1.0, False),
        row("1", "ab", 0.9, 3.0, True, missed=False, spurious=False),
        row("2", "a", 0.7, 2.0, False),
        row("2", "ab", 0.0, math.nan, True, missed=True, spurious=False),
        row("3", "a", 0.6, 3.0, False),
        row("3", "ab", 0.0, math.nan, True, missed=False, spurious=True),
    ]
    summary = summarize(rows)
    assert list(summary) == ["per_class", "per_region", "overall", "subjects"]
    assert (list(summary["per_class"]), list(summary["per_region"])) == (["a"], ["ab"])
    same(summary["overall"]["dsc"], {"mean": 0.6, "std": 0.1, "n": 3})
    same(summary["overall"]["msd"], {"mean": 2.0, "std": 1.0, "n": 3})
    region = summary["per_region"]["ab"]
    same(region["dsc"], {"mean": 0.3, "std": math.sqrt(0.27), "n": 3})
    assert (region["msd"]["n"], region["missed"], region["spurious"]) == (1, 1, 1)
    overlaps, distances = (block.splitlines() for block in format_table(summary).split("\n\n"))
    assert [line.split()[:3] for line in overlaps[2:]] == [
        ["a", "3", "60.00"],
        ["mean", "3", "60.00"],
        ["ab", "3", "30.00"],
    ]
    assert [line.split()[:4] for line in distances[2:]] == [
        ["a", "3", "0", "0"],
        ["mean", "3", "2.00", "±"],
        ["ab", "1", "1", "1"],
    ]


def test_the_metrics_of_a_unit():
    found = {unit: metrics_in(unit, worst_case=False) for unit in ("mm", "voxels", "pixels")}
    assert [metric.key for metric in found["mm"]] == ["dsc", "vs", "nsd_mm", "msd_mm", "hd95_mm"]
    assert [metric.key for metric in found["voxels"]] == ["dsc", "vs", "nsd", "msd", "hd95"]
    assert [metric.key for metric in found["pixels"]] == [metric.key for metric in found["voxels"]]
    for unit, metrics in found.items():
        titles = ["DSC %", "VS %", "NSD %", f"MSD {unit}", f"HD95 {unit}"]
        assert [metric.title for metric in metrics] == titles
        more = metrics_in(unit, worst_case=True)
        assert more[:5] == metrics
        assert [metric.title for metric in more[5:]] == [f"MSD worst case {unit}", f"HD95 worst case {unit}"]
    assert [metric.key for metric in metrics_in("mm", worst_case=True)[5:]] == ["msd_worst_mm", "hd95_worst_mm"]


def subject_rows(subject: str, labels: list[int], spacing=None, regions=()):
    """Scores of a line of labels against one of the classes 0, 1, 2."""
    prediction, target = np.array([labels, [0, 1, 2, 0]])[:, :, None, None]
    rows = score_subject(prediction, target, ["background", "a", "b"], spacing, {name: ["a", "b"] for name in regions})
    return [{"subject": subject, **row} for row in rows]


def test_what_is_shown_follows_from_spacings_and_missing_classes():
    def keys(rows, **more):
        return [metric.key for metric in shown_metrics(summarize(rows) | more)]

    right, missed, spacing = [0, 1, 2, 0], [0, 1, 0, 0], (3, 1, 1)
    in_mm = ["dsc", "vs", "nsd_mm", "msd_mm", "hd95_mm"]
    assert keys(subject_rows("1", right, spacing)) == in_mm
    assert keys(subject_rows("1", missed, spacing)) == [*in_mm, "msd_worst_mm", "hd95_worst_mm"]
    assert keys(subject_rows("1", right)) == ["dsc", "vs", "nsd", "msd", "hd95"]
    titles = [metric.title for metric in shown_metrics(summarize(subject_rows("1", missed)) | {"per_image": True})]
    assert titles[3:] == ["MSD pixels", "HD95 pixels", "MSD worst case pixels", "HD95 worst case pixels"]
    # A subject without a spacing that has no distance at all still has none in mm.
    mixed = [*subject_rows("1", right, spacing), *subject_rows("2", [0, 0, 0, 0])]
    assert keys(mixed) == ["dsc", "vs", "nsd", "msd", "hd95", "msd_worst", "hd95_worst"]
    region = subject_rows("1", [0, 0, 0, 0], regions=["ab"])[2:]
    assert "msd_worst" in keys([*subject_rows("1", right), *region])


def rows_of(names, subjects=3, scale=1.0, unit=""):
    return [
        {"subject": str(s), "class": name, "missed": False, "spurious": False, "dsc": 0.8 + s / 20, "vs": 1.0 - s / 10}
        | {"nsd": 0.5, "msd": scale * (s + 1), "hd95": scale * (9 + s), "msd_worst": scale, "hd95_worst": scale * 9}
        | ({"nsd_mm": 0.1 * s, "msd_mm": 2.0 * scale * (s + 1), "hd95_mm": 2.0 * scale * (9 + s)} if unit else {})
        | ({"msd_worst_mm": 3.0 * scale, "hd95_worst_mm": 9.0 * scale} if unit else {})
        for s in range(subjects)
        for name in names
    ]


def test_table():
    overlaps, distances = format_table(summarize(rows_of(["liver", "right kidney"], unit="mm"))).split("\n\n")
    overlaps, distances = overlaps.splitlines(), distances.splitlines()
    assert overlaps[0].split() == ["class", "n", "DSC", "%", "VS", "%", "NSD", "%"]
    assert distances[0].split() == ["class", "found", "missed", "spurious", "MSD", "mm", "HD95", "mm"]
    numbers = ["3", "85.00", "±", "5.00", "90.00", "±", "10.00", "10.00", "±", "10.00"]
    names = ["liver", "right kidney", "mean"]
    assert [line.split() for line in overlaps[2:]] == [[*name.split(), *numbers] for name in names]
    numbers = ["4.00", "±", "2.00", "20.00", "±", "2.00"]
    for name, line in zip(names, distances[2:], strict=True):
        counts = ["3"] if name == "mean" else ["3", "0", "0"]
        assert line.split() == [*name.split(), *counts, *numbers]
    for lines in (overlaps, distances):
        assert len({tuple(i for i, c in enumerate(line) if c == "±") for line in lines[2:]}) == 1
    voxels = format_table(summarize(rows_of(["liver"])))
    assert "MSD voxels" in voxels
    assert "2.00 ±  1.00" in voxels
    # A mean in mm over some subjects only would stand for all.
    mixed = [*rows_of(["liver"]), rows_of(["liver"], 1, unit="mm")[0] | {"subject": "x"}]
    assert "voxels" in format_table(summarize(mixed))
    single = format_table(summarize(rows_of(["liver"], subjects=1)))
    assert "±" not in single
    assert "nan" not in format_table(summarize(ROWS))


def test_table_with_missing_structures():
    rows = [*subject_rows("1", [0, 1, 0, 0], (3, 1, 1)), *subject_rows("2", [0, 1, 2, 0], (3, 1, 1))]
    overlaps, distances, worst = (block.splitlines() for block in format_table(summarize(rows)).split("\n\n"))
    assert overlaps[3].split()[:2] == ["b", "2"]
    assert distances[3].split() == ["b", "1", "1", "0", "0.00", "0.00"]
    assert worst[0].split() == ["class", "n", "MSD", "worst", "case", "mm", "HD95", "worst", "case", "mm"]
    diagonal = math.sqrt(144 + 2)
    assert worst[3].split()[:3] == ["b", "2", f"{diagonal / 2:.2f}"]
    assert worst[4].split()[:3] == ["mean", "2", f"{diagonal / 4:.2f}"]
    assert "diagonal of the image" in " ".join(worst[5:])


@pytest.mark.parametrize("scale", [0.01, 1.0, 60.0, 5000.0])
def test_table_is_at_most_80_columns_wide(scale):
    names = ["left kidney of a very long name, upper pole", "left kidney of a very long name, lower pole", "y" * 200]
    rows = rows_of(names, subjects=12, scale=scale, unit="mm")
    rows = [row | {"missed": True} for row in rows]
    text = format_table(summarize(rows))
    assert max(map(len, text.splitlines())) <= 80
    blocks = text.split("\n\n")
    assert len(blocks) == 3
    for block in blocks:
        shortened = [line.split("  ")[0] for line in block.splitlines()[2:5]]
        assert all("…" in name for name in shortened)
        assert len(set(shortened)) == 3  # names that differ at their ends stay apart
