"""The whole command on tiny data: what a run writes, whether its scores are right, and how it resumes."""

from __future__ import annotations

import csv
import json
import math
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from medpy.metric import binary
from PIL import Image

from checkpoint import load_checkpoint, save_checkpoint
from config import Config, parse_config
from main import main
from models import build_model
from utils import InputError, run_folders

ROOT = Path(__file__).parents[1]
TINY = ["--backbone", "resnet18", "--steps", "1", "--workers", "0", "--device", "cpu", "--amp", "off"]
CLASSES = ("background", "liver", "right kidney", "left kidney", "spleen")


def run(data: Path, out: Path, *flags: str) -> Path:
    main(parse_config(["--data", str(data), "--out", str(out), *TINY, *flags]))
    return out


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def blobs(make_data):
    """Slices whose organs are compact, so that surface distances say something."""
    root = make_data({"train": ["1"], "val": ["2"], "test": ["3", "11"]}, numbers=(8, 9, 10, 12))
    rows, columns = np.mgrid[:40, :48]
    for path in root.glob("*/GT/*.png"):
        mask = np.zeros((40, 48), np.uint8)
        for k, (row, column) in enumerate([(10, 10), (10, 36), (30, 12), (30, 36)], 1):
            mask[(rows - row) ** 2 + (columns - column) ** 2 < 40 + 5 * (len(path.name) % 3)] = 63 * k
        Image.fromarray(mask).save(path)
        noise = np.random.default_rng(len(path.name)).normal(0, 12, mask.shape)
        Image.fromarray((mask + noise).clip(0, 255).astype(np.uint8)).save(root / path.parts[-3] / "Img" / path.name)
    (root / "dataset.json").write_text(json.dumps({"subjects": {"3": {"spacing": [1.25, 1.5, 7.0]}}}))
    return root


def test_a_run_writes_its_folder_and_right_scores(blobs, tmp_path, capsys):
    out = run(blobs, tmp_path / "run", "--epochs", "3", "--batch_size", "3", "--eval_batch_size", "3")
    printed = capsys.readouterr().out
    assert "liver" in printed
    assert "spleen" in printed
    log = read_csv(out / "log.csv")
    assert [row["epoch"] for row in log] == ["1", "2", "3"]
    total = [
        float(row["segmentation"]) + 0.25 * float(row["guided"]) + 0.1 * float(row["reconstruction"]) for row in log
    ]
    np.testing.assert_allclose(total, [float(row["total"]) for row in log], rtol=1e-5)
    best, last = load_checkpoint(out / "best.pt"), load_checkpoint(out / "last.pt")
    assert best["val_dsc"] == last["best"] == max(float(row["val_dsc"]) for row in log)
    assert Config.from_dict(best["config"]) == Config.from_dict(json.loads((out / "config.json").read_text()))
    assert best["labels"] == dict(zip(CLASSES, (0, 63, 126, 189, 252), strict=True))
    assert (out / "test.png").stat().st_size > 5000

    scores = {(row["subject"], row["class"]): row for row in read_csv(out / "test.csv")}
    assert len(scores) == 8
    found = 0
    for subject, spacing in (("3", (7.0, 1.5, 1.25)), ("11", (1.0, 1.0, 1.0))):
        image = sitk.ReadImage(str(out / "predictions" / f"{subject}.nii.gz"))
        np.testing.assert_allclose(image.GetSpacing()[::-1], spacing)
        prediction = sitk.GetArrayFromImage(image)
        target = np.zeros((5, 40, 48), np.uint8)  # slices 8 to 12; number 11 has no file
        for number in (8, 9, 10, 12):
            path = blobs / "test" / "GT" / f"Subj_{subject}slice_{number}.png"
            target[number - 8] = np.asarray(Image.open(path)) // 63
        assert not prediction[3].any()
        for k, name in enumerate(CLASSES[1:], 1):
            row, pair = scores[subject, name], (prediction == k, target == k)
            if not pair[0].any():
                assert (row["dsc"], row["vs"], row["msd"], row["missed"]) == ("0.0", "0.0", "nan", "True")
                continue
            found += 1
            sizes = [mask.sum() for mask in pair]
            assert float(row["dsc"]) == pytest.approx(binary.dc(*pair), rel=1e-9)
            assert float(row["vs"]) == pytest.approx(1 - abs(sizes[0] - sizes[1]) / sum(sizes), rel=1e-9)
            assert float(row["msd"]) == pytest.approx(binary.assd(*pair), rel=1e-9)
            assert float(row["hd95"]) == pytest.approx(binary.hd95(*pair), rel=1e-9)
            if subject == "3":
                assert float(row["msd_mm"]) == pytest.approx(binary.assd(*pair, voxelspacing=spacing), rel=1e-9)
                assert float(row["hd95_mm"]) == pytest.approx(binary.hd95(*pair, voxelspacing=spacing), rel=1e-9)
            else:
                assert row.get("msd_mm", "") == ""
    assert found >= 2
    summary = json.loads((out / "test.json").read_text())
    mean = np.mean([np.mean([float(scores[s, c]["dsc"]) for c in CLASSES[1:]]) for s in ("3", "11")])
    assert summary["overall"]["dsc"]["mean"] == pytest.approx(mean)


