"""A network that is trained on scans of its own, for the tests of predictions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import prepare
from config import Config
from inference.networks import Ensemble, load_network
from main import main
from tests.helpers.scans import read_array, write_scans
from training.device import Machine

# With this seed and batch, an epoch ends in a network that finds every class somewhere.
CONFIG = Config.of(model="tiny", epochs=1, batch_size=1, seed=25, workers=0, device="cpu", amp="off")


@dataclass(frozen=True)
class Trained:
    """Scans s0 to s3, a data set of slices of 36 x 36 of them, and the run of an epoch on it, whose test scan is s3."""

    scans: Path
    data: Path
    run: Path

    @property
    def checkpoint(self) -> Path:
        """The network."""
        return self.run / "best.pt"

    @property
    def test_scan(self) -> Path:
        """The image of s3."""
        return self.image(3)

    @property
    def test_label(self) -> Path:
        """The label of s3."""
        return self.scans / "label_s3.nii.gz"

    def image(self, number: int) -> Path:
        """The image of a scan."""
        return self.scans / f"image_s{number}.nii.gz"

    def ensemble(self) -> Ensemble:
        """The network alone."""
        network = load_network(self.checkpoint, torch.device("cpu"))
        machine = Machine(torch.device("cpu"), dtype=torch.float32, workers=0)
        return Ensemble([network], machine, batch_size=8, flips=False)


def train_on_scans(root: Path) -> Trained:
    """Write scans, prepare them and train the tiny network (tests/helpers/networks.py), which has to be registered."""
    write_scans(root / "scans", (40, 34, 3))
    (root / "split.json").write_text('{"train": ["s0", "s1"], "val": ["s2"], "test": ["s3"]}')
    arguments = ["nifti", str(root / "scans"), "--out", str(root / "data"), "--split_file", str(root / "split.json")]
    prepare.main([*arguments, "--size", "36"])
    main(CONFIG.change(data=root / "data", out=root / "run"))
    segmentation = read_array(root / "run" / "predictions" / "s3.nii.gz")
    assert len(np.unique(segmentation)) > 2, "the tests would compare nothing"
    return Trained(root / "scans", root / "data", root / "run")
