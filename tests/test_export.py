"""The command export.py and examples/segment_onnx.py: beside PyTorch, and beside predict.py."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import nn

import export
import predict
from config import Config
from data.description import Labels
from data.folder import Identity
from data.geometry import Geometry
from data.preparation import Preparation
from inference.networks import Ensemble, load_network
from inference.results import on_own_grid
from inference.scans import read_scans
from models import build_model
from tests.helpers import networks
from tests.helpers.errors import assert_one_line, error_of
from tests.helpers.scans import ORIENTATIONS
from training.checkpoint import save_checkpoint
from training.device import Machine
from utils import InputError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
EXAMPLE = Path(__file__).parents[1] / "examples" / "segment_onnx.py"
LABELS = Labels(
    ("background", "left", "right", "both"), (0, 10, 20, 30), (0, 63, 252, 500), mirror=(("left", "right"),)
)
HERE = "tests.helpers.own_code"


def checkpoint(path: Path, preparation: Preparation | None = None, channels: int = 1, **options: Any) -> Path:
    """A checkpoint as main.py writes it, of a network whose weights are random, also those that start at 0 or 1."""
    torch.manual_seed(28)  # with which the tiny network finds every class somewhere
    config = Config.of(classes=4, channels=channels, amp="off", **options)
    network = build_model(config)
    for name, parameter in network.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.5)
        elif name.startswith(("decoder.head", "refined_heads", "network.head", "head", "layers.3")):
            parameter.data *= 10  # so that no class is everywhere
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    names = tuple(f"channel {k}" for k in range(channels)) if channels > 1 else ()
    identity = Identity(LABELS, preparation, names, Geometry(size=(50, 40, 1)), "a", "b", "c")
    save_checkpoint(path, {"config": config.to_dict(), "data": identity.to_dict(), "model": network.state_dict()})
    return path


def exported(folder: Path, **options: Any) -> Path:
    """best.pt and network.onnx in a folder; returns the latter."""
    path = checkpoint(folder / "best.pt", **options)
    export.main(export.Options(path, folder / "network.onnx"))
    return folder / "network.onnx"


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory) -> Path:
    """The tiny network of one channel as ONNX, beside its checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        networks.register(patch)
        yield exported(tmp_path_factory.mktemp("tiny"), model="tiny", preparation=Preparation(size=36))


def described(file: Path, target: Path, **entries: Any) -> Path:
    """The file with other entries in its description."""
    model = onnx.load(file)
    (entry,) = model.metadata_props
    entry.value = json.dumps(json.loads(entry.value) | entries)
    onnx.save(model, target)
    return target


# ---------------------------------------------------------------- the file


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"model": "tiny", "channels": 3},
        {"model": f"{HERE}:Parts"},
        {"model": f"{HERE}:Logits(dropout=0.5)"},
        {"model": f"{HERE}:Adaptive"},
        {"backbone": "resnet18", "steps": 1, "semantic_channels": 8},
    ],
    ids=["tiny", "parts", "own", "adaptive", "paper"],
)
def test_the_file_gives_pytorchs_probabilities_at_any_size(options, tiny, tmp_path):
    file = exported(tmp_path, **options)
    network = load_network(tmp_path / "best.pt", torch.device("cpu")).model
    session = onnxruntime.InferenceSession(file)
    rng = np.random.default_rng(1)
    shapes = [(1, 32, 32), (2, 48, 64), (1, 97, 33), (3, 41, 130), *((1, *rng.integers(32, 180, 2)) for _ in range(4))]
    spread = []
    for batch, *sides in shapes:
        image = rng.random((batch, options.get("channels", 1), *sides), np.float32)
        (found,) = session.run(["probabilities"], {"image": image})
        with torch.inference_mode():
            logits = network(torch.from_numpy(image)).numpy()
        weights = np.exp(logits - logits.max(1, keepdims=True))
        np.testing.assert_allclose(found, weights / weights.sum(1, keepdims=True), rtol=0, atol=1e-5)
        spread.append(found.std((2, 3)).max())
    assert min(spread) > 1e-3, "the probabilities would be the same everywhere"


