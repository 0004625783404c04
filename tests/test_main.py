"""main.py on tiny data: what a run writes, whether its scores are right, and how its parts are joined."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from medpy.metric import binary
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensor

import data.dataset
import main as main_module
from config import AugmentationConfig, Config, EvaluationConfig, Group, LossConfig, parse_config
from main import command
from models import NETWORKS
from models.network import Output
from tests.helpers.networks import TinyNetwork
from tests.helpers.runs import read_csv, run
from training.checkpoint import load_checkpoint
from training.setup import training_loss
from utils import user_errors

ROOT = Path(__file__).parents[1]
CLASSES = ("background", "liver", "right kidney", "left kidney", "spleen")
CODES = (0, 63, 126, 189, 252)


@pytest.fixture
def blobs(make_data):
    """Slices whose organs are compact, so that surface distances say something."""
    root = make_data({"train": ["1"], "val": ["2"], "test": ["3", "11"]}, numbers=(8, 9, 10, 12))
    rows, columns = np.mgrid[:40, :48]
    for path in root.glob("*/GT/*.png"):
        mask = np.zeros((40, 48), np.uint8)
        for k, (row, column) in enumerate([(10, 10), (10, 36), (30, 12), (30, 36)], 1):
            mask[(rows - row) ** 2 + (columns - column) ** 2 < 40 + 5 * (len(path.name) % 3)] = 63 * k
        Image.fromarray(mask).save(path)
        noise = np.random.default_rng(len(path.name)).normal(0, 12, mask.shape)
        Image.fromarray((mask + noise).clip(0, 255).astype(np.uint8)).save(root / path.parts[-3] / "Img" / path.name)
    (root / "dataset.json").write_text(json.dumps({"subjects": {"3": {"spacing": [1.25, 1.5, 7.0]}}}))
    return root


@pytest.mark.slow
def test_a_run_writes_its_folder_and_right_scores(blobs, tmp_path, capsys):
    network = ["--model", "ms_dual_guided", "--backbone", "resnet18", "--steps", "1"]
    out = run(blobs, tmp_path / "run", *network, "--epochs", "3", "--batch_size", "3", "--eval_batch_size", "3")
    printed = capsys.readouterr().out
    assert "liver" in printed
    assert "spleen" in printed
    log = read_csv(out / "log.csv")
    assert [row["epoch"] for row in log] == ["1", "2", "3"]
    total = [
        float(row["segmentation"]) + 0.25 * float(row["guided"]) + 0.1 * float(row["reconstruction"]) for row in log
    ]
    np.testing.assert_allclose(total, [float(row["total"]) for row in log], rtol=1e-5)
    best, last = load_checkpoint(out / "best.pt"), load_checkpoint(out / "last.pt")
    assert best["val_dsc"] == last["progress"]["best"] == max(float(row["val_dsc"]) for row in log)
    assert Config.from_dict(best["config"]) == Config.from_dict(json.loads((out / "config.json").read_text()))
    assert best["data"]["labels"] == dict(zip(CLASSES, (0, 63, 126, 189, 252), strict=True))
    assert (out / "test.png").stat().st_size > 5000

    scores = {(row["subject"], row["class"]): row for row in read_csv(out / "test.csv")}
    assert len(scores) == 8
    found = 0
    for subject, spacing in (("3", (7.0, 1.5, 1.25)), ("11", (1.0, 1.0, 1.0))):
        image = sitk.ReadImage(str(out / "predictions" / f"{subject}.nii.gz"))
        np.testing.assert_allclose(image.GetSpacing()[::-1], spacing)
        prediction = sitk.GetArrayFromImage(image)
        target = np.zeros((5, 40, 48), np.uint8)  # slices 8 to 12; number 11 has no file
        for number in (8, 9, 10, 12):
            path = blobs / "test" / "GT" / f"Subj_{subject}slice_{number}.png"
            target[number - 8] = np.asarray(Image.open(path)) // 63
        assert not prediction[3].any()
        for k, name in enumerate(CLASSES[1:], 1):
            row, pair = scores[subject, name], (prediction == k, target == k)
            if not pair[0].any():
                assert (row["dsc"], row["vs"], row["msd"], row["missed"]) == ("0.0", "0.0", "nan", "True")
                continue
            found += 1
            sizes = [mask.sum() for mask in pair]
            assert float(row["dsc"]) == pytest.approx(binary.dc(*pair), rel=1e-9)
            assert float(row["vs"]) == pytest.approx(1 - abs(sizes[0] - sizes[1]) / sum(sizes), rel=1e-9)
            assert float(row["msd"]) == pytest.approx(binary.assd(*pair), rel=1e-9)
            assert float(row["hd95_pooled"]) == pytest.approx(binary.hd95(*pair), rel=1e-9)
            if subject == "3":
                assert float(row["msd_mm"]) == pytest.approx(binary.assd(*pair, voxelspacing=spacing), rel=1e-9)
                assert float(row["hd95_pooled_mm"]) == pytest.approx(binary.hd95(*pair, voxelspacing=spacing), rel=1e-9)
            else:
                assert row.get("msd_mm", "") == ""
    assert found >= 2
    summary = json.loads((out / "test.json").read_text())
    mean = np.mean([np.mean([float(scores[s, c]["dsc"]) for c in CLASSES[1:]]) for s in ("3", "11")])
    assert summary["overall"]["dsc"]["mean"] == pytest.approx(mean)


def test_last_partial_batch_is_trained_on(make_data, tmp_path, tiny):
    """Three slices in a batch of eight: the released code would train on nothing."""
    out = run(make_data(numbers=(1, 2, 3)), tmp_path / "run", "--epochs", "1", "--batch_size", "8")
    assert np.isfinite(float(read_csv(out / "log.csv")[0]["total"]))
    checkpoint = load_checkpoint(out / "last.pt")
    assert all(state["step"] == 1 for state in checkpoint["optimization"]["optimizer"]["state"].values())


@pytest.mark.slow
def test_mistakes_end_with_code_2_and_without_traceback(tmp_path):
    """Of the real command: before PyTorch is loaded, and after it. The others are the same path in this process."""
    for flags, expected in (
        (["--preset", "best"], "--preset"),
        (["--data", "nowhere"], "nowhere/train: no such folder"),
    ):
        done = subprocess.run(
            [sys.executable, "main.py", *flags], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 2
        assert expected in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--steps", "0"], "--steps 0: must be between 1 and 50"),
        (["--device", "cuda:7"], "error: --device cuda:7: cannot be used"),
        (["--model", "best"], "error: --model best: must be ms_dual_guided"),
        (["--backbone", "mit_b0"], "error: --backbone mit_b0: must be resnet18"),
        (["--pretrained", "imagenet"], "error: --pretrained: torchvision has no ImageNet weights for resnext101_32x4d"),
        (["--model", "unet", "--recompute"], "error: --recompute: UNet has no blocks to recompute"),
        (["--no_position_attention", "--no_channel_attention"], "error: --no_position_attention and"),
    ],
)
def test_mistakes_name_the_flag(make_data, tmp_path, flags, expected, capsys):
    data = ["--data", str(make_data()), "--out", str(tmp_path / "run"), "--device", "cpu"]
    with pytest.raises(SystemExit) as ending, user_errors():
        command(parse_config([*data, *flags]))
    assert ending.value.code == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- how the parts are joined


class Watched(TinyNetwork):
    """Keeps the images that it has seen, by its mode."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes)
        self.seen: dict[bool, list[np.ndarray]] = {True: [], False: []}

    def forward(self, image: torch.Tensor) -> Output | torch.Tensor:
        if not isinstance(image, FakeTensor):  # the estimate of memory
            self.seen[self.training].extend(image.numpy().copy())
        return super().forward(image)


