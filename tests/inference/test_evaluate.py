"""The command evaluate.py: the scores of main.py from files alone, and segmentations of other programs."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

import evaluate
import prepare
import report
import reproduce
from data.geometry import Geometry
from data.label_files import LabelVolume
from inference.evaluation import Evaluation, Sources, compare
from main import main
from tests.helpers.errors import assert_one_line, error_of
from tests.helpers.files import tree
from tests.helpers.runs import read_csv
from tests.helpers.scans import ORIENTATIONS, make_scan, slice_position, write_dicom
from tests.helpers.segs import save_seg
from tests.helpers.trained import CONFIG, Trained
from utils import InputError, read_json


def score(predictions: Path, truth: Path, out: Path, **options) -> list[dict[str, str]]:
    """python evaluate.py with these options; the rows of its test.csv."""
    evaluate.main(evaluate.Options(Sources(predictions, truth, **options), out))
    return read_csv(out / "test.csv")


def refused(*parts: str, **options) -> None:
    """The command ends with one line that holds these parts, and writes nothing."""
    with pytest.raises(InputError) as caught:
        score(**options)
    assert_one_line(caught.value, *parts)
    assert not (options["out"] / "test.csv").exists()


def write(path: Path, array: np.ndarray, affine=None) -> Path:
    """A label volume (x, y, z) by nibabel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([1.5, 1.0, 3.0, 1.0]) if affine is None else affine), path)
    return path


def dice(a: np.ndarray, b: np.ndarray, k: int) -> float:
    return 2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum())


@pytest.fixture
def pair(tmp_path) -> dict[str, Path]:
    """Predictions and truths of subjects a and b with the values 0, 1 and 4, and the arguments to score them."""
    rng = np.random.default_rng(0)
    for folder in ("predictions", "truth"):
        for subject in "ab":
            array = rng.choice(np.array([0, 1, 4], np.uint8), (8, 7, 6))
            write(tmp_path / folder / f"{subject}.nii.gz", array)
    return {"predictions": tmp_path / "predictions", "truth": tmp_path / "truth", "out": tmp_path / "run"}


NAMED = {"names": "liver, spleen", "values": "1,4"}


# ---------------------------------------------------------------- what main.py says


def retrain(trained: Trained, folder: Path, *flags: str) -> tuple[Path, Path]:
    """The scans prepared in another way, and a run on these slices."""
    split = str(trained.scans.parent / "split.json")
    prepare.main(["nifti", str(trained.scans), "--out", str(folder / "data"), "--split_file", split, *flags])
    main(CONFIG.change(data=folder / "data", out=folder / "trained"))
    return folder / "data", folder / "trained"


@pytest.mark.slow
def test_the_predictions_of_a_run_get_its_scores(trained, tmp_path, tiny):
    """Byte for byte, from the scans' grids to the slices that were cropped and turned."""
    data, run = retrain(trained, tmp_path, "--size", "32")
    score(run / "predictions", data / "test", tmp_path / "run")
    assert (tmp_path / "run" / "test.csv").read_bytes() == (run / "test.csv").read_bytes()
    ours, theirs = (read_json(folder / "test.json") for folder in (tmp_path / "run", run))
    cost = ("parameters", "epochs", "seconds", "memory_gib", "best_epoch")
    assert all(ours.pop(key) is None and theirs.pop(key) is not None for key in cost)
    assert list(theirs.pop("slices")) == [row["subject"] for row in read_csv(run / "test.csv")[:1]]
    for summary in (ours, theirs):
        summary.pop("environment")
    assert ours == theirs


@pytest.mark.slow
@pytest.mark.parametrize("described", [True, False])
def test_so_do_those_of_slices_without_a_place(make_data, tmp_path, tiny, described):
    """Slices 1, 2 and 4; with CHAOS's values and no dataset.json, or with spacings only."""
    data = make_data({"train": ["1"], "val": ["2"], "test": ["3", "11"]}, numbers=(1, 2, 4))
    if described:
        labels = {"background": 0, "a": 63, "b": 126, "c": 189, "d": 252}
        content = {
            "labels": labels,
            "subjects": {"3": {"spacing": [1.25, 1, 5]}},
            "regions": {"both": ["a", "c"]},
            "tolerances": {"a": 2},
            "groups": {"3": "p", "11": "p"},
        }
        (data / "dataset.json").write_text(json.dumps(content))
    main(CONFIG.change(data=data, out=tmp_path / "trained"))
    rows = score(tmp_path / "trained" / "predictions", data / "test", tmp_path / "run")
    assert (tmp_path / "run" / "test.csv").read_bytes() == (tmp_path / "trained" / "test.csv").read_bytes()
    assert len(rows) == (10 if described else 8)
    score(tmp_path / "trained" / "predictions", data / "test" / "GT", tmp_path / "again")
    assert (tmp_path / "again" / "test.csv").read_bytes() == (tmp_path / "run" / "test.csv").read_bytes()


def test_a_whole_data_set_is_no_truth(trained, tmp_path):
    refused(
        f"{trained.data}: is a whole data set; name a split of it, such as {trained.data / 'test'}",
        predictions=trained.data / "test",
        truth=trained.data,
        out=tmp_path / "run",
    )


