"""The folder of a run: what it is called, what goes on from it, and what may not."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from config import parse_config
from main import main
from models import NETWORKS
from tests.helpers.networks import TinyNetwork
from tests.helpers.runs import TINY, read_csv, run, same_result
from tests.helpers.signals import StopAfter
from tests.helpers.soak import soak
from training.checkpoint import load_checkpoint
from training.run import claim_folder
from utils import InputError, OptionError, run_folders, unlock_folder


@pytest.fixture
def data(make_data) -> Path:
    """Three iterations in an epoch."""
    return make_data({"train": ["1", "2"], "val": ["3"], "test": ["4"]}, numbers=(1, 2, 3))


def test_numbered_run_folders_and_resume_of_the_newest(make_data, tmp_path, monkeypatch, tiny):
    monkeypatch.chdir(tmp_path)
    flags = ["--data", str(make_data()), *TINY]
    for _ in range(2):
        main(parse_config([*flags, "--epochs", "1", "--preset", "quick", "--schedule", "plateau"]))
    assert sorted(path.name for path in Path("runs").iterdir()) == ["001-quick", "002-quick"]
    Path("runs/2026-12-notes").mkdir()  # the user's own
    main(parse_config(["--resume", "--epochs", "2"]))
    assert [len(read_csv(Path("runs") / name / "log.csv")) for name in ("001-quick", "002-quick")] == [1, 2]


def test_the_newest_run_has_the_largest_number(tmp_path):
    for name in ("999-paper", "1000-quick", "002-paper", "2nd-try", "notes"):
        (tmp_path / name).mkdir()
    assert [path.name for path in run_folders(tmp_path)] == ["002-paper", "999-paper", "1000-quick"]


def test_a_device_that_computes_nothing_is_refused(make_data, tmp_path, tiny):
    with pytest.raises(InputError, match="--device meta: cannot be used"):
        run(make_data(), tmp_path / "run", "--device", "meta")
    assert not (tmp_path / "run").exists()


def test_a_file_is_no_run_folder(make_data, tmp_path, tiny):
    data = make_data()
    (tmp_path / "file").write_text("kept")
    for out in ("file", "file/below"):
        with pytest.raises(InputError, match=f"{out}: is a file"):
            run(data, tmp_path / out, "--epochs", "1")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_run_without_its_last_checkpoint_is_not_begun_anew(make_data, tmp_path, tiny):
    data = make_data()
    out = run(data, tmp_path / "run", "--epochs", "1")
    (out / "last.pt").unlink()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"run: is a run, but has no last\.pt to go on from"):
        run(data, out, "--epochs", "2")
    unlock_folder(out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("content", [None, b"noise"])
def test_a_run_whose_best_network_is_lost_is_refused_before_it_goes_on(make_data, tmp_path, tiny, content):
    data = make_data()
    out = run(data, tmp_path / "run", "--epochs", "1")
    (out / "best.pt").unlink()
    if content:
        (out / "best.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"best.pt: .*; copy it back, or train on from .*last.pt with --init"):
        run(data, out, "--epochs", "2")
    unlock_folder(out)
    assert (out / "test.json").exists()
    assert len(read_csv(out / "log.csv")) == 1


def test_fewer_epochs_than_there_are_already_are_refused(make_data, tmp_path, tiny):
    data = make_data()
    out = run(data, tmp_path / "run", "--epochs", "2")
    with pytest.raises(OptionError, match=r"epochs 1: .* has 2 already"):
        run(data, out, "--epochs", "1")
    unlock_folder(out)
    assert json.loads((out / "config.json").read_text())["epochs"] == 2
    assert (out / "test.json").exists()


def test_a_run_remembers_its_earlier_starts(make_data, tmp_path, monkeypatch, capsys, tiny):
    data = make_data()
    monkeypatch.setattr("training.environment.code_version", lambda root: ("abc", "no"))
    monkeypatch.setattr("sys.argv", ["main.py", "--first"])
    out = run(data, tmp_path / "run", "--epochs", "1")
    assert "earlier starts" not in json.loads((out / "environment.json").read_text())
    monkeypatch.setattr("sys.argv", ["main.py", "--second"])
    run(data, out, "--epochs", "2")
    assert "was trained otherwise" not in capsys.readouterr().out
    monkeypatch.setattr("training.environment.code_version", lambda root: ("def", "yes"))
    monkeypatch.setattr("sys.argv", ["main.py", "--third"])
    run(data, out, "--epochs", "3")
    changed = "commit abc -> def, changed since no -> yes"
    assert f"note: {out}: was trained otherwise before ({changed})\n" in capsys.readouterr().out
    of_test = json.loads((out / "test.json").read_text())["environment"]
    for kept in (json.loads((out / "environment.json").read_text()), of_test):
        assert kept["command"] == "main.py --third"
        first, second = kept["earlier starts"].split("; ")
        assert first.endswith("UTC: main.py --first") and second.endswith(f"UTC: main.py --second ({changed})")


@pytest.mark.parametrize("content", ["", "[]", '{"command": 5}'])
def test_a_damaged_environment_stops_no_run(make_data, tmp_path, tiny, content):
    data = make_data()
    out = run(data, tmp_path / "run", "--epochs", "1")
    (out / "environment.json").write_text(content)
    run(data, out, "--epochs", "2")
    assert "earlier starts" not in json.loads((out / "environment.json").read_text())


@pytest.mark.slow
def test_resumed_equals_uninterrupted_also_from_the_checkpoint_before(data, tmp_path, capsys, tiny):
    """Three epochs; and one, two, then three, of which the last goes on from previous.pt, since last.pt is damaged."""
    flags = ("--batch_size", "4", "--plateau_epochs", "1")
    straight = run(data, tmp_path / "straight", "--epochs", "3", *flags)
    resumed = run(data, tmp_path / "resumed", "--epochs", "1", *flags)
    shutil.copy(resumed / "last.pt", tmp_path / "first.pt")
    main(parse_config(["--out", str(resumed), "--resume", "--epochs", "2"]))
    assert not (resumed / "previous.pt").exists()
    shutil.move(tmp_path / "first.pt", resumed / "previous.pt")  # as if the second epoch had just ended
    content = bytearray((resumed / "last.pt").read_bytes())
    middle = slice(len(content) // 2, len(content) // 2 + 256)  # more than what may lie between two parts
    content[middle] = bytes(byte ^ 1 for byte in content[middle])
    (resumed / "last.pt").write_bytes(content)
    capsys.readouterr()
    main(parse_config(["--out", str(resumed), "--resume", "--epochs", "3"]))
    printed = capsys.readouterr().out
    assert "last.pt: " in printed and "going on from previous.pt" in printed and "resumed after epoch 1" in printed
    same_result(straight, resumed)
    for name in ("last.pt", "previous.pt"):
        (resumed / name).write_bytes(b"noise")
    with pytest.raises(InputError, match=r"last.pt.*previous.pt.*start again"):
        run(data, resumed, "--epochs", "4", *flags)


def test_a_run_from_pretrained_weights_resumes_without_them(make_data, tmp_path, monkeypatch):
    """Where the cluster's nodes have no connection, or the cache is gone."""
    loaded = []

    class Tiny(TinyNetwork):
        def __init__(self, channels, classes, backbone):
            super().__init__(channels, classes)

        def load_pretrained(self, weights=None):
            loaded.append(weights)

    monkeypatch.setitem(NETWORKS, "tiny", Tiny)
    file = tmp_path / "weights.pt"
    torch.save({"layer": torch.ones(2)}, file)
    for source, expected in (("imagenet", None), (str(file), {"layer": torch.ones(2)})):
        out = run(make_data(), tmp_path / f"run-{expected is None}", "--epochs", "1", "--pretrained", source)
        file.unlink()
        run(make_data(), out, "--epochs", "2", "--pretrained", source)
        torch.testing.assert_close(loaded, [expected])
        loaded.clear()
        torch.save({"layer": torch.ones(2)}, file)
        assert json.loads((out / "config.json").read_text())["pretrained"] == source


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ms_dual_guided", "smp.PSPNet"])
def test_an_interrupted_epoch_of_the_modern_recipe_goes_on_as_if_it_had_not_been(make_data, tmp_path, model):
    """The rate in the log is that of the epoch's first iteration, and PSPNet's dropout draws what it would have."""
    data = make_data({"train": ["1", "2"], "val": ["3"], "test": ["4"]}, numbers=(1, 2, 3))
    flags = ["--preset", "modern", "--data", str(data), "--backbone", "resnet18", "--no_guidance", "--epochs", "2"]
    flags += ["--steps", "1", "--device", "cpu", "--batch_size", "2", "--model", model, "--out"]
    main(parse_config([*flags, str(tmp_path / "straight")]))
    with StopAfter(4) as stop, pytest.raises(SystemExit):
        main(parse_config([*flags, str(tmp_path / "resumed")]), stop)
    assert load_checkpoint(tmp_path / "resumed" / "last.pt")["progress"]["epoch"]["iteration"] == 1
    main(parse_config([*flags, str(tmp_path / "resumed"), "--resume"]))
    same_result(tmp_path / "straight", tmp_path / "resumed")


