"""Files that a backbone starts from."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from config import Config, parse_config
from inference.networks import load_network
from main import main
from models import build_model
from training.checkpoint import load_checkpoint
from training.pretrained import start_from_pretrained
from utils import InputError, OptionError

timm = pytest.importorskip("timm")
safetensors = pytest.importorskip("safetensors.torch")
NAME = "timm.test_resnet"


@pytest.fixture
def network() -> torch.nn.Module:
    return build_model(Config.of(model="daf", backbone=NAME, channels=3))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_all_tensors_of_a_file_arrive(network, tmp_path, suffix):
    weights, path = timm.create_model("test_resnet").state_dict(), tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=suffix == ".pt")
    reduce = network.reduce[0][0].weight.clone()
    start_from_pretrained(network, str(path))
    for name, tensor in network.backbone.encoder.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    assert torch.equal(network.reduce[0][0].weight, reduce)


def test_files_from_before_batches_were_counted_arrive(network, tmp_path):
    weights = {k: v for k, v in timm.create_model("test_resnet").state_dict().items() if "num_batches" not in k}
    torch.save(weights, tmp_path / "old.pth")
    start_from_pretrained(network, str(tmp_path / "old.pth"))
    found = network.backbone.encoder.state_dict()
    assert all(torch.equal(found[name], weights[name]) for name in found.keys() & weights.keys())
    assert {found[name].item() for name in found.keys() - weights.keys()} == {0}


class Harmful:
    def __reduce__(self):
        return Path.touch, (Path("touched"),)


def test_other_files_are_refused(network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = timm.create_model("test_resnet").state_dict()
    torch.save({name.replace("conv", "other"): value for name, value in weights.items()}, "names.pt")
    torch.save({"state_dict": weights}, "nested.pt")
    torch.save({"weights": Harmful()}, "code.pt")
    Path("code.pkl").write_bytes(pickle.dumps(Harmful()))
    Path("noise.pt").write_bytes(b"noise")
    Path("noise.safetensors").write_bytes(b"noise")
    for name, kind, reason in (
        (
            "names.pt",
            OptionError,
            r"pretrained names\.pt: \d+ tensors do not fit, such as: conv1.* is missing.*; give",
        ),
        ("nested.pt", OptionError, r"pretrained nested\.pt: .*tensors do not fit"),
        ("code.pt", InputError, r"^code\.pt: holds Python objects"),
        ("code.pkl", InputError, r"^code\.pkl: holds Python objects"),
        ("noise.pt", InputError, r"^noise\.pt: "),
        ("noise.safetensors", InputError, r"^noise\.safetensors: no file of safetensors"),
        ("absent.pt", InputError, r"^absent\.pt: no such"),
        ("absent.safetensors", InputError, r"^absent\.safetensors: no such file"),
    ):
        with pytest.raises(kind, match=reason):
            start_from_pretrained(network, name)
    assert not Path("touched").exists()


@pytest.mark.slow
def test_a_run_from_a_file_goes_on_and_predicts_without_it(make_data, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(timm.create_model("test_resnet").state_dict(), path)
    flags = ["--data", str(make_data()), "--model", "daf", "--backbone", NAME, "--pretrained", str(path)]
    flags += ["--device", "cpu", "--amp", "off", "--workers", "0", "--batch_size", "2", "--out", str(tmp_path / "run")]
    main(parse_config([*flags, "--epochs", "1"]))
    path.unlink()
    main(parse_config(["--out", str(tmp_path / "run"), "--epochs", "2", "--resume"]))
    best = tmp_path / "run" / "best.pt"
    normalize = load_network(best, torch.device("cpu")).model.backbone.normalize
    mean = timm.create_model("test_resnet").pretrained_cfg["mean"]
    assert normalize.mean.flatten().tolist() == pytest.approx([sum(mean) / 3] * normalize.mean.numel())
    assert "backbone.normalize.mean" in load_checkpoint(best)["model"]