@pytest.mark.slow
def test_where_slices_were_resampled_a_note_says_so(trained, tmp_path, capsys, tiny):
    data, run = retrain(trained, tmp_path, "--spacing", "1.1,1.0", "--size", "36")
    rows = score(run / "predictions", data / "test", tmp_path / "run")
    assert "note: 1 of 1 segmentations resampled to the grid of the truth" in capsys.readouterr().out
    for ours, theirs in zip(rows, read_csv(run / "test.csv"), strict=True):
        assert ours["class"] == theirs["class"]
        assert float(ours["dsc"]) == pytest.approx(float(theirs["dsc"]), abs=0.2)


# ---------------------------------------------------------------- on one grid


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(codes=st.tuples(st.sampled_from(ORIENTATIONS), st.sampled_from(ORIENTATIONS)), seed=st.integers(0, 99))
def test_axes_are_turned(tmp_path_factory, codes, seed):
    """Against nibabel, which turns both volumes to RAS."""
    folder = tmp_path_factory.mktemp("turned")
    paths = []
    for name, code, number in zip(("prediction", "truth"), codes, (seed, seed + 1), strict=True):
        paths.append(folder / f"{name}.nii.gz")
        sitk.WriteImage(make_scan(number, code, (5, -4, 8))[1], paths[-1])
    rows = score(*paths, folder / "run", names="a,b,c")
    upright = [nib.as_closest_canonical(nib.load(path)).get_fdata() for path in paths]
    assert [float(row["dsc"]) for row in rows] == pytest.approx([dice(*upright, k) for k in (1, 2, 3)])
    sides = np.array(upright[0].shape) * nib.as_closest_canonical(nib.load(paths[1])).header.get_zooms()
    empty = np.zeros_like(upright[0], np.uint8)
    nib.save(nib.Nifti1Image(empty, nib.as_closest_canonical(nib.load(paths[0])).affine), folder / "empty.nii.gz")
    rows = score(folder / "empty.nii.gz", paths[1], folder / "other", names="a,b,c")
    assert float(rows[0]["msd_worst_mm"]) == pytest.approx(np.linalg.norm(sides), rel=1e-5)
    assert {row["missed"] for row in rows} == {"True"}


@settings(max_examples=60, deadline=None)
@given(
    codes=st.tuples(st.sampled_from(ORIENTATIONS), st.sampled_from(ORIENTATIONS)),
    finer=st.tuples(*[st.sampled_from((1 / 3, 1, 3))] * 3),
    shift=st.sampled_from((0, 0.3, 0.7)),
    seed=st.integers(0, 99),
)
def test_each_voxel_gets_the_nearest_of_the_segmentation(codes, finer, shift, seed):
    """By numpy, from positions in mm; beyond half of the larger voxel, the two are refused."""
    rng = np.random.default_rng(seed)
    spacings = np.array([1.5, 0.8, 3.0]), np.array([1.5, 0.8, 3.0]) * finer
    sizes = np.array([6, 9, 3]), np.array([6, 9, 3]) / finer
    volumes = []
    for code, spacing, size in zip(codes, spacings, np.rint(sizes).astype(int), strict=True):
        image = sitk.GetImageFromArray(rng.integers(0, 3, size[::-1], np.uint8))
        image.SetSpacing(spacing.tolist())
        image.SetOrigin((spacing / 2 + 7).tolist())
        volumes.append(sitk.DICOMOrient(image, code))
    truth, prediction = volumes
    prediction.SetOrigin(np.add(prediction.GetOrigin(), (shift * spacings[1][0], 0, 0)).tolist())
    sides = [LabelVolume(Path(name), image, Geometry()) for name, image in (("p", prediction), ("t", truth))]
    if shift * spacings[1][0] > 0.5 * max(spacing[0] for spacing in spacings):
        with pytest.raises(InputError, match="does not lie where"):
            compare("s", *sides)
        return
    compared = compare("s", *sides)
    assert compared.how == ("" if shift == 0 and finer == (1, 1, 1) else "resampled")
    array = sitk.GetArrayFromImage(prediction)
    for index in np.ndindex(compared.volume.target.shape):
        point = compared.image.TransformIndexToPhysicalPoint(index[::-1])
        offset = (np.array(point) - prediction.GetOrigin()) @ np.reshape(prediction.GetDirection(), (3, 3))
        place = np.rint(offset / prediction.GetSpacing()).astype(int)
        inside = (place >= 0).all() and (place < prediction.GetSize()).all()
        assert compared.volume.prediction[index] == (array[tuple(place[::-1])] if inside else 0)
        assert compared.volume.target[index] == truth[truth.TransformPhysicalPointToIndex(point)]


def test_the_line_on_oblique_axes_says_so():
    truth = sitk.Image(4, 5, 6, sitk.sitkUInt8)
    oblique = sitk.Image(truth)
    oblique.SetDirection((0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1))
    sides = [LabelVolume(Path(name), image, Geometry()) for name, image in (("p", oblique), ("t", truth))]
    with pytest.raises(InputError, match="along other axes; resample it there"):
        compare("s", *sides)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_another_spacing_in_the_same_box_is_resampled_to_the_truth(tmp_path, capsys, axis):
    """A truth with voxels three times as long has the middle one of three; the other way, each one thrice."""
    array = np.random.default_rng(axis).integers(0, 3, (6, 9, 12), np.uint8)
    spacing = np.array([1.0, 1.5, 0.8])
    affine = np.diag([*spacing, 1])
    affine[:3, 3] = (-20, 5, 7)
    longer = affine @ np.diag([3 if k == axis else 1 for k in range(3)] + [1])
    longer[:3, 3] += affine[:3, axis]  # the middle of the first three
    middle = array.take(range(1, array.shape[axis], 3), axis)
    fine, coarse = write(tmp_path / "fine.nii", array, affine), write(tmp_path / "coarse.nii", middle, longer)
    rows = score(fine, coarse, tmp_path / "a", names="a,b")
    assert "note: 1 of 1 segmentations resampled" in capsys.readouterr().out
    assert [float(row["dsc"]) for row in rows] == [1, 1]
    rows = score(coarse, fine, tmp_path / "b", names="a,b")
    thrice = middle.repeat(3, axis)
    assert [float(row["dsc"]) for row in rows] == pytest.approx([dice(thrice, array, k) for k in (1, 2)])