@pytest.fixture
def built(monkeypatch) -> list[Watched]:
    """The networks that main.py has trained, in their order."""
    networks: list[Watched] = []

    def build(channels: int, classes: int) -> Watched:
        network = Watched(channels, classes)
        if not isinstance(network.layers[0].weight, FakeTensor):
            networks.append(network)
        return network

    monkeypatch.setitem(NETWORKS, "tiny", build)
    return networks


def grey(data: Path, split: str) -> set[bytes]:
    """The images of a split as the network should see them."""
    paths = (data / split / "Img").iterdir()
    return {(np.asarray(Image.open(path), np.float32) / np.float32(255)).tobytes() for path in paths}


def test_only_training_slices_are_augmented(make_data, tmp_path, built):
    data = make_data(numbers=(1, 2, 3))
    run(data, tmp_path / "run", "--epochs", "1", "--flip_probability", "1", "--rotation_probability", "0")
    (network,) = built
    assert {image[0, ::-1, ::-1].tobytes() for image in network.seen[True]} == grey(data, "train")
    assert {image.tobytes() for image in network.seen[False]} == grey(data, "val") | grey(data, "test")


def test_every_epoch_draws_anew(make_data, tmp_path, built):
    data = make_data(numbers=tuple(range(8)))
    run(data, tmp_path / "run", "--epochs", "2", "--rotation_probability", "0", "--batch_size", "8")
    (network,) = built
    first, second = ({image.tobytes() for image in network.seen[True][part]} for part in (slice(8), slice(8, 16)))
    assert len(first) == len(second) == 8
    assert first != second


