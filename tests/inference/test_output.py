"""Results in one folder: of several calls, of several processes, under names that could meet, with truth of others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import predict
from inference.output import OutputFolder
from inference.results import Segmentation
from tests.helpers.errors import assert_one_line
from tests.helpers.files import tree
from tests.helpers.scans import slice_position, write_dicom
from utils import LONGEST_NAME, InputError, read_csv

ROOT = Path(__file__).parents[2]


def run(checkpoint: Path, *scans: Path, out: Path, **options: object) -> None:
    """python predict.py CHECKPOINT SCAN ... on the CPU."""
    predict.main(predict.Options(str(checkpoint), tuple(map(str, scans)), out, device="cpu", **options))


def scans_in(table: Path, column: str) -> list[str]:
    """The scans of a table's rows, each once, in their order."""
    return list(dict.fromkeys(row[column] for row in read_csv(table)))


def copied(trained, folder: Path, *names: str) -> list[Path]:
    """The test scan under other names."""
    folder.mkdir(exist_ok=True)
    return [Path(shutil.copy(trained.test_scan, folder / f"{name}.nii.gz")) for name in names]


# ---------------------------------------------------------------- several calls


@pytest.mark.slow
def test_tables_keep_the_rows_of_what_lies_there(trained, tmp_path):
    out, scans = tmp_path / "out", copied(trained, tmp_path / "in", "a", "b")
    run(trained.checkpoint, scans[0], out=out, truth=(trained.test_label,))
    first = (out / "volumes.csv").read_text(), (out / "scores.csv").read_text()
    run(trained.checkpoint, scans[1], out=out, truth=(trained.test_label,))
    assert scans_in(out / "volumes.csv", "scan") == scans_in(out / "scores.csv", "subject") == ["a", "b"]
    assert (out / "volumes.csv").read_text().startswith(first[0])
    assert (out / "scores.csv").read_text().startswith(first[1])
    run(trained.checkpoint, scans[0], out=out)
    assert scans_in(out / "volumes.csv", "scan") == ["b", "a"]
    assert scans_in(out / "scores.csv", "subject") == ["b"], "the scores of a segmentation that was replaced"
    run(trained.checkpoint, scans[1], out=out)
    assert not (out / "scores.csv").exists()
    assert len(read_csv(out / "volumes.csv")) == 2 * 3


def test_scans_of_one_name_in_two_calls_do_not_replace_each_other(trained, tmp_path):
    """As in a loop over patients, whose scans are all called T1; one that was moved may be segmented again."""
    first, second = (copied(trained, tmp_path / patient, "T1")[0] for patient in ("p1", "p2"))
    out = tmp_path / "out"
    run(trained.checkpoint, first, out=out)
    kept = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(InputError) as caught:
        run(trained.checkpoint, second, out=out)
    assert_one_line(caught.value, str(first), str(second), "called T1, too", "another --out")
    assert {path: path.read_bytes() for path in out.iterdir()} == kept
    second.unlink()
    second.symlink_to(first)
    run(trained.checkpoint, second, out=out)  # the same file
    moved = shutil.move(first, tmp_path / "T1.nii.gz")
    run(trained.checkpoint, moved, out=out)
    assert {row["file"] for row in read_csv(out / "volumes.csv")} == {str(moved)}