@pytest.mark.parametrize(
    ("shift", "angle", "size", "fits"),
    [(0.4, 0, 8, True), (0.6, 0, 8, False), (0, 0.02, 8, False), (0, 0, 9, False), (100, 0, 8, False)],
)
def test_what_lies_elsewhere_is_refused(tmp_path, shift, angle, size, fits):
    truth = write(tmp_path / "truth.nii.gz", np.ones((8, 8, 8), np.uint8), np.eye(4))
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine[1, 3] = shift
    prediction = write(tmp_path / "prediction.nii.gz", np.ones((size, 8, 8), np.uint8), affine)
    arguments = {"predictions": prediction, "truth": truth, "out": tmp_path / "run", "names": "a"}
    if fits:
        assert [float(row["dsc"]) for row in score(**arguments)] == [1]
    else:
        refused("prediction.nii.gz: does not lie where its truth", "truth.nii.gz", **arguments)


def test_slices_beside_volumes(trained, tmp_path, capsys):
    """A label volume against the slices of 32 x 32 that were cut from it, and the reverse, by numpy."""
    split = str(trained.scans.parent / "split.json")
    arguments = ["nifti", str(trained.scans), "--out", str(tmp_path / "data"), "--split_file", split, "--size", "32"]
    prepare.main(arguments)
    (tmp_path / "whole").mkdir()
    shutil.copy(trained.test_label, tmp_path / "whole" / "s3.nii.gz")
    capsys.readouterr()
    rows = score(tmp_path / "whole", tmp_path / "data" / "test", tmp_path / "a")
    assert [(float(row["dsc"]), float(row["hd95_mm"])) for row in rows] == [(1, 0)] * 3
    assert "note: 1 of 1 segmentations with voxels outside of the slices" in capsys.readouterr().out
    rows = score(tmp_path / "data" / "test", tmp_path / "whole", tmp_path / "b", labels=tmp_path / "data/dataset.json")
    array = sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(trained.test_label), "LPS"))
    cropped = np.zeros_like(array)
    cropped[:, 1:33, 4:36] = array[:, 1:33, 4:36]
    assert [float(row["dsc"]) for row in rows] == pytest.approx([dice(cropped, array, k) for k in (1, 2, 3)])


@pytest.mark.parametrize("change", ["slice", "size"])
def test_slices_are_compared_with_their_own(make_data, tmp_path, change):
    data = make_data(numbers=(1, 2))
    predictions = shutil.copytree(data / "test" / "GT", tmp_path / "predictions")
    last = predictions / "Subj_3slice_2.png"
    if change == "slice":
        last.unlink()
    for path in predictions.glob("*.png") if change == "size" else ():
        Image.open(path).crop((0, 0, 40, 40)).save(path)
    parts = ["has no slice 2"] if change == "slice" else ["40 x 40", "48 x 40"]
    refused(*parts, predictions=predictions, truth=data / "test", out=tmp_path / "run")


def test_masks_whose_own_table_says_otherwise_are_refused(make_data, tmp_path):
    """The same organs, of which one data set calls 126 what the other calls 63."""
    classes = {"a": ["background", "liver", "spleen"], "b": ["background", "spleen", "liver"]}
    for name, order in classes.items():
        shutil.copytree(make_data(numbers=(1, 2)) / "test", tmp_path / name / "test")
        (tmp_path / name / "dataset.json").write_text(
            json.dumps({"labels": dict(zip(order, (0, 63, 126), strict=True))})
        )
        for path in (tmp_path / name).glob("*/GT/*.png"):
            mask = np.random.default_rng(len(path.name)).integers(0, 2, (40, 48), np.uint8) * (path.name[-5] == "1")
            Image.fromarray(mask * np.uint8(63 * order.index("liver"))).save(path)
    sides = {"predictions": tmp_path / "a" / "test", "truth": tmp_path / "b" / "test", "out": tmp_path / "run"}
    refused(str(tmp_path / "a" / "dataset.json"), "other labels", **sides)
    refused(str(tmp_path / "b" / "dataset.json"), "other labels", labels=tmp_path / "a" / "dataset.json", **sides)
    shutil.copy(tmp_path / "b" / "dataset.json", tmp_path / "a")
    assert {row["class"] for row in score(**sides)} == {"liver", "spleen"}


# ---------------------------------------------------------------- names


def test_subjects_are_matched_by_name(pair, capsys):
    (pair["predictions"] / "c.nii.gz").write_bytes((pair["predictions"] / "a.nii.gz").read_bytes())
    # As nnU-Net leaves them, and as predict.py does.
    for name in ("dataset.json", "plans.json", "summary.json", "a.npz", "labels_itksnap.txt", "labels_slicer.ctbl"):
        (pair["predictions"] / name).write_text("{}")
    rows = score(**pair, **NAMED)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert lines == [f"note: {pair['predictions']}: 1 without a truth, left out: c"]
    assert [(row["subject"], row["class"]) for row in rows] == [
        (subject, name) for subject in "ab" for name in ("liver", "spleen")
    ]
    for row in rows:
        k = {"liver": 1, "spleen": 4}[row["class"]]
        arrays = [nib.load(pair[side] / f"{row['subject']}.nii.gz").get_fdata() for side in ("predictions", "truth")]
        assert float(row["dsc"]) == pytest.approx(dice(*arrays, k))