# ---------------------------------------------------------------- what a run goes on with


def test_a_run_goes_on_with_the_same_slices_only(data, tmp_path, tiny):
    run(data, tmp_path / "run", "--epochs", "1")
    for kind in ("Img", "GT"):
        (data / "train" / kind / "Subj_1slice_3.png").unlink()
    with pytest.raises(InputError, match="other training slices"):
        run(data, tmp_path / "run", "--epochs", "2")
    assert (tmp_path / "run" / "test.json").exists()


@pytest.mark.parametrize(("split", "kind"), [("train", "Img"), ("test", "GT")])
def test_a_run_goes_on_with_the_same_content_only(data, tmp_path, tiny, split, kind):
    """Files of the same names with other pixels are other data; the same pixels in other files are not."""
    run(data, tmp_path / "run", "--epochs", "1")
    path = next((data / split / kind).iterdir())
    with Image.open(path) as picture:
        pixels = np.array(picture)
    Image.fromarray(pixels).save(path, compress_level=0)
    run(data, tmp_path / "run", "--epochs", "2")
    pixels[3, 5] = 63 if pixels[3, 5] != 63 else 126
    Image.fromarray(pixels).save(path)
    what = "training slices" if split == "train" else "validation or test slices"
    with pytest.raises(InputError, match=f"has other {what} than .*run was trained on"):
        run(data, tmp_path / "run", "--epochs", "3")
    assert (tmp_path / "run" / "test.json").exists()