def test_a_run_from_pretrained_weights_resumes_without_them(make_data, tmp_path, monkeypatch):
    """Where the cluster's nodes have no connection, or the cache is gone."""
    built = []

    def build(config):
        built.append(config.pretrained)
        return build_model(replace(config, pretrained=False))

    monkeypatch.setattr("main.build_model", build)
    flags = ("--no-guidance", "--pretrained")
    out = run(make_data(), tmp_path / "run", "--epochs", "1", *flags)
    run(make_data(), out, "--epochs", "2", *flags, "--resume")
    assert built == [True, False]
    assert json.loads((out / "config.json").read_text())["pretrained"]


def test_last_partial_batch_is_trained_on(make_data, tmp_path):
    """Three slices in a batch of eight: the released code would train on nothing."""
    out = run(make_data(numbers=(1, 2, 3)), tmp_path / "run", "--epochs", "1")
    assert np.isfinite(float(read_csv(out / "log.csv")[0]["total"]))
    checkpoint = load_checkpoint(out / "last.pt")
    assert all(state["step"] == 1 for state in checkpoint["optimization"]["optimizer"]["state"].values())


def test_a_run_is_not_overwritten_or_turned_into_another(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.json").write_text(json.dumps(parse_config(TINY).to_dict()))
    with pytest.raises(InputError, match="holds a run already"):
        run(tmp_path, out)
    with pytest.raises(InputError, match=r"another configuration \(lr 0.001 -> 0.5\)"):
        parse_config(["--out", str(out), "--resume", "--lr", "0.5"])
    parse_config(["--out", str(out), "--resume", "--channels", "3", "--classes", "9"])  # the data says how many
    for content in (b"{}", b"[]", b"\xff", b"{"):
        (out / "config.json").write_bytes(content)
        with pytest.raises(InputError, match=r"config\.json"):
            parse_config(["--out", str(out), "--resume"])


@pytest.mark.parametrize(
    ("name", "value"), [("seed", 2**32), ("seed", -1), ("rotation_degrees", math.nan), ("rotation_degrees", math.inf)]
)
def test_values_that_cannot_work_are_refused(name, value):
    with pytest.raises(InputError, match=f"--{name} {value}: must lie between"):
        Config(**{name: value})


def test_encoders_of_the_library_are_for_its_networks():
    assert parse_config(["--model", "smp.Segformer", "--backbone", "mit_b0"]).backbone == "mit_b0"
    with pytest.raises(InputError, match="--backbone mit_b0: must be resnet18, "):
        Config(backbone="mit_b0")


def test_a_device_that_computes_nothing_is_refused(make_data, tmp_path):
    with pytest.raises(InputError, match="--device meta: cannot be used"):
        run(make_data(), tmp_path / "run", "--device", "meta")
    assert not (tmp_path / "run").exists()


def test_a_file_is_no_run_folder(make_data, tmp_path):
    data = make_data()
    (tmp_path / "file").write_text("kept")
    for out in ("file", "file/below"):
        with pytest.raises(InputError, match=f"--out .*{out}: is a file"):
            run(data, tmp_path / out, "--epochs", "1")
    assert (tmp_path / "file").read_text() == "kept"


def test_flags_without_effect_are_named():
    flags = ["--preset", "modern", "--model", "unet", "--guidance", "--steps", "3"]
    assert parse_config(flags).notes() == ["--steps, --guidance without effect: only of --model ms_dual_guided"]
    assert parse_config(["--preset", "modern", "--beta", "1", "--plateau_epochs", "3"]).notes() == [
        "--beta without effect: only with --guidance",
        "--plateau_epochs without effect: only with --schedule plateau",
    ]
    assert parse_config(["--model", "unet", "--backbone", "resnet18"]).notes() == [
        "--backbone without effect: --model unet has none"
    ]
    assert parse_config(["--preset", "modern", "--model", "smp.Unet"]).notes() == []
    assert parse_config(["--steps", "3", "--no-guidance"]).notes() == []


def test_numbered_run_folders_and_resume_of_the_newest(make_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--data", str(make_data()), *TINY]
    for _ in range(2):
        main(parse_config([*flags, "--epochs", "1", "--preset", "quick"]))
    assert sorted(path.name for path in Path("runs").iterdir()) == ["001-quick", "002-quick"]
    main(parse_config(["--resume", "--epochs", "2"]))
    assert [len(read_csv(Path("runs") / name / "log.csv")) for name in ("001-quick", "002-quick")] == [1, 2]


def test_the_newest_run_has_the_largest_number(tmp_path):
    for name in ("999-paper", "1000-quick", "002-paper", "2nd-try", "notes"):
        (tmp_path / name).mkdir()
    assert [path.name for path in run_folders(tmp_path)] == ["002-paper", "999-paper", "1000-quick"]


class Malicious:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code from a checkpoint ran')",))


def test_checkpoints_cannot_run_code(tmp_path):
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Malicious()))
    torch.save({"model": Malicious()}, tmp_path / "zip.pt")
    (tmp_path / "noise.pt").write_bytes(b"noise")
    for name in ("evil.pt", "zip.pt", "noise.pt", "missing.pt"):
        with pytest.raises(InputError, match=name):
            load_checkpoint(tmp_path / name)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(position=st.floats(0, 1), bit=st.integers(0, 7), cut=st.booleans())