def test_a_truth_without_a_prediction_is_refused(pair):
    (pair["predictions"] / "b.nii.gz").unlink()
    refused("has no segmentation of 1 of 2 subjects: b", **pair, **NAMED)


def test_truths_without_a_prediction_can_be_left_out(pair, tmp_path, capsys):
    """The table is that of the subjects that are there; without any, there is nothing to score."""
    whole = [row for row in score(**pair, **NAMED) if row["subject"] == "a"]
    (pair["predictions"] / "b.nii.gz").unlink()
    assert score(**pair, **NAMED, partial=True) == whole
    assert "has no segmentation of 1 of 2 subjects: b; they are left out" in capsys.readouterr().out
    (pair["predictions"] / "a.nii.gz").rename(pair["predictions"] / "other.nii.gz")
    refused("has no segmentation of 2 of 2 subjects", **pair | {"out": tmp_path / "other"}, **NAMED, partial=True)


def test_groups_of_patients(pair, tmp_path):
    """A file may name the patients of other subjects too."""
    (tmp_path / "groups.json").write_text('{"a": "patient 1", "b": "patient 1", "c": "patient 2"}')
    for groups, expected in ((str(tmp_path / "groups.json"), "patient 1"), ("[ab]()|(.*)", None), ("(.).*", "a")):
        if expected is None:
            with pytest.raises(InputError, match="one pair of parentheses"):
                score(**pair, **NAMED, groups=groups)
            continue
        rows = score(**pair, **NAMED, groups=groups)
        assert {row["group"] for row in rows if row["subject"] == "a"} == {expected}


def test_patterns(pair, tmp_path):
    expected = score(**pair, **NAMED)
    for subject in "ab":
        (pair["predictions"] / f"{subject}.nii.gz").rename(pair["predictions"] / f"net_{subject}_pred.nii.gz")
        (pair["truth"] / subject).mkdir()
        (pair["truth"] / f"{subject}.nii.gz").rename(pair["truth"] / subject / "seg.nii.gz")
    patterns = {"prediction_names": "net_{subject}_pred.nii", "truth_names": "{subject}/seg.nii.gz"}
    assert score(**pair, **patterns, **NAMED) == expected
    other = pair | {"out": tmp_path / "other"}
    refused("must hold {subject}", **other, **NAMED, truth_names="seg.nii.gz")
    refused("holds no volumes named x{subject}.nii", **other, **NAMED, truth_names="x{subject}.nii")


def test_two_files_of_one_subject_are_refused(pair):
    Image.new("L", (8, 7)).save(pair["truth"] / "a.png")
    refused("a second file of a beside", **pair, **NAMED)


# ---------------------------------------------------------------- classes


@pytest.mark.parametrize("side", ["predictions", "truth"])
def test_an_unknown_value_is_refused(pair, side):
    array = np.zeros((8, 7, 6), np.uint8)
    array[1, 2, 3] = 3
    write(pair[side] / "b.nii.gz", array)
    refused(f"{pair[side] / 'b.nii.gz'}: unknown", "value 3", **pair, **NAMED)


def test_numbers_may_be_stored_as_floats(pair):
    expected = score(**pair, **NAMED)
    array = nib.load(pair["predictions"] / "a.nii.gz").get_fdata(dtype=np.float32)
    write(pair["predictions"] / "a.nii.gz", array)
    assert score(**pair, **NAMED) == expected
    write(pair["predictions"] / "a.nii.gz", array + 0.5)
    with pytest.raises(InputError, match="no class numbers"):
        score(**pair, **NAMED)


def test_numbers_may_be_stored_with_a_scale(pair):
    """nibabel spreads floats over the integers that a header wants: 1 becomes 64 times 4 / 255."""
    expected = score(**pair, **NAMED)
    image = nib.load(pair["predictions"] / "a.nii.gz")
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    nib.save(nib.Nifti1Image(image.get_fdata(), image.affine, header), pair["predictions"] / "a.nii.gz")
    stored = nib.load(pair["predictions"] / "a.nii.gz").get_fdata()
    assert 0.003 < np.abs(stored - np.rint(stored)).max() < 0.005
    assert score(**pair, **NAMED) == expected
    write(pair["predictions"] / "a.nii.gz", image.get_fdata(dtype=np.float32) / 1000)
    with pytest.raises(InputError, match="no class numbers"):
        score(**pair, **NAMED)


