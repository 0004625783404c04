"""Hyperparameters: their ranges, presets, flags, and what a resumed run may change."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from config import GROUP_OF, GROUPS, PRESETS, AugmentationConfig, Config, MachineConfig, parse_config
from training.terminal import idle_flags
from utils import InputError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 2**32), ("seed", -1), ("rotation_degrees", math.nan), ("rotation_degrees", math.inf),
        ("rotation_degrees", 181.0), ("flip_probability", 1.5), ("intensity_probability", 2.0), ("dice", -1.0),
        ("alpha", math.inf), ("alpha", 0.0), ("lr", 0.0), ("lr", math.nan), ("plateau_factor", 0.0),
        ("plateau_factor", 1.1),
        ("betas", (0.9, 1.0)), ("betas", (-0.1, 0.9)), ("steps", 0), ("channels", 0), ("classes", 1), ("epochs", 0),
        ("batch_size", 0), ("eval_batch_size", 0), ("plateau_epochs", 0), ("max_skipped", -1), ("workers", -1),
    ],
)  # fmt: skip
def test_values_out_of_their_range_are_refused(name, value):
    with pytest.raises(InputError, match=f"--{name} .*: must be (at least|above|between)"):
        Config.of(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 2**32 - 1), ("rotation_degrees", 180.0), ("flip_probability", 1.0), ("dice", 0.0),
        ("betas", (0.0, 0.0)),
        ("plateau_factor", 1.0), ("max_skipped", 0), ("workers", 0), ("workers", "auto"), ("classes", 2),
    ],
)  # fmt: skip
def test_the_ends_of_a_range_are_in_it(name, value):
    assert Config.of(**{name: value}).values()[name] == value


def test_flags_out_of_range_end_with_code_2_and_name_the_flag(capsys):
    with pytest.raises(SystemExit) as ending:
        parse_config(["--steps", "0"])
    assert ending.value.code == 2
    assert "--steps 0: must be between 1 and 50" in capsys.readouterr().err


def test_every_field_is_in_one_group_and_has_a_flag(capsys):
    names = [field.name for group in GROUPS.values() for field in dataclasses.fields(group)]
    assert len(names) == len(set(names))
    assert set(names) < GROUP_OF.keys()
    assert {name: type(getattr(Config(), name)) for name in GROUPS} == GROUPS
    with pytest.raises(SystemExit):
        parse_config(["--help"])
    shown = capsys.readouterr().out
    assert all(f"--{name}" in shown for name in GROUP_OF)


def test_flat_names_reach_their_groups_and_json():
    config = Config.of(lr=0.5, workers=3, betas=(0.1, 0.2), out=Path("x"), flip_probability=0.0)
    assert (config.optimization.lr, config.machine.workers, config.augmentation.flip_probability) == (0.5, 3, 0.0)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.change(lr=1e-3, workers="auto").machine == MachineConfig()
    assert config.augmentation == AugmentationConfig(flip_probability=0.0)
    assert parse_config(["--lr", "0.5", "--no_guidance"]) == Config.of(lr=0.5, guidance=False)
    assert parse_config(["--no-guidance"]) == parse_config(["--no_guidance"])


@pytest.mark.parametrize(
    ("name", "value"), [("scales", "Native"), ("steps", "2"), ("steps", 2.5), ("betas", (0.9,)), ("guidance", 1)]
)
def test_values_of_another_kind_are_refused(name, value):
    with pytest.raises(InputError, match=rf"^{name} .*another kind"):
        Config.of(**{name: value})


def test_numbers_of_numpy_and_lists_are_taken():
    config = Config.of(steps=np.int64(3), lr=np.float32(0.5), guidance=np.True_, betas=[0.5, 0.75])
    assert config == Config.of(steps=3, lr=0.5, guidance=True, betas=(0.5, 0.75))
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_misspelled_field_is_refused():
    with pytest.raises(InputError, match=r"^flip: is no field"):
        Config.of(flip=0.5)


def test_configurations_with_other_fields():
    values = Config.of(steps=3).to_dict()
    del values["dice"]
    assert Config.from_dict(values) == Config.of(steps=3)
    with pytest.raises(InputError, match=r"unknown fields.*colour"):
        Config.from_dict(values | {"colour": 1})


def test_the_papers_protocol():
    """What the paper's section on the implementation says, and its code where it is silent."""
    config = parse_config([])
    optimization, loss, augmentation = config.optimization, config.loss, config.augmentation
    assert (optimization.epochs, optimization.batch_size, optimization.lr) == (500, 8, 1e-3)
    assert optimization.betas == (0.9, 0.99)
    assert (optimization.schedule, optimization.plateau_epochs, optimization.plateau_factor) == ("plateau", 50, 0.5)
    assert (loss.alpha, loss.beta, loss.gamma, config.network.steps) == (1, 0.25, 0.1, 2)
    assert (augmentation.flip_probability, augmentation.rotation_probability) == (0.5, 0.5)
    assert augmentation.rotation_degrees == 30