@pytest.mark.slow
def test_the_file_says_what_its_network_needs(tiny_file):
    session = onnxruntime.InferenceSession(tiny_file)
    (image,), (probabilities,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(float)", ["batch", 1, "height", "width"])
    assert (probabilities.name, probabilities.shape) == ("probabilities", ["batch", 4, "height", "width"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["segmentation"]) == {
        "version": 1,
        "network": "tiny",
        "classes": ["background", "left", "right", "both"],
        "values": [0, 63, 252, 500],
        "codes": [0, 10, 20, 30],
        "mirror": [["left", "right"]],
        "mirror_axis": "",
        "channels": [],
        "preparation": {
            "axis": "acquired", "size": 36, "spacing": None, "normalize": "slice", "window": None, "bits": 8
        },
        "typical": {"size": [50, 40, 1]},
        "largest_component": False,
    }  # fmt: skip
    assert str(Path.cwd()).encode() not in tiny_file.read_bytes()


@pytest.mark.parametrize(
    "result",
    [
        lambda image: np.full((len(image), 4, *image.shape[2:]), 0.25, np.float32),
        lambda image: np.full((len(image), 4, *image.shape[2:]), np.nan, np.float32),
        lambda image: np.zeros((1, 4, 1, 1), np.float32),
    ],
    ids=["values", "nan", "shape"],
)
def test_a_file_that_differs_is_not_written(result, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "write", lambda path, *_: path.write_text("translated"))
    monkeypatch.setattr(export, "run", lambda path, images: [result(image) for image in images])
    (tmp_path / "network.onnx").write_text("earlier")
    path = checkpoint(tmp_path / "best.pt", model="tiny")
    error = error_of(capsys, export.main, export.Options(path, tmp_path / "network.onnx"))
    assert "best.pt" in error and "more than 0.001" in error
    assert (tmp_path / "network.onnx").read_text() == "earlier"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["best.pt", "network.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["OnlyOneSize", "Branches", "Values"])
def test_networks_that_onnx_cannot_hold_are_refused(tmp_path, capsys, what):
    """Images of one size; another formula for high images than for wide ones; a look at values."""
    path = checkpoint(tmp_path / "best.pt", model=f"{HERE}:{what}")
    assert "best.pt" in error_of(capsys, export.main, export.Options(path, tmp_path / "network.onnx"))
    assert not (tmp_path / "network.onnx").exists()


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_without_a_library(missing, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    error = error_of(capsys, export.main, export.Options(tmp_path / "best.pt", tmp_path / "network.onnx"))
    assert f"pip install {missing}" in error


@pytest.mark.parametrize("name", ["network.pt", "folder.onnx", "best.onnx"])
def test_names_that_the_file_cannot_have(name, tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(InputError) as caught:
        export.main(export.Options(tmp_path / "best.onnx", tmp_path / name))
    assert_one_line(caught.value, name, "must be")


# ---------------------------------------------------------------- the example


def write_nifti(path: Path, values: np.ndarray, code: str, angles=(0, 0, 0), spacing=(1.25, 0.8, 7.7)) -> Path:
    """Values (x, y, z) or with channels behind, whose axes lead to a code such as LAS, turned by angles in degrees."""
    ornt = nib.orientations.axcodes2ornt(code)
    axes = np.zeros((3, 3))
    for k, (axis, sign) in enumerate(ornt):
        axes[int(axis), k] = sign
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ axes * spacing
    affine[:3, 3] = (-30.5, 12.25, 100)
    nib.Nifti1Image(values, affine).to_filename(path)
    return path


def by_example(file: Path, *scans: Path, out: Path) -> np.ndarray:
    """The voxels of the example's segmentation, which lies where the scan does."""
    out.unlink(missing_ok=True)
    runpy.run_path(str(EXAMPLE))["main"](str(file), *map(str, scans), out=str(out))
    found, scan = nib.load(out), nib.load(scans[0])
    np.testing.assert_array_equal(found.affine, scan.affine)
    assert found.shape == scan.shape[:3]
    assert all(found.header[key] == scan.header[key] for key in ("qform_code", "sform_code", "xyzt_units"))
    return np.asanyarray(found.dataobj)


def by_predict(
    path: Path, *scans: Path, preparation: Preparation | None, largest: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The voxels of the segmentation of predict.py, and the least distance of two probabilities that it chose from."""
    trained = load_network(path, torch.device("cpu"))
    config = trained.config.change(largest_component=largest)
    trained = replace(trained, config=config, identity=replace(trained.identity, preparation=preparation))
    ensemble = Ensemble([trained], Machine(torch.device("cpu"), torch.float32, workers=0), batch_size=3, flips=False)
    (scan,) = read_scans(",".join(map(str, scans)), "scan", ensemble)
    probabilities = ensemble.probabilities(scan.images, scan.geometry, scan.name)
    first, second = np.sort(probabilities, 0)[:-3:-1]
    values = on_own_grid(scan, probabilities, ensemble).values
    return values.T, (first - second).min()


PREPARATIONS = st.builds(
    Preparation,
    axis=st.sampled_from(["acquired", "axial", "coronal", "sagittal"]),
    size=st.sampled_from([None, 32, 37, 60]),
    normalize=st.sampled_from(["slice", "volume", "percentiles"]),
    window=st.sampled_from([None, None, (90.0, 33.5)]),
    bits=st.sampled_from([8, 16]),
)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    preparation=PREPARATIONS,
    code=st.sampled_from(ORIENTATIONS),
    angles=st.tuples(*[st.floats(-20, 20)] * 3),
    spacing=st.permutations([1.25, 0.8, 7.7]) | st.just([1.25, 1.0, 1.3]),
    single=st.sampled_from([None, None, 0, 1, 2]),
    dtype=st.sampled_from([np.uint8, np.int16, np.float32, np.float64]),
    largest=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_example_is_predict(tiny_file, tmp_path, preparation, code, angles, spacing, single, dtype, largest, seed):
    """Of volumes, and of a single slice across one of the axes."""
    rng = np.random.default_rng(seed)
    values = rng.normal(100, 30, (40, 35, 33)).clip(0, 255).astype(dtype)
    if single is not None:
        preparation = replace(preparation, axis="acquired")
        values = values.take([0], single)
    scan = write_nifti(tmp_path / "scan.nii.gz", values, code, angles, spacing)
    entries = {"preparation": preparation.to_dict(), "largest_component": largest}
    file = described(tiny_file, tmp_path / "network.onnx", **entries)
    found = by_example(file, scan, out=tmp_path / "found.nii.gz")
    path = tiny_file.parent / "best.pt"
    expected, margin = by_predict(path, scan, preparation=preparation, largest=largest)
    different = np.count_nonzero(found != expected)
    assert different == 0 or margin < 1e-5, f"{different} voxels differ"


@pytest.mark.slow
def test_the_example_needs_neither_pytorch_nor_the_repository(tiny_file, tiny, tmp_path):
    """From a folder of its own, where torch cannot be imported; beside what predict.py writes."""
    values = np.random.default_rng(0).integers(0, 500, (40, 35, 3)).astype(np.int16)
    scan = write_nifti(tmp_path / "scan.nii.gz", values, "LAS")
    alone = shutil.copy(EXAMPLE, tmp_path)
    program = f"import runpy, sys; sys.modules['torch'] = None; runpy.run_path({alone!r}, run_name='__main__')"
    arguments = [str(tiny_file), str(scan), str(tmp_path / "found.nii.gz")]
    subprocess.run([sys.executable, "-I", "-c", program, *arguments], cwd=tmp_path, check=True)
    checkpoint = str(tiny_file.parent / "best.pt")
    predict.main(predict.Options(checkpoint, (str(scan),), out=tmp_path / "out", device="cpu"))
    found, expected = nib.load(tmp_path / "found.nii.gz"), nib.load(tmp_path / "out" / "scan.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(found.dataobj), np.asanyarray(expected.dataobj))
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)
    assert len(np.unique(expected.dataobj)) == 4


@pytest.mark.slow
def test_channels_of_several_files_and_of_one(tiny, tmp_path):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 500, (40, 35, 3, 2)).astype(np.int16)
    scans = [write_nifti(tmp_path / f"{k}.nii.gz", values[..., k], "RPI") for k in (0, 1)]
    both = write_nifti(tmp_path / "both.nii.gz", values, "RPI")
    file = exported(tmp_path, model="tiny", channels=2, preparation=Preparation())
    expected, margin = by_predict(tmp_path / "best.pt", *scans, preparation=Preparation(), largest=False)
    for files in (scans, [both]):
        found = by_example(file, *files, out=tmp_path / "found.nii.gz")
        assert np.count_nonzero(found != expected) == 0 or margin < 1e-5
    with pytest.raises(SystemExit, match="must hold 2 channels"):
        by_example(file, scans[0], out=tmp_path / "found.nii.gz")


@pytest.mark.slow
def test_what_the_example_does_not_do(tiny_file, tmp_path):
    """Each is a line; nothing is written, and what lies there stays."""
    rng = np.random.default_rng(0)
    values = rng.normal(100, 30, (40, 35, 3)).astype(np.float32)
    whole = Preparation().to_dict()
    scan = write_nifti(tmp_path / "scan.nii.gz", values, "LAS")
    askew = write_nifti(tmp_path / "askew.nii.gz", values, "LAS", angles=(0, 0, 44))
    small = write_nifti(tmp_path / "small.nii.gz", values[:, :20], "LAS")
    holes = values.copy()
    holes[3, 4, 1] = np.nan
    infinite = write_nifti(tmp_path / "infinite.nii.gz", holes, "LAS")
    for preparation, bad, message in (
        (whole | {"spacing": [1.0, 1.0]}, scan, "use predict.py"),
        (whole | {"normalize": "none"}, scan, "use predict.py"),
        (None, scan, "use predict.py"),
        (whole, askew, "use predict.py"),
        (whole, small, "40 x 20 pixels"),
        (whole, infinite, "finite"),
    ):
        file = described(tiny_file, tmp_path / "network.onnx", preparation=preparation)
        with pytest.raises(SystemExit, match=message):
            by_example(file, bad, out=tmp_path / "found.nii.gz")
        assert not (tmp_path / "found.nii.gz").exists()
    main, before = runpy.run_path(str(EXAMPLE))["main"], scan.read_bytes()
    for out in (scan, tmp_path / "missing" / "found.nii.gz", tmp_path / "found.png"):
        with pytest.raises(SystemExit, match=f"^{re.escape(str(out))}: must be NAME.nii.gz"):
            main(str(file), str(scan), out=str(out))
    assert scan.read_bytes() == before
    done = subprocess.run([sys.executable, EXAMPLE, file], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (1, runpy.run_path(str(EXAMPLE))["__doc__"].strip())


def test_the_example_is_short():
    assert len(EXAMPLE.read_text().splitlines()) < 80