def test_every_hyperparameter_arrives_where_it_belongs(make_data, tmp_path, built, monkeypatch):
    """The groups of the configuration are what the parts get; each part's own tests hold what it does with them."""
    given = {}

    def recorded(name, function):
        def call(*values, **named):
            given[name] = [value for value in (*values, *named.values()) if isinstance(value, Group)]
            return function(*values, **named)

        return call

    monkeypatch.setattr("data.dataset.augment", recorded("augmentation", data.dataset.augment))
    monkeypatch.setattr("main.training_loss", recorded("loss", main_module.training_loss))
    monkeypatch.setattr("main.segment_split", recorded("evaluation", main_module.segment_split))
    drawn = {
        "flip_probability": 0.1, "rotation_probability": 0.2, "rotation_degrees": 3.0, "affine_probability": 0.4,
        "intensity_probability": 0.6,
    }  # fmt: skip
    weights = {"alpha": 0.9, "beta": 0.8, "gamma": 0.7, "dice": 0.3}
    flags = [text for name, value in (drawn | weights).items() for text in (f"--{name}", str(value))]
    flags += ["--schedule", "one_cycle", "--epochs", "2", "--largest_component"]
    out = run(make_data(numbers=(1, 2, 3)), tmp_path / "run", *flags)
    assert given["augmentation"] == [AugmentationConfig(**drawn)]
    assert given["loss"] == [LossConfig(**weights)]
    assert given["evaluation"] == [EvaluationConfig(largest_component=True)]
    schedule = load_checkpoint(out / "last.pt")["optimization"]["schedule"]
    assert schedule["total_steps"] == schedule["last_epoch"] == 4  # two iterations in each of two epochs


def test_the_weights_of_the_loss_arrive(monkeypatch):
    options = LossConfig(alpha=0.9, beta=0.8, gamma=0.7, dice=0.3)
    loss = training_loss(options, 5, torch.device("cpu"))
    assert (loss.alpha, loss.beta, loss.gamma, loss.dice) == (0.9, 0.8, 0.7, 0.3)


@pytest.mark.slow
def test_the_first_epoch_with_the_best_score_is_chosen(make_data, tmp_path, built, monkeypatch):
    """Also over an interruption; the rate falls after the second epoch without a better score."""
    scores = [0.5, 0.7, 0.6, 0.7, 0.65, 0.1]
    data, flags = make_data(), ("--lr", "0.01", "--plateau_epochs", "2")

    def script() -> None:
        values = iter(np.repeat(scores, 4))  # four classes of one subject
        monkeypatch.setattr("training.scores.dice", lambda *_: float(next(values)))

    script()
    out = run(data, tmp_path / "run", "--epochs", "3", *flags)
    run(data, out, "--epochs", "6", *flags)
    script()
    two = run(data, tmp_path / "two", "--epochs", "2", *flags)
    best = load_checkpoint(out / "best.pt")
    assert (best["epoch"], best["val_dsc"]) == (2, 0.7)
    torch.testing.assert_close(best["model"], load_checkpoint(two / "last.pt")["model"], rtol=0, atol=0)
    assert (out / "test.csv").read_text() == (two / "test.csv").read_text()
    assert json.loads((out / "test.json").read_text())["best_epoch"] == 2
    log = read_csv(out / "log.csv")
    assert [float(row["val_dsc"]) for row in log] == pytest.approx(scores)
    assert [float(row["lr"]) for row in log] == pytest.approx([0.01] * 4 + [0.005] * 2)


@pytest.mark.parametrize("score", [0.0, math.nan])
def test_without_any_validation_score_the_run_says_so(make_data, tmp_path, built, monkeypatch, capsys, score):
    """Of networks that found nothing, the one that was trained longest is tested."""
    monkeypatch.setattr("training.scores.dice", lambda *_: score)
    out = run(make_data(), tmp_path / "run", "--epochs", "3")
    assert "warning: no epoch had a validation Dice above 0" in capsys.readouterr().out
    assert load_checkpoint(out / "best.pt")["epoch"] == (3 if score == 0 else 1)


def test_segmentations_have_the_values_of_the_labels(make_data, tmp_path, built):
    """Not the class indices, and not the grey values of the masks."""
    data, values = make_data(), (0, 300, 2, 4, 9)
    names = ("background", "a", "b", "c", "d")
    labels, of_volumes = (dict(zip(names, numbers, strict=True)) for numbers in (CODES, values))
    (data / "dataset.json").write_text(json.dumps({"labels": labels, "values": of_volumes}))
    out = run(data, tmp_path / "run", "--epochs", "1")
    segmentation = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "predictions" / "3.nii.gz")))
    masks = np.stack([np.asarray(Image.open(data / "test" / "GT" / f"Subj_3slice_{k}.png")) for k in (1, 2)])
    assert len(np.unique(segmentation)) > 1
    for row in read_csv(out / "test.csv"):
        ours, truth = segmentation == of_volumes[row["class"]], masks == labels[row["class"]]
        assert float(row["dsc"]) == pytest.approx(2 * (ours & truth).sum() / (ours.sum() + truth.sum()))


def test_slices_of_several_sizes_train_together(make_data, tmp_path, built):
    data = make_data(size=(40, 48))
    make_data({"train": ["4"], "val": [], "test": ["5"]}, size=(48, 40))
    out = run(data, tmp_path / "run", "--epochs", "1", "--batch_size", "4")
    assert [image.shape for image in built[0].seen[True]] == [(1, 48, 48)] * 4
    for subject, size in (("3", (48, 40)), ("5", (40, 48))):
        image = sitk.ReadImage(str(out / "predictions" / f"{subject}.nii.gz"))
        assert image.GetSize() == (*size, 2)