def test_the_papers_preset_has_none_of_the_modern_recipe():
    paper, modern = PRESETS["paper"].to_dict(), PRESETS["modern"].to_dict()
    assert (paper["dice"], paper["schedule"]) == (0, "plateau")
    assert (paper["affine_probability"], paper["intensity_probability"]) == (0, 0)
    assert (paper["fine_decoder"], paper["largest_component"], paper["neutral_guide"]) == (False,) * 3
    assert all(paper[name] == modern[name] for name in ("model", "steps", "beta", "gamma", "variant"))


def test_flags_without_effect_are_named():
    flags = ["--preset", "modern", "--model", "unet", "--guidance", "--steps", "3"]
    assert idle_flags(parse_config(flags)) == ["--steps, --guidance without effect: not of --model unet"]
    assert idle_flags(parse_config(["--preset", "modern", "--beta", "1", "--plateau_epochs", "3"])) == [
        "--beta without effect: only with --guidance",
        "--plateau_epochs without effect: only with --schedule plateau",
    ]
    assert idle_flags(parse_config(["--model", "unet", "--backbone", "resnet18"])) == [
        "--backbone without effect: not of --model unet"
    ]
    assert idle_flags(parse_config(["--preset", "modern", "--model", "smp.Unet"])) == []
    assert idle_flags(parse_config(["--steps", "3", "--no_guidance"])) == []
    assert idle_flags(parse_config(["--model", "daf_cam", "--variant", "released"])) == []
    flags = ["--model", "daf_pam", "--variant", "released", "--rotation_probability", "0", "--rotation_degrees", "9"]
    assert idle_flags(parse_config([*flags, "--sync_batch_norm"])) == [
        "--variant without effect: only with channel attention or guidance",
        "--rotation_degrees without effect: only with --rotation_probability",
        "--sync_batch_norm without effect: only with several processes",
    ]
    flags = ["--no_encoder_decoder", "--semantic_channels", "32", "--gamma", "0.5", "--steps", "1", "--beta", "1"]
    flags += ["--no_position_attention", "--key_pooling", "4"]
    assert idle_flags(parse_config(flags)) == [
        "--semantic_channels, --gamma without effect: only with --encoder_decoder",
        "--beta without effect: only with two or more --steps",
        "--key_pooling without effect: only with --position_attention",
    ]


def test_the_length_of_a_cycle_cannot_change(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(parse_config(["--preset", "modern", "--epochs", "1"]).to_dict()))
    with pytest.raises(InputError, match="epochs 1 -> 3"):
        parse_config(["--out", str(tmp_path), "--resume", "--epochs", "3"])


def test_a_restart_by_torchrun_goes_on_with_the_named_run_only(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(InputError, match="--out: must be given with torchrun --max-restarts"):
        parse_config([])
    (tmp_path / "config.json").write_text(json.dumps(Config.of(epochs=7).to_dict()))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert parse_config(["--out", str(tmp_path)]) == Config.of(epochs=7, out=tmp_path)


def test_a_run_is_not_overwritten_or_turned_into_another(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(Config().to_dict()))
    with pytest.raises(InputError, match="holds a run already"):
        parse_config(["--out", str(tmp_path)])
    with pytest.raises(InputError, match=r"another configuration \(lr 0.001 -> 0.5\)"):
        parse_config(["--out", str(tmp_path), "--resume", "--lr", "0.5"])
    parse_config(["--out", str(tmp_path), "--resume", "--channels", "3", "--classes", "9"])  # the data says how many
    for content in (b"{}", b"[]", b"\xff", b"{"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(InputError, match=r"config\.json"):
            parse_config(["--out", str(tmp_path), "--resume"])


def test_help_loads_no_torch_and_a_reader_may_go_away():
    """Help and mistakes in flags wait for nothing; `main.py --help | head -1` ends without a word."""
    code = "import sys; from config import parse_config; sys.argv = ['main.py', '--lr', '1']; parse_config(); "
    code += "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
    command = f"{sys.executable} main.py --help | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("usage: main.py")
    assert done.stderr == ""
