"""Starting from the weights of a file, and a backbone that stays as it is for some epochs."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import main as main_module
import models
from config import Config, parse_config
from data.description import Labels
from data.folder import Identity
from data.geometry import Geometry
from data.preparation import Preparation
from main import main
from models import build_model
from models.network import Network, Output
from tests.helpers.processes import ended, start_all
from tests.helpers.runs import ON_CPU, run, same_result
from tests.helpers.signals import StopAfter
from training import epoch
from training.checkpoint import load_checkpoint
from training.distributed import rank
from training.transfer import Transfer, start_from
from utils import InputError, OptionError


class WithBackbone(Network):
    """Tiny, with a backbone of a convolution and a batch normalization."""

    multiple, smallest = 1, 32

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, classes, 1))

    def maps(self, image: torch.Tensor) -> Output:
        return Output.of_logits(self.head(self.backbone(image)))


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    monkeypatch.setitem(models.NETWORKS, "small", WithBackbone)


DAF = {"model": "daf", "backbone": "resnet18", "channels": 1, "classes": 3}


def identity(*classes: str, channels: tuple[str, ...] = (), preparation: Preparation | None = None) -> Identity:
    names = ("background", *classes)
    labels = Labels.indexed(names, tuple(range(len(names))))
    return Identity(labels, preparation, channels, Geometry(spacing=None, size=(48, 48, 1)), "a", "b", "c")


def network_of(seed: int, config: Config) -> nn.Module:
    torch.manual_seed(seed)
    network = build_model(config)
    for buffer in network.buffers():
        buffer += seed
    return network


def checkpoint(path: Path, config: Config, of_data: Identity) -> dict[str, torch.Tensor]:
    """Write a checkpoint of a network with other weights than those of seed 0; return its tensors."""
    weights = network_of(1, config).state_dict()
    torch.save({"model": weights, "config": config.to_dict(), "data": of_data.to_dict(), "epoch": 3}, path)
    return weights


def started(
    path: Path, config: Config, of_data: Identity, stored: dict[str, torch.Tensor]
) -> tuple[Transfer, set[str], str]:
    """What a network of seed 0 took, which is checked: the report, the names of the tensors, and the text."""
    network, fresh = network_of(0, config), network_of(0, config).state_dict()
    state = torch.get_rng_state()
    transfer = start_from(path, network, config, of_data)
    assert torch.equal(torch.get_rng_state(), state)
    taken = set()
    for name, value in network.state_dict().items():
        if name in transfer.new:
            assert torch.equal(value, fresh[name]), name
        else:
            assert torch.equal(value, stored[name]), name
            taken.add(name)
    return transfer, taken, "\n".join(transfer.lines)


HEADS = {f"{kind}_heads.{k}.{part}" for kind in ("raw", "refined") for k in range(4) for part in ("weight", "bias")}


def test_the_same_classes_take_all(tmp_path):
    config = Config.of(**DAF)
    stored = checkpoint(tmp_path / "best.pt", config, identity("liver", "spleen"))
    transfer, taken, text = started(tmp_path / "best.pt", config, identity("liver", "spleen"), stored)
    assert taken == stored.keys()
    count = sum(parameter.numel() for parameter in build_model(config).parameters())
    assert f"{len(stored)} of {len(stored)} tensors, {count:,} of {count:,} parameters, are those of" in text
    assert len(transfer.lines) == 1 and transfer.notes == ()


@pytest.mark.parametrize("classes", [("spleen", "liver"), ("kidney", "heart")])
def test_heads_of_other_classes_start_anew_though_they_fit(tmp_path, classes):
    config = Config.of(**DAF)
    stored = checkpoint(tmp_path / "best.pt", config, identity("liver", "spleen"))
    _, taken, text = started(tmp_path / "best.pt", config, identity(*classes), stored)
    assert taken == stored.keys() - HEADS
    assert "new, as of other classes: raw_heads (8), refined_heads (8)" in text


@pytest.mark.slow
def test_other_numbers_of_classes_and_channels_and_another_backbone(tmp_path):
    stored = checkpoint(tmp_path / "best.pt", Config.of(**DAF), identity("liver", "spleen"))
    more = Config.of(**DAF | {"channels": 2, "classes": 5})
    _, taken, text = started(tmp_path / "best.pt", more, identity("a", "b", "c", "d"), stored)
    new = {name for name in stored if "normalize" in name} | {"backbone.stem.0.weight"} | HEADS
    assert taken == stored.keys() - new
    assert "backbone.stem.0.weight is (64, 1, 7, 7) in the file and (64, 2, 7, 7) here" in text
    other = Config.of(**DAF | {"backbone": "resnet34"})
    _, taken, text = started(tmp_path / "best.pt", other, identity("liver", "spleen"), stored)
    assert taken == stored.keys()
    assert "new, as missing in the file: backbone (" in text
    back = checkpoint(tmp_path / "deep.pt", other, identity("liver", "spleen"))
    _, taken, text = started(tmp_path / "deep.pt", Config.of(**DAF), identity("liver", "spleen"), back)
    assert f"only in the file: backbone ({len(back) - len(stored)})" in text


@pytest.mark.parametrize("nested", ["", "model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "network."])
def test_any_state_dict(tmp_path, nested, prefix):
    """Heads that fit are kept, and the report says so. Half precision becomes single; other things are left alone."""
    config = Config.of(model="small", classes=3)
    stored = network_of(1, config).state_dict()
    stored["backbone.0.bias"] = torch.tensor([1.0, torch.nan, 0.0, 2.0])
    stored["head.3.bias"] = torch.tensor([0.5, 0.25, 2.0]).half()
    content = {prefix + name: value for name, value in stored.items()} | {prefix + "classifier.weight": torch.ones(2)}
    if nested:
        content = {nested: content, "epoch": 3, "lr": {0.1}, "type": torch.float16, "text": "x" * 10**5}
    torch.save(content, tmp_path / "other.pth", _use_new_zipfile_serialization=nested != "model")
    as_ours = stored | {"head.3.bias": stored["head.3.bias"].float()}
    transfer, taken, text = started(tmp_path / "other.pth", config, identity("liver", "spleen"), as_ours)
    assert taken == stored.keys() - {"backbone.0.bias"}
    assert "values that are not finite, or variances below 0: backbone.0.bias" in text
    assert "classes they are: head (2)" in text
    assert "only in the file: " in text and "classifier.weight" in text
    assert len(transfer.lines) == 4


@pytest.mark.slow
def test_weights_of_smp_without_our_wrapper(tmp_path):
    smp = pytest.importorskip("segmentation_models_pytorch")
    config = Config.of(model="smp.Unet", backbone="resnet18", classes=3)
    torch.manual_seed(1)
    theirs = smp.create_model("Unet", "resnet18", None, 1, 3).state_dict()
    torch.save(theirs, tmp_path / "unet.pth")
    network = network_of(0, config)
    start_from(tmp_path / "unet.pth", network, config, identity("liver", "spleen"))
    torch.testing.assert_close(network.network.state_dict(), theirs, rtol=0, atol=0)
    assert next(network.backbone.parameters()) is network.network.encoder.conv1.weight


class Malicious:
    def __reduce__(self):
        return (os.system, ("touch /tmp/code-from-a-checkpoint-ran",))


@pytest.mark.parametrize("archive", [True, False])
def test_what_cannot_be_taken_is_refused_in_a_line(tmp_path, archive):
    config, ours, path = Config.of(model="small", classes=3), identity("liver", "spleen"), tmp_path / "file.pt"
    kind = {"_use_new_zipfile_serialization": archive}
    fitting = {"head.3.bias": torch.zeros(3)}
    for content, message in (
        (fitting | {"extra": Malicious()}, "holds Python objects, which could run code"),
        (fitting | {"extra": np.float64(1)}, "holds Python objects, which could run code"),
        ({"weight": torch.zeros(3)}, "none of its 1 tensors fits"),
        ({"head.3.bias": torch.zeros(4)}, "none of its 1 tensors fits"),
        ({"backbone.1.num_batches_tracked": torch.tensor(3)}, "none of its 1 tensors fits"),
        ([torch.zeros(3)], "no file of weights that torch.save wrote"),
        ({"net": fitting}, "holds no state dict, neither alone nor under model, state_dict, model_state_dict"),
        ({"model": fitting, "config": {}, "data": {}}, "no checkpoint of this version of main.py"),
    ):
        torch.save(content, path, **kind)
        network = network_of(0, config)
        with pytest.raises(InputError, match=message) as raised:
            start_from(path, network, config, ours)
        assert str(path) in str(raised.value)
        torch.testing.assert_close(network.state_dict(), network_of(0, config).state_dict(), rtol=0, atol=0)
    assert not Path("/tmp/code-from-a-checkpoint-ran").exists()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"file\.pt"):
        start_from(path, network_of(0, config), config, ours)
    with pytest.raises(InputError, match="no such checkpoint"):
        start_from(tmp_path / "nowhere.pt", network_of(0, config), config, ours)


def test_safetensors(tmp_path):
    config = Config.of(model="small", classes=3)
    stored = network_of(1, config).state_dict()
    pytest.importorskip("safetensors.torch").save_file(stored, tmp_path / "file.safetensors")
    assert started(tmp_path / "file.safetensors", config, identity("liver", "spleen"), stored)[1] == stored.keys()


class Fixed(Network):
    """It has three classes, whatever the data set has."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(channels, 3, 1)