TABLES = {
    "ours": {
        "labels": {"background": 0, "liver": 9, "spleen": 7},
        "values": {"background": 0, "liver": 1, "spleen": 4},
    },
    "ours, of volumes": {"labels": {"background": 0, "liver": 1, "spleen": 4}},
    "nnU-Net": {"labels": {"spleen": 4, "background": 0, "liver": 1}, "channel_names": {"0": "CT"}},
    "Decathlon": {"labels": {"0": "Background", "1": "liver", "4": "spleen"}},
    "regions": {"labels": {"background": 0, "both": [1, 4], "liver": 1, "spleen": [4]}, "regions_class_order": [1, 4]},
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_of_classes(pair, tmp_path, kind):
    """Beside the truth, above it, or named; the values count, whatever their order is."""
    expected = {(row["subject"], row["class"]): row["dsc"] for row in score(**pair, **NAMED)}
    for place, options in (
        (pair["truth"] / "dataset.json", {}),
        (tmp_path / "dataset.json", {}),
        (tmp_path / "elsewhere.json", {"labels": tmp_path / "elsewhere.json"}),
    ):
        place.write_text(json.dumps(TABLES[kind]))
        rows = score(**pair, **options)
        assert {(r["subject"], r["class"]): r["dsc"] for r in rows if r.get("region") != "True"} == expected
        place.unlink()
    if kind == "regions":
        arrays = [nib.load(pair[side] / "a.nii.gz").get_fdata() > 0 for side in ("predictions", "truth")]
        (both,) = [float(row["dsc"]) for row in rows if row["class"] == "both" and row["subject"] == "a"]
        assert both == pytest.approx(dice(*arrays, 1))


def test_numbers_are_names_in_a_table_of_nnunet(pair):
    """Teeth are numbered; which of the two is the name, its type says."""
    expected = [row["dsc"] for row in score(**pair, names="4,1", values="1,4")]
    (pair["truth"] / "dataset.json").write_text('{"labels": {"background": 0, "4": 1, "1": 4}, "file_ending": ".gz"}')
    rows = score(**pair)
    assert [row["class"] for row in rows] == ["4", "1"] * 2
    assert [row["dsc"] for row in rows] == expected


def test_regions_whose_values_have_no_name(pair):
    (pair["truth"] / "dataset.json").write_text('{"labels": {"background": 0, "whole": [1, 4], "core": [4]}}')
    classes = [row["class"] for row in score(**pair)]
    assert classes == ["class 1", "core", "whole"] * 2


@pytest.mark.parametrize(
    ("labels", "part"),
    [
        ({"background": 0, "a": 1, "Ignore": 4}, "must be called ignore"),
        ({"background": 0, "a": [1, 4], "ignore": [5, 6]}, "nobody annotated"),
        ({"background": 0, "a": 1, "b": [1]}, "same value"),
        ({"background": 0, "a": [[1]]}, "must give each class a value"),
        ({"background": 0, "a": [1, "4"]}, "must give each class a value"),
        ({"background": 0, "a": [], "b": 1}, "must give each class a value"),
        ({"background": 0, "a": [0, 1]}, "background"),
        ({"background": 0, "class 1": 4, "a": [1, 4]}, "one name"),
        ({"background": 1, "a": [1, 4]}, "one name"),
        ([], "labels"),
    ],
)
def test_tables_that_mean_nothing_are_refused(pair, labels, part):
    (pair["truth"] / "dataset.json").write_text(json.dumps({"labels": labels, "channel_names": {"0": "CT"}}))
    refused("dataset.json", part, **pair)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({}, "not known which classes"),
        ({"names": "a,b", "values": "1"}, "values 1: 1 values for 2 --names"),
        ({"names": "a,b", "values": "1,x"}, "values 1,x: must be whole numbers"),
        ({"names": "a,a", "values": "1,4"}, "names a,a: must be names that differ"),
        ({"names": "a,b", "values": "1,1"}, "the same value"),
        ({"names": "a,IGNORE", "values": "1,4"}, "must be called ignore"),
        ({"names": "a,b", "labels": Path("x.json")}, "names: both names and --labels"),
        ({"labels": Path("missing.json")}, "missing.json: no such file"),
    ],
)
def test_options_that_cannot_work(pair, options, part):
    refused(part, **pair, **options)


@pytest.mark.parametrize("labels", [{"spleen": 2, "liver": 1}, {"a": 2, "b": 3}, {"spleen": 4, "liver": 1}])
def test_labels_whose_order_is_not_that_of_their_numbers_need_values(pair, labels):
    """Without values, main.py numbers classes by their order, and other programs mean the numbers."""
    content = {"labels": {"background": 0} | labels}
    (pair["truth"] / "dataset.json").write_text(json.dumps(content))
    refused("dataset.json: labels could be meant", **pair)


def test_names_are_matched_as_prepare_writes_them(pair):
    """A subject has letters, digits, dashes and underscores; predict.py calls segmentations as scans are."""
    expected = score(**pair, **NAMED)
    for side, names in (("truth", {"a": "pat-1-v2", "b": "b"}), ("predictions", {"a": "pat 1.v2", "b": "b"})):
        for name, new in names.items():
            (pair[side] / f"{name}.nii.gz").rename(pair[side] / f"{new}.nii.gz")
    rows = score(**pair | {"out": pair["out"].with_name("again")}, **NAMED)
    assert sorted(row["dsc"] for row in rows) == sorted(row["dsc"] for row in expected)
    swapped = {"predictions": pair["truth"], "truth": pair["predictions"], "out": pair["out"].with_name("swapped")}
    assert len(score(**swapped, **NAMED)) == len(rows)
    shutil.copy(pair["predictions"] / "b.nii.gz", pair["predictions"] / "pat.1 v2.nii.gz")
    refused("two segmentations would be of pat-1-v2", **pair | {"out": pair["out"].with_name("two")}, **NAMED)
    shutil.copy(pair["predictions"] / "pat 1.v2.nii.gz", pair["predictions"] / "pat-1-v2.nii.gz")  # which is it itself
    assert len(score(**pair | {"out": pair["out"].with_name("three")}, **NAMED)) == len(rows)


def test_groups_are_those_of_the_table(pair):
    content = TABLES["nnU-Net"] | {"groups": {"b": "patient"}}
    (pair["truth"] / "dataset.json").write_text(json.dumps(content))
    assert {row["subject"]: row["group"] for row in score(**pair)} == {"a": "a", "b": "patient"}


