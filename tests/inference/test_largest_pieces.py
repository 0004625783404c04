"""--largest_component: the same pieces in training and prediction, and across missing slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage
from torch import nn

import predict
from config import EvaluationConfig, parse_config
from data.folder import open_data
from inference.segmentation import segment_split
from main import main
from models import NETWORKS
from models.network import Output
from training.checkpoint import load_checkpoint, save_checkpoint
from training.device import Machine


class Brightness(nn.Module):
    """Segments by five ranges of brightness: noise falls into many pieces."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(10.0))

    def forward(self, image: torch.Tensor) -> Output | torch.Tensor:
        logits = -((self.sharpness * (image - torch.linspace(0, 1, 5)[:, None, None])) ** 2)
        return Output.of_logits(logits) if self.training else logits


@pytest.mark.slow
def test_training_and_prediction_keep_the_same_pieces(make_data, tmp_path, monkeypatch):
    """The largest of each class that the same network finds without it."""
    monkeypatch.setitem(NETWORKS, "brightness", Brightness)
    data = make_data({"train": ["1"], "val": ["2"], "test": ["3"]}, numbers=(1, 2, 5, 7))
    flags = ["--preset", "modern", "--model", "brightness", "--data", str(data), "--epochs", "1", "--device", "cpu"]
    main(parse_config([*flags, "--out", str(tmp_path / "run")]))
    best = load_checkpoint(tmp_path / "run" / "best.pt")
    best["config"]["largest_component"] = False
    save_checkpoint(tmp_path / "all.pt", best)
    for checkpoint in (tmp_path / "run" / "best.pt", tmp_path / "all.pt"):
        out = tmp_path / checkpoint.stem
        predict.main(predict.Options(str(checkpoint), (str(data / "test"),), out, device="cpu"))
    trained, ours, whole = (
        read_nifti(tmp_path / path / "3.nii.gz") for path in ("run/predictions", "best", "all")
    )  # fmt: skip
    assert (ours == trained).all() and (ours != whole).any()
    ours, whole = (volume[[0, 1, 4, 6]] for volume in (ours, whole))  # without the slices that are missing
    for k in np.unique(whole[whole > 0]):
        pieces, count = ndimage.label(whole == k)
        sizes = [(pieces == piece).sum() for piece in range(1, count + 1)]
        kept = ours == k
        assert (pieces[kept] == pieces[kept][0]).all() and kept.sum() == max(sizes)


def read_nifti(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


class Everywhere(nn.Module):
    """Segments everything as class 1."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(image), 5, *image.shape[2:])
        logits[:, 1] = 1
        return logits


def test_missing_slices_do_not_cut_a_piece_in_two(make_data):
    dataset = open_data(make_data(numbers=(1, 3, 4, 7))).dataset("test")
    options = EvaluationConfig(largest_component=True, eval_batch_size=2)
    machine = Machine(torch.device("cpu"), dtype=torch.float32, workers=0)
    (volume,) = segment_split(Everywhere(), dataset, options, machine, "")
    assert [bool(part.all()) for part in volume.prediction] == [True, False, True, True, False, False, True]
    masks = np.stack([target for _, target in dataset])  # of many pieces: the truth is not cleaned
    assert (volume.target[[0, 2, 3, 6]] == masks).all()
