"""How main.py joins its parts, with a network that trains in no time: who is augmented, which epoch is chosen, ..."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image
from torch import nn

from checkpoint import load_checkpoint
from config import parse_config
from data.augment import Augmentation
from losses import GuidedLoss
from main import main
from memory import StepMemory
from models.network import Output, only
from tests.test_main import read_csv

CODES = (0, 63, 126, 189, 252)


class Tiny(nn.Module):
    """Two convolutions and a batch normalization; keeps the images that it has seen, by its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1))
        self.seen: dict[bool, list[np.ndarray]] = {True: [], False: []}

    def forward(self, image: torch.Tensor) -> Output | torch.Tensor:
        self.seen[self.training].extend(image.numpy().copy())
        logits = self.layers(image)
        return only(logits) if self.training else logits


@pytest.fixture
def built(monkeypatch) -> list[Tiny]:
    """The networks that main.py has built, all of them Tiny."""
    networks: list[Tiny] = []

    def build(config) -> Tiny:
        networks.append(Tiny())
        return networks[-1]

    monkeypatch.setattr("main.build_model", build)
    monkeypatch.setattr("main.step_memory", lambda *_: StepMemory(0, 1))
    return networks


def run(data: Path, out: Path, *flags: str) -> Path:
    main(parse_config(["--data", str(data), "--out", str(out), "--device", "cpu", "--amp", "off", *flags]))
    return out


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
    run(data, tmp_path / "run", "--epochs", "2", "--rotation_probability", "0")
    (network,) = built
    first, second = ({image.tobytes() for image in network.seen[True][part]} for part in (slice(8), slice(8, 16)))
    assert len(first) == len(second) == 8
    assert first != second


def test_every_hyperparameter_arrives_where_it_belongs(make_data, tmp_path, built, monkeypatch):
    given = {}

    def recorded(kind):
        def make(*values, **named):
            given[kind] = values, named
            return kind(*values, **named)

        return make

    for kind in (Augmentation, GuidedLoss):
        monkeypatch.setattr(f"main.{kind.__name__}", recorded(kind))
    drawn = {
        "flip_probability": 0.1,
        "rotation_probability": 0.2,
        "rotation_degrees": 3.0,
        "affine_probability": 0.4,
        "intensity_probability": 0.6,
    }
    weights = {"alpha": 0.9, "beta": 0.8, "gamma": 0.7, "dice": 0.3}
    flags = [text for name, value in (drawn | weights).items() for text in (f"--{name}", str(value))]
    data = make_data(numbers=(1, 2, 3))
    flags += ["--schedule", "one_cycle", "--epochs", "2", "--batch_size", "2"]
    out = run(data, tmp_path / "run", *flags)
    assert given[Augmentation] == ((), drawn)
    assert given[GuidedLoss] == (tuple(weights.values()), {})
    schedule = load_checkpoint(out / "last.pt")["optimization"]["schedule"]
    assert schedule["total_steps"] == schedule["last_epoch"] == 4  # two steps in each of two epochs


def test_the_first_epoch_with_the_best_score_is_chosen(make_data, tmp_path, built, monkeypatch):
    """Also over an interruption; the rate falls after the second epoch without a better score."""
    scores = [0.5, 0.7, 0.6, 0.7, 0.65, 0.1]
    data, flags = make_data(), ("--lr", "0.01", "--plateau_epochs", "2")

    def script() -> None:
        values = iter(np.repeat(scores, 4))  # four classes of one subject
        monkeypatch.setattr("main.dice", lambda *_: float(next(values)))

    script()
    out = run(data, tmp_path / "run", "--epochs", "3", *flags)
    run(data, out, "--epochs", "6", *flags, "--resume")
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