# ---------------------------------------------------------------- kinds of files


def test_pictures(tmp_path):
    """Masks in files are scored in 2D, in pixels; against pictures, and against what main.py writes for them."""
    rng = np.random.default_rng(1)
    arrays = rng.integers(0, 2, (2, 2, 40, 48), np.uint8)
    for folder, masks in zip(("predictions", "truth"), arrays, strict=True):
        (tmp_path / folder).mkdir()
        for subject, mask in zip("ab", masks, strict=True):
            Image.fromarray(255 * mask).save(tmp_path / folder / f"{subject}.png")
    rows = score(tmp_path / "predictions", tmp_path / "truth", tmp_path / "run")
    assert [float(row["dsc"]) for row in rows] == pytest.approx([dice(*pair, 1) for pair in zip(*arrays, strict=True)])
    assert "msd_mm" not in rows[0]
    assert read_json(tmp_path / "run" / "test.json")["per_image"]
    Image.fromarray(np.zeros((40, 47), np.uint8)).save(tmp_path / "predictions" / "b.png")
    with pytest.raises(InputError, match=r"b\.png: does not lie where"):
        score(tmp_path / "predictions", tmp_path / "truth", tmp_path / "run")


def test_pictures_of_another_size_than_their_truth(tmp_path):
    """Masks that `prepare.py png` has cropped, beside those of whole pictures."""
    mask = np.random.default_rng(3).integers(0, 2, (44, 52), np.uint8)
    for kind, values in (("images", 100 * mask), ("masks", 255 * mask)):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for subject in "abc":
            Image.fromarray(values).save(tmp_path / "photos" / kind / f"{subject}.png")
    patterns = ["--image", "images/{subject}.png", "--mask", "masks/{subject}.png", "--size", "40"]
    prepare.main(["png", str(tmp_path / "photos"), "--out", str(tmp_path / "data"), "--split", "1,1,1", *patterns])
    (tmp_path / "photos" / "masks" / "d.png").write_bytes((tmp_path / "photos" / "masks" / "a.png").read_bytes())
    table = read_json(tmp_path / "data" / "dataset.json")["labels"]
    predictions = tmp_path / "photos" / "masks"
    for path in predictions.iterdir():
        Image.fromarray(np.uint8(max(table.values())) * mask).save(path)
    rows = score(predictions, tmp_path / "data" / "test", tmp_path / "run")
    assert [float(row["dsc"]) for row in rows] == [1]
    assert read_json(tmp_path / "run" / "test.json")["per_image"]


@pytest.mark.slow
def test_dicom_series(tmp_path):
    """A folder for each subject, against the NIfTI file of the same voxels; slices in any order."""
    rng = np.random.default_rng(5)
    for folder in ("predictions", "truth"):
        for subject in "a":
            array = rng.integers(0, 3, (6, 9, 8), np.uint8)
            for k, pixels in enumerate(array):
                write_dicom(tmp_path / "dicom" / folder / subject / f"{9 - k}.dcm", pixels, slice_position(k))
            image = sitk.GetImageFromArray(array)
            image.SetOrigin(slice_position(0))
            image.SetSpacing((1.5, 1.25, 5.5))
            (tmp_path / "nifti" / folder).mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.DICOMOrient(image, "RAS"), tmp_path / "nifti" / folder / f"{subject}.nii.gz")
    dicom, nifti = tmp_path / "dicom", tmp_path / "nifti"
    expected = score(nifti / "predictions", nifti / "truth", tmp_path / "a", names="a,b")
    for k, (first, second) in enumerate([(dicom, dicom), (nifti, dicom), (dicom, nifti)]):
        rows = score(first / "predictions", second / "truth", tmp_path / f"b{k}", names="a,b")
        for ours, theirs in zip(rows, expected, strict=True):
            assert float(ours["dsc"]) == float(theirs["dsc"])
            assert float(ours["hd95_mm"]) == pytest.approx(float(theirs["hd95_mm"]), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("places", "angles"), [("files", (20, -30, 10)), ("folders", (0, 0, 0))])
def test_dicom_segmentations(tmp_path, places, angles):
    """Against NIfTI files of the same voxels, whichever slices the files leave out."""
    direction = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    rng = np.random.default_rng(7)
    for folder, filled in (("predictions", (2, 4, 9)), ("truth", (2, 3, 6))):
        for subject in "ab":
            array = np.zeros((12, 6, 7), np.uint16)
            array[list(filled), :, :] = rng.integers(0, 3, (3, 6, 7))
            name = f"{subject}.dcm" if places == "files" else f"{subject}/1.dcm"
            save_seg(tmp_path / "seg" / folder / name, array, direction)
            image = sitk.GetImageFromArray(array.astype(np.uint8))
            image.SetOrigin(slice_position(0).tolist())
            image.SetSpacing((1.5, 1.25, 5.5))
            image.SetDirection(direction.ravel().tolist())
            (tmp_path / "nifti" / folder).mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.DICOMOrient(image, "RAS"), tmp_path / "nifti" / folder / f"{subject}.nii.gz")
    seg, nifti = tmp_path / "seg", tmp_path / "nifti"
    expected = score(nifti / "predictions", nifti / "truth", tmp_path / "a", names="a,b")
    for k, (first, second) in enumerate([(seg, nifti), (nifti, seg), (seg, seg)]):
        rows = score(first / "predictions", second / "truth", tmp_path / f"b{k}", names="a,b")
        for ours, theirs in zip(rows, expected, strict=True):
            assert float(ours["dsc"]) == pytest.approx(float(theirs["dsc"]))
            assert float(ours["msd_mm"]) == pytest.approx(float(theirs["msd_mm"]), rel=1e-4)


