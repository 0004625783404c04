"""Trainings in which flips exchange the classes of left and right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

import models
import predict
from reporting.segmentation import segment_run
from tests.helpers.networks import TinyNetwork
from tests.helpers.runs import read_csv, run, same_result
from training.checkpoint import load_checkpoint
from utils import InputError

LABELS = {"background": 0, "right kidney": 126, "left kidney": 189}
MIRROR = ["--mirror", "right kidney=left kidney"]


class WideNetwork(TinyNetwork):
    """Convolutions that see the edge of the body beside an organ, and so on which side of it the organ lies."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes)
        layers = []
        for width, dilation in ((channels, 1), (12, 2), (12, 4), (12, 4)):
            layers += [nn.Conv2d(width, 12, 3, padding=dilation, dilation=dilation), nn.BatchNorm2d(12), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(12, classes, 1))


@pytest.fixture
def kidneys(tmp_path) -> Path:
    """Bodies with two discs of one size and grey value, at the same distance from the middle: the patient's kidneys."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:32, :40]
    root = tmp_path / "data"
    for split, count in (("train", 48), ("val", 4), ("test", 6)):
        for kind in ("Img", "GT"):
            (root / split / kind).mkdir(parents=True)
        for k in range(1, count + 1):
            x, y = 19.5 + rng.uniform(-3, 3), 15.5 + rng.uniform(-2, 2)
            image = np.where(((columns - x) / 15) ** 2 + ((rows - y) / 11) ** 2 < 1, 100.0, 10.0)
            mask = np.zeros((32, 40), np.uint8)
            for side, code in ((-7, 126), (7, 189)):  # the patient's right is at the left of slices
                disc = (columns - x - side) ** 2 + (rows - y) ** 2 < 12
                image[disc], mask[disc] = 180, code
            name = f"Subj_{split}slice_{k}.png"
            image += rng.normal(0, 5, image.shape)
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / split / "Img" / name)
            Image.fromarray(mask).save(root / split / "GT" / name)
    axes = {name: {"direction": [1, 0, 0, 0, 1, 0, 0, 0, 1]} for name in ("train", "val", "test")}
    (root / "dataset.json").write_text(json.dumps({"labels": LABELS, "subjects": axes}))
    return root


def dice(path: Path) -> float:
    """The mean over classes in a table of scores."""
    return float(np.mean([float(row["dsc"]) for row in read_csv(path)]))


@pytest.mark.slow
def test_organs_that_differ_by_their_side_alone_are_learned_with_exchange_only(kidneys, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(models.NETWORKS, "tiny", WideNetwork)
    flags = [
        "--rotation_probability",
        "0",
        "--epochs",
        "8",
        "--batch_size",
        "8",
        "--lr",
        "0.01",
        "--schedule",
        "one_cycle",
    ]
    plain = run(kidneys, tmp_path / "plain", *flags)
    assert "but not the classes that are called so" in " ".join(capsys.readouterr().out.split())
    mirrored = run(kidneys, tmp_path / "mirrored", *flags, *MIRROR)
    assert "and with them the classes right kidney and left kidney" in " ".join(capsys.readouterr().out.split())
    assert dice(plain / "test.csv") < 0.6
    assert dice(mirrored / "test.csv") > 0.85
    options = {"tta": True, "device": "cpu", "truth": (kidneys / "test" / "GT",)}
    predict.main(predict.Options(str(mirrored / "best.pt"), (str(kidneys / "test"),), tmp_path / "out", **options))
    assert dice(tmp_path / "out" / "scores.csv") > 0.85


@pytest.mark.slow
def test_a_mirrored_run_goes_on_with_the_same_mirror_only(kidneys, tmp_path, tiny):
    described = json.loads((kidneys / "dataset.json").read_text())
    straight = run(kidneys, tmp_path / "straight", *MIRROR, "--epochs", "2")
    resumed = run(kidneys, tmp_path / "resumed", *MIRROR, "--epochs", "1")
    with pytest.raises(InputError, match=r"another configuration .*mirror right kidney=left kidney -> left kidney"):
        run(kidneys, resumed, "--mirror", "left kidney=right kidney", "--epochs", "2")
    same_result(straight, run(kidneys, resumed, "--epochs", "2"))
    assert load_checkpoint(resumed / "best.pt")["data"]["mirror"] == [["right kidney", "left kidney"]]
    plain = run(kidneys, tmp_path / "plain", "--epochs", "1")
    assert (plain / "log.csv").read_text() != (straight / "log.csv").read_text()
    mirrored = described | {"mirror": [["left kidney", "right kidney"]]}
    (kidneys / "dataset.json").write_text(json.dumps(mirrored))
    with pytest.raises(
        InputError, match=r"has other mirrored classes \(mirror or mirror_axis\) than .*plain was trained"
    ):
        run(kidneys, plain, "--epochs", "2")
    segment_run(plain, "cpu")  # its scores do not depend on it
    same_result(straight, run(kidneys, tmp_path / "described", "--epochs", "2"))


@pytest.mark.slow
def test_a_run_without_a_known_axis_does_not_begin(kidneys, tmp_path, tiny):
    (kidneys / "dataset.json").write_text(json.dumps({"labels": LABELS}))
    with pytest.raises(InputError, match=r"subject train: it is not known which axis .* give mirror_axis "):
        run(kidneys, tmp_path / "run", *MIRROR)
    assert not (tmp_path / "run").exists()
    run(kidneys, tmp_path / "run", *MIRROR, "--mirror_axis", "horizontal", "--epochs", "1")
    run(kidneys, tmp_path / "still", *MIRROR, "--flip_probability", "0", "--epochs", "1")
