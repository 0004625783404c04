"""Runs with a network and a loss of one's own: trained as by hand, resumed, applied elsewhere; their memory."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image
from torch.nn import functional as F

from config import Config, parse_config
from inference.networks import load_network
from main import main
from tests.helpers import own_code
from tests.helpers.processes import command, run_to_end, signaled
from tests.helpers.runs import ON_CPU, arguments, run, same_result
from training.checkpoint import load_checkpoint, save_checkpoint
from training.memory import MemoryBudget, step_memory
from utils import InputError, OptionError, seed_everything

HERE = "tests.helpers.own_code"
ROOT = Path(__file__).parents[2]


def test_maps_of_several_resolutions_are_trained_as_by_hand(make_data, tmp_path):
    """One step of Adam on a batch of both slices; each map is resized to the image and has its own loss."""
    still = ["--flip_probability", "0", "--rotation_probability", "0", "--epochs", "1", "--dice", "0"]
    data = make_data()
    out = run(
        data, tmp_path / "run", "--model", f"{HERE}:Several(dropout=0)", "--loss", f"{HERE}:Weighted(factor=3)", *still
    )

    seed_everything(0)
    network = own_code.Several(1, 5, dropout=0)
    images, targets = (
        np.stack([np.asarray(Image.open(data / "train" / kind / f"Subj_1slice_{k}.png")) for k in (1, 2)])
        for kind in ("Img", "GT")
    )
    image, target = torch.from_numpy(images / np.float32(255))[:, None], torch.from_numpy(targets // 63).long()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, (0.9, 0.99))
    weight = torch.arange(1.0, 6.0)
    maps = [F.interpolate(logits, (40, 48), mode="bilinear") for logits in network(image)]
    sum(3 * F.cross_entropy(logits, target, weight) for logits in maps).backward()
    optimizer.step()
    trained = load_checkpoint(out / "last.pt")["model"]
    assert {name.removeprefix("network.") for name in trained} == network.state_dict().keys()
    for name, value in network.state_dict().items():
        if name == "layers.0.bias":  # before a normalization: its gradient is rounding
            continue
        torch.testing.assert_close(trained[f"network.{name}"], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_bit_for_bit(make_data, tmp_path):
    """With dropout, and a loss that has a buffer; the signal comes in the second of three iterations."""
    data = make_data({"train": ["1", "2"], "val": ["3"], "test": ["4"]}, numbers=(1, 2, 3))
    own = ["--model", f"{HERE}:Several(width=3)", "--loss", f"{HERE}:Weighted", "--epochs", "2"]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert run_to_end(command, arguments(data, straight, *own), output=tmp_path / "log") == 0
    code = run_to_end(signaled, arguments(data, stopped, *own), 2, signal.SIGUSR1, output=tmp_path / "out")
    assert code == 75, (tmp_path / "out").read_text()
    assert run_to_end(command, arguments(data, stopped, *own), output=tmp_path / "out") == 0
    assert "resumed after epoch 0, batch" in (tmp_path / "out").read_text()
    same_result(straight, stopped)
    with pytest.raises(InputError, match="is a run of another configuration"):
        parse_config(arguments(data, stopped, *own, "--loss", f"{HERE}:Weighted(factor=2)"))


def predicted(checkpoint: str, scans: str, out: str) -> None:
    """python predict.py, whose options need no name of a network."""
    import predict
    from utils import user_errors

    with user_errors():
        predict.main(predict.Options(checkpoint, (scans,), Path(out), device="cpu"))


def reproduced(row: str, *flags: str) -> None:
    """python reproduce.py, whose training is main.py in a process of its own."""
    import reproduce
    from tests.helpers.trainings import train_by_forks
    from utils import user_errors

    train_by_forks()
    with user_errors():
        reproduce.main(["I", "--row", row, "--only", "PAM", *flags])


@pytest.mark.slow
def test_code_in_another_working_folder(make_data, tmp_path):
    """Trained, resumed, in a table and applied by processes that are started there; not found by one that is not."""
    data, there = make_data(), tmp_path / "there"
    (there / "package").mkdir(parents=True)
    shutil.copy(own_code.__file__, there / "package" / "mine.py")
    own = ["--model", "package.mine:Several(width=3)", "--loss", "package.mine:Weighted"]
    flags = arguments(data, Path("run"), *own, "--epochs", "1")
    log = tmp_path / "log"

    def start(function, *values) -> int:
        return run_to_end(own_code.in_folder, str(there), function, *values, output=log)

    assert start(command, flags) == 0, log.read_text()
    assert start(predicted, "run/best.pt", str(data / "test"), "segmented") == 0, log.read_text()
    assert f"run/best.pt: the network package.mine:Several(width=3) is of {there}/package/mine.py" in log.read_text()
    ours, trained = (
        sitk.GetArrayFromImage(sitk.ReadImage(there / name / "3.nii.gz")) for name in ("segmented", "run/predictions")
    )
    np.testing.assert_array_equal(ours, trained)
    row = f'Mine: {own[0]} "{own[1]}" {own[2]} {own[3]}'
    assert start(reproduced, row, "--data", str(data), "--epochs", "1", "--batch_size", "2", *ON_CPU) == 0, (
        log.read_text()
    )
    assert (there / "reproduced" / "runs" / "mine" / data.name / "test.json").exists()
    with pytest.raises(InputError, match=r"best.pt: model package.mine:Several.*: no module package.* in .*start"):
        load_network(there / "run" / "best.pt", torch.device("cpu"))


def test_a_checkpoint_cannot_call_anything_but_networks(make_data, tmp_path):
    out = run(make_data(), tmp_path / "run", "--model", f"{HERE}:Logits", "--epochs", "1")
    content = load_checkpoint(out / "best.pt")
    for model, expected in {
        "os:system": "has no class system derived from torch.nn.Module",
        "subprocess:Popen(args='false')": "has no class Popen derived from torch.nn.Module",
        f"{HERE}:Logits(width=9)": "network.layers.0.weight is",
        f"{HERE}:Logits(width=-9)": "fails: RuntimeError",
    }.items():
        content["config"]["model"] = model
        save_checkpoint(tmp_path / "other.pt", content)
        with pytest.raises(InputError, match=f"^{tmp_path}/other.pt: .*{expected}"):
            load_network(tmp_path / "other.pt", torch.device("cpu"))


# ---------------------------------------------------------------- memory


def budget(config: Config) -> MemoryBudget:
    return MemoryBudget(config, (64, 64), False, 0, 1)


def test_the_memory_of_a_network_that_needs_values_is_unknown(make_data, tmp_path, capsys):
    config = Config.of(model=f"{HERE}:Values")
    assert step_memory(config, (64, 64), False) is None
    assert budget(config).needed is None
    assert budget(config).advice() == "take a smaller --batch_size, or smaller slices"
    run(make_data(), tmp_path / "run", "--model", f"{HERE}:Values", "--epochs", "1")
    assert "memory   an iteration takes an unknown amount; " in capsys.readouterr().out


def test_the_memory_of_others_is_estimated():
    """A loss that needs values, as the library's does, is left out; the one of ours is not.

    Such a loss gets a copy of each map's target: of the map at full size, and of the four pixels of each square of the
    one at half of it.
    """
    estimates = [
        step_memory(Config.of(model=f"{HERE}:Several", loss=loss), (64, 64), False)
        for loss in ("", "segmentation_models_pytorch.losses:FocalLoss(mode='multiclass')", f"{HERE}:Weighted")
    ]
    assert estimates[0] == estimates[1]
    copies = 8 * (64 * 64 + 4 * 32 * 32)
    assert estimates[2].per_slice == pytest.approx(estimates[0].per_slice + copies, rel=0.01)
    with pytest.raises(OptionError, match="returned a dict; must return logits"):
        step_memory(Config.of(model=f"{HERE}:Wrong(what='dictionary')"), (64, 64), False)


# ---------------------------------------------------------------- what is refused before training


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["--model", f"{HERE}:Infinite"],
            "no checkpoint could hold its weights and buffers (network.mask holds values that are not finite)",
        ),
        (["--model", "torch.nn:LazyConv2d(out_channels=5, kernel_size=1)"], "no checkpoint could hold its weights"),
        (["--model", "torch.nn:Identity"], "has no weights to train"),
        (["--model", f"{HERE}:Wrong(what='classes')"], "returned a tensor (1, 4, 64, 64) of float32; must return"),
        (["--model", f"{HERE}:OtherWhenSegmenting"], "returned a dict; must return"),
        (["--model", f"{HERE}:Volumes"], "has 3D layers; must be a network of images"),
        (["--model", f"{HERE}:AllBackbone", "--freeze_backbone", "1"], "has no weights beside its backbone"),
        (["--model", f"{HERE}:Logits", "--pretrained", "imagenet"], "pretrained: is not for "),
        (["--model", f"{HERE}:Logits", "--recompute"], "recompute: "),
        (["--loss", f"{HERE}:Unusable(fault='ignored')"], "must leave out the pixels whose target is -100"),
    ],
)
def test_before_training(make_data, tmp_path, tiny, flags, expected):
    with pytest.raises(OptionError) as raised:
        main(parse_config(arguments(make_data(), tmp_path / "run", *flags)))
    assert expected in str(raised.value)
    assert not (tmp_path / "run" / "config.json").exists()