def test_a_dicom_segmentation_of_one_slice_lies_in_its_volume(tmp_path):
    array = np.zeros((5, 6, 7), np.uint16)
    array[3, 2:5, 2:6] = 1
    seg = save_seg(tmp_path / "seg.dcm", array)
    affine = np.diag([-1.5, -1.25, 5.5, 1])
    affine[:3, 3] = slice_position(0) * (-1, -1, 1)
    volume = write(tmp_path / "volume.nii.gz", array.T.astype(np.uint8), affine)
    for k, pair in enumerate([(seg, volume), (volume, seg)]):
        assert [float(row["dsc"]) for row in score(*pair, tmp_path / str(k), names="a")] == [1]
    volume = write(tmp_path / "volume.nii.gz", array.T.astype(np.uint8), affine @ np.diag([1, 1, 0.9, 1]))
    refused("does not lie where", predictions=seg, truth=volume, out=tmp_path / "run", names="a")


def test_a_dicom_segmentation_beside_slices_that_were_cut_from_its_scan(tmp_path):
    """It leaves out the outer slices, of which the data set has some; its own columns are more."""
    array = np.zeros((9, 40, 44), np.uint16)
    array[3:6] = np.random.default_rng(4).integers(0, 3, (3, 40, 44))
    affine = np.diag([-1.5, -1.25, 5.5, 1])
    affine[:3, 3] = slice_position(0) * (-1, -1, 1)
    for subject in "abc":
        write(tmp_path / "scans" / f"image_{subject}.nii.gz", array.T.astype(np.uint8), affine)
        write(tmp_path / "scans" / f"label_{subject}.nii.gz", array.T.astype(np.uint8), affine)
        save_seg(tmp_path / "segs" / f"{subject}.dcm", array)
    arguments = ["--out", str(tmp_path / "data"), "--split", "1,1,1", "--size", "36"]
    prepare.main(["nifti", str(tmp_path / "scans"), *arguments])
    for number in (1, 9):
        for path in tmp_path.glob(f"data/test/*/Subj_*slice_{number}.png"):
            path.unlink()
    rows = score(tmp_path / "segs", tmp_path / "data" / "test", tmp_path / "run")
    assert [(float(row["dsc"]), float(row["hd95_mm"])) for row in rows] == [(1, 0), (1, 0)]


# ---------------------------------------------------------------- the run


def test_a_run_holds_no_other(pair, trained, tmp_path, capsys):
    score(**pair, **NAMED)
    score(**pair, **NAMED)  # in the place of an earlier one
    assert tree(pair["out"]) == {"evaluation.json", "test.csv", "test.json", "report.html"}
    before = tree(trained.run)
    for out, part in (
        (trained.run, "holds"),
        (pair["truth"], "lies in"),
        (pair["truth"] / "run", "lies in"),
        (tmp_path, "holds"),
    ):
        sources = Sources(pair["predictions"], pair["truth"], **NAMED)
        error = error_of(capsys, evaluate.main, evaluate.Options(sources, out))
        assert f"--out {out}: {part}" in error
    assert tree(trained.run) == before


def test_the_page_shows_images_and_masks(pair, tmp_path):
    """Also when it is written again, with images in another grid of the same space."""
    rng = np.random.default_rng(2)
    for subject in "ab":
        write(tmp_path / "images" / f"{subject}_0000.nii.gz", rng.normal(size=(16, 7, 6)), np.diag([0.75, 1, 3, 1]))
    score(**pair, **NAMED, images=tmp_path / "images", image_names="{subject}_0000.nii.gz")
    page = (pair["out"] / "report.html").read_text()
    (pair["truth"] / "dataset.json").write_text("{")  # which was not there before
    report.main(report.Options((str(pair["out"]),), device="cpu"))
    again = (pair["out"] / "report.html").read_text()
    assert again == page
    viewer = json.loads(page.split('id="data">')[1].split("</script>")[0])["viewer"]
    assert {subject["subject"] for subject in viewer["subjects"]} == {"a", "b"}
    assert all(subject["size"] == [7, 8] and subject["numbers"] == [1, 2, 3, 4, 5, 6] for subject in viewer["subjects"])
    assert len({image for subject in viewer["subjects"] for image in subject["images"]}) == 12


def test_images_lie_where_slices_are_missing(tmp_path):
    """Truth slices 1, 2, 5 and 6 of a scan whose slice k has the grey 10 k: their images are of these slices."""
    numbers, size = (1, 2, 5, 6), (40, 48)
    geometry = {
        "spacing": [1, 1, 3],
        "size": [48, 40, 6],
        "origin": [0, 0, 0],
        "direction": [1, 0, 0, 0, 1, 0, 0, 0, 1],
    }
    for kind in ("predictions", "truth"):
        (tmp_path / kind / "GT").mkdir(parents=True)
        for number in numbers:
            Image.fromarray(np.full(size, number % 2, np.uint8)).save(
                tmp_path / kind / "GT" / f"Subj_aslice_{number}.png"
            )
        content = {"labels": {"background": 0, "organ": 1}, "subjects": {"a": geometry}}
        (tmp_path / kind / "dataset.json").write_text(json.dumps(content))
    scan = np.broadcast_to(10.0 * np.arange(1, 7), (48, 40, 6)).astype(np.float32)
    write(tmp_path / "images" / "a.nii.gz", scan, np.diag([-1.0, -1.0, 3.0, 1.0]))
    sources = Sources(*(tmp_path / kind / "GT" for kind in ("predictions", "truth")), images=tmp_path / "images")
    evaluation = Evaluation(sources)
    pictures = evaluation.pictures(evaluation.compare("a"))
    np.testing.assert_allclose(pictures.mean((1, 2, 3)), [0, 0.2, 0.8, 1], atol=0.03)