def test_damaged_checkpoints_are_noticed(tmp_path_factory, position, bit, cut):
    """A flipped bit or a missing end is either refused or without any effect."""
    path = tmp_path_factory.mktemp("damage") / "last.pt"
    whole = {"model": {"weight": torch.arange(300.0)}, "epoch": 3, "log": [{"loss": 0.25}]}
    save_checkpoint(path, whole)
    content = bytearray(path.read_bytes())
    at = int(position * (len(content) - 1))
    if cut:
        content = content[:at]
    else:
        content[at] ^= 1 << bit
    path.write_bytes(content)
    try:
        read = load_checkpoint(path)
    except InputError as error:
        assert "last.pt" in str(error)
    else:
        torch.testing.assert_close(read, whole, rtol=0, atol=0)


def test_resumed_equals_uninterrupted_also_from_the_checkpoint_before(blobs, tmp_path, capsys):
    """Three epochs; and one, two, then three, of which the last goes on from previous.pt, since last.pt is damaged."""
    flags = ("--batch_size", "3", "--plateau_epochs", "1")
    straight = run(blobs, tmp_path / "straight", "--epochs", "3", *flags)
    resumed = run(blobs, tmp_path / "resumed", "--epochs", "1", *flags)
    main(parse_config(["--out", str(resumed), "--resume", "--epochs", "2"]))
    content = bytearray((resumed / "last.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (resumed / "last.pt").write_bytes(content)
    capsys.readouterr()
    main(parse_config(["--out", str(resumed), "--resume", "--epochs", "3"]))
    printed = capsys.readouterr().out
    assert "last.pt: " in printed and "going on from previous.pt" in printed and "resumed after epoch 1" in printed
    before, after = (load_checkpoint(folder / "last.pt") for folder in (straight, resumed))
    torch.testing.assert_close(before["model"], after["model"], rtol=0, atol=0)
    assert before["optimization"]["schedule"] == after["optimization"]["schedule"]
    timeless = [
        [{k: v for k, v in row.items() if k not in ("seconds", "memory_gib")} for row in c["log"]]
        for c in (before, after)
    ]
    assert timeless[0] == timeless[1]
    assert (straight / "test.csv").read_text() == (resumed / "test.csv").read_text()
    for name in ("last.pt", "previous.pt"):
        (resumed / name).write_bytes(b"noise")
    with pytest.raises(InputError, match=r"last.pt.*previous.pt.*start again"):
        run(blobs, resumed, "--epochs", "4", *flags, "--resume")


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"epoch": 1})
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_checkpoint(path, {"epoch": lambda: 2})
    assert load_checkpoint(path) == {"epoch": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--data", "nowhere"], "nowhere/train: no such folder"),
        (["--steps", "0"], "--steps 0: must be at least 1"),
        (["--preset", "best"], "--preset"),
        (["--device", "cuda:7"], "--device cuda:7"),
    ],
)
def test_mistakes_end_with_code_2_and_without_traceback(flags, expected):
    done = subprocess.run([sys.executable, "main.py", *flags], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
