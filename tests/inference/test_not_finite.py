"""A network that gives NaN segments nothing: an error that names subject and checkpoint, never background."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from torch import Tensor

import models
import predict
from models.network import Output
from reporting.segmentation import segment_run
from tests.helpers.networks import TinyNetwork
from tests.helpers.runs import read_csv, run
from training.checkpoint import load_checkpoint, save_checkpoint


class Overflows(TinyNetwork):
    """Gives NaN in some of its passes in eval mode, of which each epoch and the test have one."""

    wrong: tuple[int, ...] = ()
    passes = 0

    def maps(self, image: Tensor) -> Output:
        """Logits, or NaN in one pixel."""
        output = super().maps(image)
        if not self.training:
            Overflows.passes += 1
            if Overflows.passes in self.wrong:
                output.refined[0][0, 0, 3, 4] = torch.nan
        return output


@pytest.fixture
def overflows(monkeypatch, tiny):
    def of(*wrong: int) -> None:
        monkeypatch.setattr(Overflows, "wrong", wrong)
        monkeypatch.setattr(Overflows, "passes", 0)
        monkeypatch.setitem(models.NETWORKS, "tiny", Overflows)

    return of


def test_a_scan_is_not_segmented(trained, tmp_path):
    """The weights are finite, and the sums in the network are not."""
    content = load_checkpoint(trained.checkpoint)
    content["model"]["layers.0.weight"][:] = 3e38
    save_checkpoint(tmp_path / "large.pt", content)
    options = predict.Options(str(tmp_path / "large.pt"), (str(trained.test_scan),), tmp_path / "out", device="cpu")
    with pytest.raises(FloatingPointError, match=r"image_s3: .*large\.pt.* not finite"):
        predict.main(options)
    assert not list((tmp_path / "out").glob("*.nii.gz"))
    shutil.copytree(trained.run, tmp_path / "run")
    shutil.move(tmp_path / "large.pt", tmp_path / "run" / "best.pt")
    with pytest.raises(FloatingPointError, match=r"subject s3: .*best\.pt.* not finite"):
        segment_run(tmp_path / "run", "cpu")


def test_a_validation_without_a_score_does_not_end_the_training(make_data, tmp_path, overflows, capsys):
    overflows(1)
    folder = run(make_data(), tmp_path / "run")
    scores = [float(row["val_dsc"]) for row in read_csv(folder / "log.csv")]
    assert math.isnan(scores[0]) and all(0 <= score <= 1 for score in scores[1:])
    assert load_checkpoint(folder / "best.pt")["epoch"] > 1
    assert "warning: validation subject 2: the network gives values that are not finite" in capsys.readouterr().out
    assert (folder / "test.json").exists()


def test_a_test_without_segmentation_keeps_the_run(make_data, tmp_path, overflows):
    data = make_data()
    overflows(4)
    with pytest.raises(FloatingPointError, match=r"subject 3: .*best\.pt.* not finite"):
        run(data, tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "last.pt")["progress"]["epoch"]["number"] == 3
    assert not (tmp_path / "run" / "test.json").exists()
    overflows()
    run(data, tmp_path / "run")
    assert (tmp_path / "run" / "test.json").exists()