def test_a_page_of_changed_segmentations_has_no_slices(pair, capsys):
    score(**pair, **NAMED)
    shutil.copy(pair["truth"] / "a.nii.gz", pair["predictions"] / "a.nii.gz")
    report.main(report.Options((str(pair["out"]),), device="cpu"))
    assert "subject a is not what was scored; evaluate again" in capsys.readouterr().out
    assert '"viewer":null' in (pair["out"] / "report.html").read_text()
    with pytest.raises(InputError, match="subject a is not what was scored"):
        report.main(report.Options((str(pair["out"]),), figure=pair["out"] / "figures", device="cpu"))


def test_no_old_page_stands_beside_new_scores(pair, monkeypatch):
    score(**pair, **NAMED)
    monkeypatch.setattr(evaluate, "scored", lambda *_: (_ for _ in ()).throw(MemoryError))
    score(**pair, **NAMED)
    assert tree(pair["out"]) == {"evaluation.json", "test.csv", "test.json"}


def test_a_comparison_does_not_replace_the_page_of_a_run(pair):
    score(**pair, **NAMED)
    before, run = (pair["out"] / "report.html").read_bytes(), str(pair["out"])
    with pytest.raises(InputError, match="is the folder of a run; choose another folder"):
        report.main(report.Options((run,), against="run", out=pair["out"], device="cpu"))
    with pytest.raises(InputError, match="is the folder of a run; choose another folder"):
        reproduce.main(["compare", run, "--out", run])
    assert (pair["out"] / "report.html").read_bytes() == before
    assert tree(pair["out"]) == {"evaluation.json", "test.csv", "test.json", "report.html"}


def test_subjects_without_an_image_are_named(pair, tmp_path, capsys):
    write(tmp_path / "images" / "a_0000.nii.gz", np.zeros((8, 7, 6), np.float32))
    score(**pair, **NAMED, images=tmp_path / "images")
    assert f"{tmp_path / 'images'}: has no image of a, b; where files have other names" in capsys.readouterr().out


@pytest.mark.parametrize("across", range(3))
def test_single_slices_are_images_whatever_is_known_of_them(tmp_path, capsys, across):
    """A slice of known spacing is scored in 2D, in mm, and is called so."""
    shape = [20, 24, 22]
    shape[across] = 1
    for kind in ("predictions", "truth"):
        write(tmp_path / kind / "a.nii.gz", np.random.default_rng(len(kind)).integers(0, 2, shape).astype(np.uint8))
    score(tmp_path / "predictions", tmp_path / "truth", tmp_path / "run", names="organ")
    output = capsys.readouterr().out
    assert "1 image, mean" in output and "HD95 mm" in output and "3D" not in output


def test_of_many_voxels_only_the_worst_subjects_are_on_the_page(pair, monkeypatch):
    rows = score(**pair, **NAMED)
    means = {subject: np.mean([float(row["dsc"]) for row in rows if row["subject"] == subject]) for subject in "ab"}
    monkeypatch.setattr(evaluate, "SHOWN", 10)
    score(**pair, **NAMED)
    page = (pair["out"] / "report.html").read_text()
    viewer = json.loads(page.split('id="data">')[1].split("</script>")[0])["viewer"]
    assert [subject["subject"] for subject in viewer["subjects"]] == [min(means, key=means.get)]
    assert viewer["left_out"] == 1


@pytest.mark.parametrize("content", ["[]", "{}", '{"predictions": 1, "truth": 2}', "[[", '"x"'])
def test_a_run_that_was_changed_has_a_page_without_slices(pair, capsys, content):
    score(**pair, **NAMED)
    (pair["out"] / "evaluation.json").write_text(content)
    capsys.readouterr()
    with contextlib.suppress(InputError):
        report.main(report.Options((str(pair["out"]),), device="cpu"))
        assert "note: no slices in the page" in capsys.readouterr().out


def test_images_that_do_not_fit_are_left_out(pair, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    Image.new("L", (5, 5)).save(tmp_path / "images" / "a.png")
    score(**pair, **NAMED, images=tmp_path / "images")
    assert "note: no image of a: " in capsys.readouterr().out


@pytest.mark.slow
def test_beside_a_run_of_main(trained, tmp_path):
    """Tables, pages and figures of several runs take it."""
    score(trained.run / "predictions", trained.data / "test", tmp_path / "again")
    rows = (f"Trained={trained.run}", f"Scored={tmp_path / 'again'}")
    report.main(report.Options(rows, out=tmp_path / "page", device="cpu"))
    report.main(report.Options(rows, figure=tmp_path / "figures", device="cpu"))
    assert "Scored" in (tmp_path / "page" / "report.html").read_text()
    reproduce.main(["compare", *rows, "--out", str(tmp_path / "table")])
    table = read_csv(tmp_path / "table" / "table.csv")
    assert {row["row"] for row in table} == {"Trained", "Scored"}
    assert (tmp_path / "figures" / "grid.png").stat().st_size > 3000
