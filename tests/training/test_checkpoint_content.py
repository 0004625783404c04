"""Checkpoints with the right parts of wrong kinds: one line that names the file, for a run that goes on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from config import Config
from data.description import Labels
from data.folder import Identity
from data.geometry import Geometry
from inference.networks import load_network
from models import build_model
from tests.helpers import networks
from tests.helpers.checkpoints import mutations, set_at
from training.checkpoint import load_checkpoint, save_checkpoint
from training.epoch import Epoch
from training.optimization import Optimization
from training.run import Run
from utils import InputError, unlock_folder

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        networks.register(patch)
        yield


def identity() -> Identity:
    labels = Labels.indexed(("background", "liver", "spleen"), (0, 63, 126))
    return Identity(labels, None, (), Geometry(spacing=(1.0, 1.0, 1.0), size=(48, 48, 1)), "a", "b", "c")


def training(folder: Path, schedule: str = "plateau") -> Run:
    """A run of the tiny network in `folder`, or what goes on from there."""
    unlock_folder(folder)
    config = Config.of(model="tiny", classes=3, out=folder, device="cpu", amp="off", schedule=schedule)
    torch.manual_seed(0)
    network = build_model(config)
    return Run(config, identity(), network, Optimization(network, config.optimization, 5))


def trained(folder: Path, schedule: str) -> Path:
    """The run after two epochs of two iterations."""
    run = training(folder, schedule)
    for number in range(2):
        run.progress.epoch = Epoch(number, iteration=2, slices=4)
        for _ in range(2):
            run.network(torch.rand(2, 1, 40, 40)).refined[0].square().mean().backward()
            run.optimization.step(torch.tensor(False))
        row = {"epoch": number + 1, "lr": 0.001, "val_dsc": 0.5 + number / 4, "seconds": 1.5, "memory_gib": 0.5}
        run.optimization.end_epoch(row["val_dsc"])
        run.end_epoch(row)
    return folder


@pytest.fixture(scope="module", params=["plateau", "one_cycle"])
def schedule(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def whole(tmp_path_factory, schedule) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / schedule, schedule)


def test_an_untouched_run_goes_on(whole, schedule):
    run = training(whole, schedule)
    assert run.resumed == "after epoch 2"
    stored = load_checkpoint(whole / "last.pt")
    torch.testing.assert_close(run.optimization.state_dict()["optimizer"], stored["optimization"]["optimizer"])
    assert load_network(whole / "best.pt", CPU).identity.labels == identity().labels


@pytest.mark.slow
@settings(max_examples=50, deadline=None, derandomize=True)
@given(data=st.data())
def test_mutated_checkpoints_go_on_or_are_refused(whole, schedule, tmp_path_factory, data):
    """Twice 50. What is taken trains on: an iteration leaves finite weights."""
    folder = tmp_path_factory.mktemp("mutated")
    content = load_checkpoint(whole / "last.pt")
    where, value = data.draw(mutations(content))
    torch.save(set_at(content, where, value), folder / "last.pt")
    try:
        run = training(folder, schedule)
    except InputError as error:
        assert str(folder) in str(error), where
        assert len(str(error)) < 1000
        return
    run.network(torch.rand(2, 1, 40, 40)).refined[0].square().mean().backward()
    run.optimization.step(torch.tensor(False))
    run.optimization.end_epoch(0.5)
    run.save()
    assert all(tensor.isfinite().all() for tensor in run.network.state_dict().values())
    assert run.cost()["epochs"] == run.progress.epoch.number


@pytest.mark.slow
@settings(max_examples=50, deadline=None, derandomize=True)
@given(data=st.data())
def test_mutated_networks_segment_or_are_refused(whole, tmp_path_factory, data):
    """Twice 50. What is taken segments, in values of labels that volumes can hold."""
    path = tmp_path_factory.mktemp("mutated") / "best.pt"
    content = load_checkpoint(whole / "best.pt")
    where, value = data.draw(mutations(content))
    torch.save(set_at(content, where, value), path)
    try:
        network = load_network(path, CPU)
    except InputError as error:
        assert str(path) in str(error), where
        assert len(str(error)) < 1000
        return
    logits = network.model(torch.rand(1, network.config.network.channels, 40, 40))
    assert logits.isfinite().all()
    assert len(network.identity.labels.names) == logits.shape[1]
    values = network.identity.labels.to_values(np.arange(logits.shape[1]))
    assert len(set(values.tolist())) == logits.shape[1]
    assert 0 <= values.min() <= values.max() < 2**16


NESTED: list = []
for _ in range(30):
    NESTED = [NESTED] * 10

REFUSED = {
    "few labels": (("data", "labels"), {"background": 0, "liver": 63}),
    "codes that are texts": (("data", "labels"), {"background": 0, "liver": "63", "spleen": 126}),
    "a negative value": (("data", "values"), {"background": 0, "liver": -1, "spleen": 2}),
    "values that are equal": (("data", "values"), {"background": 0, "liver": 0, "spleen": 0}),
    "a lone surrogate": (("data", "labels"), {"background": 0, "\udc80": 63, "spleen": 126}),
    "many steps": (("config", "steps"), 200),
    "very many steps": (("config", "steps"), 10**9),
    "lists in lists": (("config", "backbone"), NESTED),
    "a long text": (("config", "backbone"), "x" * 10**6),
    "another network": (("config", "model"), "unet"),
    "NaN": (("model", "layers.0.weight"), torch.full((4, 1, 3, 3), torch.nan)),
    "infinity": (("model", "layers.3.bias"), torch.full((3,), torch.inf)),
    "variances below 0": (("model", "layers.1.running_var"), torch.full((4,), -1.0)),
    "half precision": (("model", "layers.3.bias"), torch.zeros(3, dtype=torch.float16)),
    "one value for many": (("model", "layers.0.weight"), torch.zeros(1).expand(4, 1, 3, 3)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_named_mutations_are_refused(whole, tmp_path, case):
    torch.save(set_at(load_checkpoint(whole / "best.pt"), *REFUSED[case]), tmp_path / "best.pt")
    with pytest.raises(InputError, match=r"best\.pt: no checkpoint of this version of main\.py \(.+\)$"):
        load_network(tmp_path / "best.pt", CPU)


MOMENTS = ("optimization", "optimizer", "state", 0, "exp_avg")


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("progress", "epoch", "number"), -5), (("progress", "epoch", "iteration"), -3), (("progress", "log"), "abc"),
        (("progress", "log"), [{"epoch": 1}, {"epoch": 2}]), (("progress", "best"), None), (("optimization",), {}),
        (("optimization",), []), (MOMENTS, torch.full((4, 1, 3, 3), torch.nan)), (MOMENTS, torch.zeros(3)),
        (("optimization", "schedule", "last_epoch"), 10**6 + 0.5), (("config",), None), (("model",), [1]),
    ],
)  # fmt: skip
def test_named_mutations_of_what_a_run_goes_on_from(whole, schedule, tmp_path, where, value):
    (tmp_path / "run").mkdir()
    torch.save(set_at(load_checkpoint(whole / "last.pt"), where, value), tmp_path / "run" / "last.pt")
    shutil.copy(whole / "previous.pt", tmp_path / "run")
    with pytest.raises(InputError, match=r"last\.pt: no checkpoint of this version of main\.py"):
        training(tmp_path / "run", schedule)


def test_only_damage_falls_back_to_the_checkpoint_before(whole, schedule, tmp_path, capsys, monkeypatch):
    folder = shutil.copytree(whole, tmp_path / "run")
    content = (folder / "last.pt").read_bytes()
    (folder / "last.pt").write_bytes(content[: len(content) // 2])
    assert training(folder, schedule).resumed == "after epoch 1"
    assert "going on from previous.pt" in capsys.readouterr().out
    (folder / "last.pt").write_bytes(content)
    for error in (PermissionError(13, "Permission denied"), OSError(5, "Input/output error"), MemoryError()):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "load", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
            with pytest.raises(type(error)) as raised:
                training(folder, schedule)
        assert isinstance(error, MemoryError) or raised.value.filename == str(folder / "last.pt")
    assert (folder / "last.pt").read_bytes() == content


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "folder.pt").mkdir()
    for path in (tmp_path / "pipe.pt", tmp_path / "folder.pt", Path("/dev/zero")):
        with pytest.raises(InputError, match=f"{path}: is no file"):
            load_network(path, CPU)


def test_weights_that_fit_a_checkpoint_are_kept_to_the_bit(whole, tmp_path):
    content = load_checkpoint(whole / "best.pt")
    save_checkpoint(tmp_path / "best.pt", content)
    torch.testing.assert_close(
        load_network(tmp_path / "best.pt", CPU).model.state_dict(), content["model"], rtol=0, atol=0
    )