def test_folders_whose_names_are_no_text(trained, tmp_path):
    """NIfTI files are read from anywhere; the table says where they are as well as it can."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller"))
    folder.mkdir()
    scan = copied(trained, folder, "a")[0]
    run(trained.checkpoint, scan, out=tmp_path / "out")
    assert {row["file"] for row in read_csv(tmp_path / "out" / "volumes.csv")} == {f"{tmp_path}/M\\xfcller/a.nii.gz"}
    run(trained.checkpoint, scan, out=tmp_path / "out")


def test_processes_that_write_at_one_time_lose_no_rows(tmp_path):
    script = (
        "import sys; from pathlib import Path; from inference.output import OutputFolder\n"
        "output = OutputFolder(Path(sys.argv[1]), set())\n"
        "for k in range(10): output.replace_rows('volumes.csv', sys.argv[2] + str(k), [{'scan': sys.argv[2] + str(k)}])"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), name], cwd=ROOT) for name in "pq"]
    assert [process.wait() for process in processes] == [0, 0]
    assert set(scans_in(tmp_path / "volumes.csv", "scan")) == {f"{name}{k}" for name in "pq" for k in range(10)}


def test_rows_of_names_that_spreadsheets_would_compute_are_replaced_and_kept(tmp_path):
    output = OutputFolder(tmp_path, set())
    for name, count in (("-a", 1), ("=b", 1), ("-a", 2)):
        output.replace_rows("volumes.csv", name, [{"scan": name, "class": "+c", "voxels": count}])
    rows = [{"scan": "=b", "class": "+c", "voxels": "1"}, {"scan": "-a", "class": "+c", "voxels": "2"}]
    assert read_csv(tmp_path / "volumes.csv") == rows


@pytest.mark.parametrize("content", [b"", b"name,age\nx,3\n", b"\xff\xfe", b"scan,class\na,b,c\n", b'scan\n"a\n'])
def test_a_table_of_something_else_is_not_replaced(tmp_path, content):
    (tmp_path / "volumes.csv").write_bytes(content)
    with pytest.raises(InputError) as caught:
        OutputFolder(tmp_path, set())
    assert_one_line(caught.value, "volumes.csv: is no table of predict.py", "choose another --out")
    assert (tmp_path / "volumes.csv").read_bytes() == content


# ---------------------------------------------------------------- names that meet


@pytest.mark.slow
@pytest.mark.parametrize("names", [("x", "x_probabilities"), ("x_probabilities", "x")])
def test_probabilities_replace_no_segmentation(trained, tmp_path, names):
    out, scans = tmp_path / "out", copied(trained, tmp_path / "in", *names)
    with pytest.raises(InputError) as caught:
        run(trained.checkpoint, *scans, out=out, probabilities=True)
    assert_one_line(caught.value, "x_probabilities.nii.gz: would be a result of", "choose another --out")
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(InputError, match="would be a result of"):  # of two calls
        run(trained.checkpoint, scans[1], out=out, probabilities=True)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    run(trained.checkpoint, scans[0], out=out, probabilities=True)


@pytest.mark.slow
def test_results_of_an_earlier_call_that_stay_are_named(trained, tmp_path, capsys):
    out, scans = tmp_path / "out", copied(trained, tmp_path / "in", "x", "x_dicom")
    run(trained.checkpoint, scans[0], out=out, probabilities=True)
    run(trained.checkpoint, *scans, out=out)
    assert capsys.readouterr().out.count("x_probabilities.nii.gz is of an earlier call") == 1


def test_names_that_are_too_long_are_refused_before_the_work(tmp_path):
    output = OutputFolder(tmp_path, {"probabilities"})
    longest = LONGEST_NAME - len("_probabilities.nii.gz")
    output.claim("ä" * (longest // 2), is_picture=False)
    with pytest.raises(InputError, match="has a name that is too long to be written; rename the scan"):
        output.claim("ä" * (longest // 2 + 1), is_picture=False)


@pytest.mark.parametrize("linked", [False, True])
def test_a_series_replaces_no_scan(trained, tmp_path, linked):
    for name in ("s", "s_dicom"):
        for k in range(3):
            pixels = np.random.default_rng(k).integers(0, 500, (34, 40))
            write_dicom(tmp_path / "in" / name / f"{k}.dcm", pixels, slice_position(k))
    if linked:
        (tmp_path / "in" / "s_dicom").rename(tmp_path / "other")
        (tmp_path / "in" / "s_dicom").symlink_to(tmp_path / "other")
    scans = [tmp_path / "in" / "s", tmp_path / "other" if linked else tmp_path / "in" / "s_dicom"]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.dcm")}
    with pytest.raises(InputError, match=r"would replace .*; choose another folder"):
        run(trained.checkpoint, *scans, out=tmp_path / "in", dicom_series=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.dcm")} == before


@pytest.mark.parametrize(("error", "code"), [(InputError("no"), 2), (OSError(28, "No space left on device"), 1)])
def test_a_failure_of_a_series_stops_neither_the_other_scans_nor_the_tables(
    trained, tmp_path, monkeypatch, capsys, error, code
):
    def write(out: Path, segmentation: Segmentation) -> None:
        if segmentation.scan.name == "a":
            raise error

    monkeypatch.setattr(predict, "write_dicom_series", write)
    scans = [tmp_path / "in" / name for name in "ab"]
    for path in scans:
        write_dicom(path / "1.dcm", np.random.default_rng(0).integers(0, 500, (34, 40)), slice_position(0))
    with pytest.raises(SystemExit) as ending:
        run(trained.checkpoint, *scans, out=tmp_path / "out", dicom_series=True)
    assert ending.value.code == code
    line = capsys.readouterr().err
    assert line.startswith("error: a: not written as DICOM: ") and line.count("\n") == 1
    assert scans_in(tmp_path / "out" / "volumes.csv", "scan") == ["a", "b"]
    assert {"a.nii.gz", "b.nii.gz"} <= tree(tmp_path / "out")


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".0123456789abcdef.partial.x.nii.gz").write_text("half")
    (tmp_path / ".mine.partial.txt").write_text("kept")
    OutputFolder(tmp_path, set())
    assert tree(tmp_path) == {".mine.partial.txt"}


# ---------------------------------------------------------------- truth of others


def test_one_label_volume_is_no_truth_of_several_subjects(trained, tmp_path):
    data = shutil.copytree(trained.data, tmp_path / "data")
    for path in data.glob("test/*/*.png"):
        shutil.copy(path, path.with_name(path.name.replace("Subj_s3", "Subj_s4")))
    with pytest.raises(InputError, match=r"is one file, and .*data/test holds several subjects; give a folder"):
        run(trained.checkpoint, data / "test", out=tmp_path / "out", truth=(trained.test_label,))
    assert not (tmp_path / "out" / "scores.csv").exists()


def truth_of(trained, folder: Path, subject: dict | None = None, **entries: object) -> Path:
    """A copy of the test masks, whose dataset.json says something else of the subject, or of all."""
    data = shutil.copytree(trained.data, folder)
    content = json.loads((data / "dataset.json").read_text()) | entries
    content["subjects"]["s3"] |= subject or {}
    (data / "dataset.json").write_text(json.dumps(content))
    return data / "test" / "GT"


@pytest.mark.parametrize("scan", ["volume", "slices"])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda entry: {"spacing": [2 * entry["spacing"][0], *entry["spacing"][1:]]}, "another spacing"),
        (lambda entry: {"origin": [*entry["origin"][:2], entry["origin"][2] + entry["spacing"][2]]}, "another origin"),
        (lambda entry: {"direction": [-value for value in entry["direction"]]}, "another direction"),
        (lambda entry: {"size": [*entry["size"][:2], 4]}, "another size"),
    ],
)
def test_masks_that_lie_elsewhere_are_no_truth(trained, tmp_path, scan, change, expected):
    entry = json.loads((trained.data / "dataset.json").read_text())["subjects"]["s3"]
    truth = truth_of(trained, tmp_path / "data", change(entry))
    source = Path(shutil.copy(trained.test_scan, tmp_path / "s3.nii.gz"))
    if scan == "slices":
        source = trained.data / "test"
    with pytest.raises(InputError) as caught:
        run(trained.checkpoint, source, out=tmp_path / "out", truth=(truth,))
    assert_one_line(caught.value, "GT: its dataset.json says that the masks of subject s3 have", expected)


def test_masks_that_were_prepared_otherwise_are_no_truth(trained, tmp_path):
    preparation = json.loads((trained.data / "dataset.json").read_text())["preparation"]
    truth = truth_of(trained, tmp_path / "data", preparation=preparation | {"axis": "coronal"})
    with pytest.raises(InputError, match=r"GT: .*\(axis .* -> coronal\)"):
        run(trained.checkpoint, trained.data / "test", out=tmp_path / "out", truth=(truth,))


def test_rounded_positions_are_those_of_the_scan(trained, tmp_path):
    entry = json.loads((trained.data / "dataset.json").read_text())["subjects"]["s3"]
    rounded = {
        key: np.float32(entry[key]).round(4).astype(float).tolist() for key in ("spacing", "origin", "direction")
    }
    truth = truth_of(trained, tmp_path / "data", rounded)
    run(trained.checkpoint, trained.data / "test", out=tmp_path / "out", truth=(truth,))
    assert scans_in(tmp_path / "out" / "scores.csv", "subject") == ["s3"]


@pytest.mark.parametrize(("numbers", "expected"), [((0, 1, 2, 3), "slice_0.png: is the mask of a slice"),
                                                    ((1, 2), "has no mask of subject s3, slice 3")])  # fmt: skip
def test_other_numbers_of_masks_are_no_truth(trained, tmp_path, numbers, expected):
    for number in numbers:
        mask = trained.data / "test" / "GT" / f"Subj_s3slice_{max(1, number)}.png"
        shutil.copy(mask, tmp_path / f"Subj_s3slice_{number}.png")
    with pytest.raises(InputError, match=expected):
        run(trained.checkpoint, trained.data / "test", out=tmp_path / "out", truth=(tmp_path,))