def test_heads_that_cannot_be_found_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setitem(models.NETWORKS, "fixed", Fixed)
    config = Config.of(model="fixed", classes=3)
    checkpoint(tmp_path / "best.pt", config, identity("liver", "spleen"))
    with pytest.raises(InputError, match=r"best\.pt: was trained for other classes.*cannot be found"):
        start_from(tmp_path / "best.pt", network_of(0, config), config, identity("spleen", "liver"))
    start_from(tmp_path / "best.pt", network_of(0, config), config, identity("liver", "spleen"))


def test_other_channels_and_preparation_are_named(tmp_path):
    config = Config.of(model="small", classes=3)
    before = identity("liver", "spleen", channels=("t1",), preparation=Preparation())
    stored = checkpoint(tmp_path / "best.pt", config, before)
    here = identity("liver", "spleen", channels=("t2",), preparation=Preparation(normalize="volume"))
    transfer, taken, _ = started(tmp_path / "best.pt", config, here, stored)
    assert taken == stored.keys()
    assert [note.partition("best.pt ")[2] for note in transfer.notes] == [
        "was trained on the channels t1; here are t2",
        "was trained on scans that were prepared otherwise (normalize slice -> volume)",
    ]


# ---------------------------------------------------------------- runs


@pytest.fixture
def data(make_data) -> Path:
    return make_data({"train": ["1", "2"], "val": ["3"], "test": ["4"]}, numbers=(1, 2, 3))