def test_runs_that_start_at_one_moment_get_numbers_of_their_own(tmp_path, monkeypatch):
    """Threads stand for processes: nothing that they share keeps them apart. Files do not count as runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "002-paper").mkdir(parents=True)
    (tmp_path / "runs" / "003-quick").write_text("a file")
    together = threading.Barrier(8)

    def claim(k: int) -> Path:
        together.wait()
        return claim_folder(None, ("quick", "paper")[k % 2])

    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(claim, range(8)))
    for folder in folders:
        unlock_folder(folder)
    numbers = {folder.name.partition("-")[0] for folder in folders}
    assert len(numbers) == len(set(folders)) == 8
    assert min(numbers) == "004" and len(run_folders()) == 9


def test_a_run_goes_on_with_the_same_evaluation_only(data, tmp_path, tiny):
    """Else its best epoch could be one that its new test subjects chose."""
    run(data, tmp_path / "run", "--epochs", "1")
    for source, target in (("val", "kept"), ("test", "val"), ("kept", "test")):
        (data / source).rename(data / target)
    with pytest.raises(InputError, match="other validation or test slices"):
        run(data, tmp_path / "run", "--epochs", "2")
    assert (tmp_path / "run" / "test.json").exists()


def test_a_run_goes_on_with_the_same_classes_only(data, tmp_path, tiny):
    """Names in another order number the classes anew; the refusal leaves the finished run as it is."""
    labels = {"background": 0, "liver": 63, "right": 126, "left": 189, "spleen": 252}
    (data / "dataset.json").write_text(json.dumps({"labels": labels}))
    run(data, tmp_path / "run", "--epochs", "1")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    turned = {"background": 0, "liver": 63, "left": 189, "right": 126, "spleen": 252}
    wrong = {
        "other classes": {"labels": turned},
        "other preparation": {"labels": labels, "preparation": {"bits": 16}},
        "classes 5 -> 6": {"labels": labels | {"heart": 31}},
    }
    for message, content in wrong.items():
        (data / "dataset.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            run(data, tmp_path / "run", "--epochs", "2")
    assert {path: path.read_bytes() for path in before} == before


def test_a_checkpoint_without_its_configuration_is_not_taken_for_another_run(data, tmp_path, tiny):
    run(data, tmp_path / "run", "--epochs", "1")
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(InputError, match=r"other settings \(lr 0\.001 -> 0\.01\)"):
        run(data, tmp_path / "run", "--epochs", "2", "--lr", "0.01")


def test_training_needs_no_network(data, tmp_path, monkeypatch, tiny):
    import socket

    def refuse(*_: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    run(data, tmp_path / "run", "--epochs", "1")


@pytest.mark.slow
def test_soak(tmp_path):
    """A short form of python -m tests.helpers.soak: memory and open files stay where they are."""
    report = soak(tmp_path, 15, ["--model", "tiny"])
    assert max(report["files"]) <= min(report["files"]) + 2  # one may be open for a moment
    assert report["growth_mib"] < 30