def weights_of(folder: Path, name: str = "last.pt") -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / name)["model"]


def parts(weights: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in weights.items() if name.startswith(part)}


@pytest.mark.slow
def test_a_run_that_begins_with_weights_goes_on_without_their_file(data, tmp_path, capsys):
    source = run(data, tmp_path / "source", "--model", "small", "--epochs", "1", "--seed", "5")
    path = tmp_path / "weights.pt"
    (source / "last.pt").rename(path)
    flags = ["--model", "small", "--init", str(path), "--lr", "1e-12"]
    capsys.readouterr()
    out = run(data, tmp_path / "run", *flags, "--epochs", "1")
    printed = capsys.readouterr().out
    assert "weights  16 of 16 tensors" in printed
    before = load_checkpoint(path)["model"]
    for name, value in weights_of(out).items():
        if "running" not in name and "num" not in name:
            torch.testing.assert_close(value, before[name], rtol=0, atol=1e-9)
    assert load_checkpoint(out / "last.pt")["config"]["init"] == json.loads((out / "config.json").read_text())["init"]
    with pytest.raises(InputError, match=r"init .*weights\.pt -> .*other\.pt"):
        run(data, out, "--model", "small", "--init", str(tmp_path / "other.pt"), "--lr", "1e-12")
    path.unlink()
    run(data, out, *flags, "--epochs", "2")
    assert "weights  " not in capsys.readouterr().out
    with pytest.raises(InputError, match="no such file of weights"):
        run(data, tmp_path / "new", *flags)
    assert not (tmp_path / "new").exists()


FREEZE = ["--model", "small", *ON_CPU, "--batch_size", "2", "--freeze_backbone", "2"]


@pytest.mark.slow
def test_a_frozen_backbone_stays_and_then_learns_and_resumes_in_both_phases(data, tmp_path, capsys):
    """Iterations 3 and 8 of four epochs of three: one in each phase."""
    flags = [*FREEZE, "--data", str(data), "--out"]
    torch.manual_seed(0)
    start = WithBackbone(1, 5).state_dict()
    for epochs in ("1", "2", "3", "4"):
        main(parse_config([*flags, str(tmp_path / "straight"), "--epochs", epochs, "--resume"]))
        weights = weights_of(tmp_path / "straight")
        same = {name: torch.equal(value, start[name]) for name, value in parts(weights, "backbone").items()}
        assert set(same.values()) == ({True} if epochs < "3" else {False})
        assert not any(torch.equal(value, start[name]) for name, value in parts(weights, "head").items())
    assert "--freeze_backbone keeps random weights in 4 of 4 tensors" in capsys.readouterr().out
    steps = load_checkpoint(tmp_path / "straight" / "last.pt")["optimization"]["optimizer"]["state"]
    assert [int(steps[k]["step"]) for k in (0, 4)] == [6, 12]
    for times in (3, 5, 11):
        out = tmp_path / str(times)
        with StopAfter(times) as stop, pytest.raises(SystemExit):
            main(parse_config([*flags, str(out), "--epochs", "4"]), stop)
        main(parse_config([*flags, str(out), "--resume"]))
        same_result(tmp_path / "straight", out)


class PartlyFixed(WithBackbone):
    """The first layer never learns."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes)
        self.backbone[0].requires_grad_(False)


@pytest.mark.slow
def test_what_never_learns_does_not_learn_after_the_frozen_epochs(data, tmp_path, monkeypatch):
    monkeypatch.setitem(models.NETWORKS, "partly", PartlyFixed)
    torch.manual_seed(0)
    start = PartlyFixed(1, 5).state_dict()
    weights = weights_of(run(data, tmp_path / "run", "--model", "partly", "--freeze_backbone", "1", "--epochs", "2"))
    assert torch.equal(weights["backbone.0.weight"], start["backbone.0.weight"])
    assert not torch.equal(weights["backbone.1.weight"], start["backbone.1.weight"])


def test_networks_without_a_backbone_refuse_to_freeze_it(data, tmp_path, tiny):
    with pytest.raises(OptionError, match="freeze_backbone: tiny has no backbone"):
        run(data, tmp_path / "run", "--freeze_backbone", "1")
    assert not (tmp_path / "run").exists()


def frozen_in_processes(arguments: list[str], out: Path) -> None:
    """main.py; then what each process has ended with, and how many of the models for several processes live."""
    models.NETWORKS["small"] = WithBackbone
    torch.manual_seed(int(os.environ["RANK"]))
    kept, living, distribute = [], [], epoch.distribute

    def watched(network: nn.Module, device: torch.device) -> nn.Module:
        kept[:] = [network]
        living.append(sum(isinstance(item, nn.parallel.DistributedDataParallel) for item in gc.get_objects()))
        return distribute(network, device)

    epoch.distribute = watched
    seed_everything = main_module.seed_everything
    main_module.seed_everything = lambda seed: seed_everything(seed + int(os.environ["RANK"]))  # other first weights
    end = main_module.barrier

    def at_the_end() -> None:
        torch.save({"weights": kept[0].state_dict(), "living": living}, out.with_suffix(f".{rank()}.pt"))
        end()

    main_module.barrier = at_the_end
    main_module.command(parse_config(arguments))


@pytest.mark.slow
def test_processes_start_from_the_same_weights_and_freeze_them(data, tmp_path):
    """Both begin with other weights, of which those of the file, and of the first process, are left."""
    source = run(data, tmp_path / "source", "--model", "small", "--epochs", "1", "--seed", "5")
    before = weights_of(source)
    flags = [*FREEZE, "--data", str(data), "--init", str(source / "last.pt")]
    for epochs in (2, 3):
        out = tmp_path / f"epochs{epochs}"
        arguments = [*flags, "--out", str(out), "--epochs", str(epochs)]
        both = start_all(frozen_in_processes, arguments, out, output=tmp_path / f"log{epochs}")
        assert [ended(process) for process in both] == [0, 0], (tmp_path / f"log{epochs}.0").read_text()
        first, second = (torch.load(out.with_suffix(f".{k}.pt")) for k in (0, 1))
        assert first["living"] == second["living"] == [0] * len(first["living"])
        torch.testing.assert_close(first["weights"], second["weights"], rtol=0, atol=0)
        for name, value in parts(first["weights"], "backbone").items():
            assert torch.equal(value, before[name]) == (epochs == 2), name
        for name, value in parts(first["weights"], "head").items():
            assert not torch.equal(value, before[name]), name
