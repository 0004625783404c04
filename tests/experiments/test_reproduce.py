"""The command that makes the paper's tables: folds, mistakes of the user, runs that are killed or fail and go on."""

from __future__ import annotations

import itertools
import json
import os
import runpy
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import reproduce
from config import parse_config
from experiments.launching import Run
from experiments.results import IN_MM
from experiments.rows import ROWS
from experiments.tables import PAPER
from main import main
from tests.helpers.errors import assert_clear
from tests.helpers.processes import ended
from tests.helpers.results import scores_of
from tests.helpers.runs import ON_CPU, TINY
from tests.helpers.runs import run as train
from tests.helpers.trainings import start_reproduce, wait_for
from training.checkpoint import load_checkpoint
from utils import InputError, read_csv, user_errors, write_csv

ROOT = Path(__file__).parents[2]


# ---------------------------------------------------------------- tables


@pytest.mark.slow
def test_table_viii(tmp_path, no_initialization, capsys):
    reproduce.main(["VIII", "--out", str(tmp_path)])
    text = (tmp_path / "table-VIII" / "table.md").read_text()
    assert "| MS-Dual-Guided | 58,499,679 | 58,499,679 | 0 |" in text
    for row in PAPER["parameters"]:
        line = next(line for line in text.splitlines() if line.startswith(f"| {row} |"))
        assert line.split("|")[4].strip() == "0" or len(line.split("|")[5]) > 20  # equal, or a note says why


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time."""
    for name in ("save_boxes", "save_curves"):
        monkeypatch.setattr(reproduce, name, lambda *_: None)


def test_a_folder_called_as_the_proposed_network_is_no_reference(finished, tmp_path, capsys, no_pictures):
    """Of runs of one's own, the first is the reference, whatever the folders are called."""
    folders = [str(finished[name].rename(tmp_path / name)) for name in ("DAF", "MS-Dual-Guided")]
    reproduce.main(["compare", *folders, "--out", str(tmp_path / "out")])
    text = (tmp_path / "out" / "table.md").read_text()
    assert "Paired tests are against DAF." in text
    lines = [line for line in text.splitlines() if line.startswith(("| DAF |", "| MS-Dual-Guided |"))]
    assert [line.split("|")[1].strip() for line in lines[:2]] == ["DAF", "MS-Dual-Guided"]  # as they are given


@pytest.mark.slow
def test_compare_keeps_names_and_folders(finished, make_run, tmp_path, capsys):
    second = make_run("again/daf", [scores_of(s, label, 0.5) for s in "123" for label in ("liver", "spleen")], 1)
    rows = [f"Our network={finished['MS-Dual-Guided']}", f"{finished['DAF']},{second}"]
    reproduce.main(["compare", *rows, "--against", "daf", "--out", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == [
        {"row": "Our network", "folders": [str(finished["MS-Dual-Guided"])]},
        {"row": "daf", "folders": [str(finished["DAF"]), str(second)]},
    ]
    cells = read_csv(tmp_path / "out" / "table.csv")
    assert {cell["against"] for cell in cells if cell["row"] == "Our network"} == {"daf"}
    (cell,) = [cell for cell in cells if (cell["row"], cell["class"], cell["metric"]) == ("daf", "liver", "DSC")]
    # Seed 0: 80, 65, 90; seed 1: 50 of each subject.
    assert float(cell["mean"]) == pytest.approx((235 / 3 + 50) / 2)
    assert float(cell["std_over_seeds"]) == pytest.approx((235 / 3 - 50) / 2**0.5)
    for name in ("table.md", "table.tex", "boxes.png", "curves.png"):
        assert (tmp_path / "out" / name).stat().st_size > 500


def test_finished_runs_stand_beside_the_rows_of_a_table(finished, make_data, tmp_path, monkeypatch, no_pictures):
    monkeypatch.setattr(reproduce, "run_all", lambda *_: None)  # no row of the table is trained
    data, out = make_data(), tmp_path / "out"
    for path in data.glob("*/GT/*.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 3, (40, 48), np.uint8)).save(path)
    (data / "dataset.json").write_text('{"labels": {"background": 0, "liver": 1, "spleen": 2}}')
    rows = ["--rows", f"Mine={finished['DAF']}", f"Ours={finished['MS-Dual-Guided']}", "--against", "Mine"]
    with pytest.raises(SystemExit):
        reproduce.main(["I", "--data", str(data), "--out", str(out), "--only", "DAF,PAM", "--lr", "0.01", *rows])
    assert {row["row"] for row in read_csv(out / "table-I" / "table.csv")} == {"Mine", "Ours"}
    text = (out / "table-I" / "table.md").read_text()
    assert "Paired tests are against Mine." in text and "Table I: Ablation on CHAOS" in text
    assert "Flags of all trained rows: --lr 0.01." in text


def test_rows_of_other_data_are_refused_before_any_training(finished, make_data, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "run_all", lambda *_: pytest.fail("a training was started"))
    arguments = ["I", "--data", str(make_data()), "--out", str(tmp_path / "out"), "--rows", f"Mine={finished['DAF']}"]
    with pytest.raises(InputError) as caught:
        reproduce.main(arguments)
    assert_clear(caught.value, str(finished["DAF"]), "has other classes or regions")


@pytest.mark.parametrize("change", ["regions", "tolerances", "groups"])
def test_what_cannot_share_a_table_is_refused_before_any_training(finished, make_data, tmp_path, monkeypatch, change):
    """Of two data sets, and of a finished run beside one."""
    monkeypatch.setattr(reproduce, "run_all", lambda *_: pytest.fail("a training was started"))
    data = make_data()
    for path in data.glob("*/GT/*.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 3, (40, 48), np.uint8)).save(path)
    table = {"labels": {"background": 0, "liver": 1, "spleen": 2}}
    table["subjects"] = {subject: {"spacing": [1.0, 1.0, 3.0]} for subject in "123"}
    added = {"regions": {"both": ["liver", "spleen"]}, "tolerances": {"liver": 2.5}, "groups": {"3": "p"}}
    (data / "dataset.json").write_text(json.dumps(table | {change: added[change]}))
    given = shutil.copytree(finished["DAF"], tmp_path / "given")
    rows = read_csv(given / "test.csv")
    in_mm = [{key: row[key.removesuffix("_mm")] for key in IN_MM} for row in rows]
    write_csv(given / "test.csv", [row | {"group": "q"} | more for row, more in zip(rows, in_mm, strict=True)])
    flags = ["--out", str(tmp_path / "out"), "--only", "PAM"]
    with pytest.raises(InputError) as caught:
        reproduce.main(["I", "--data", str(data), *flags, "--rows", f"Mine={given}"])
    assert_clear(caught.value, str(given), "subject 3" if change == "groups" else change)
    if change != "groups":
        shutil.copytree(data, tmp_path / "second")
        (tmp_path / "second" / "dataset.json").write_text(json.dumps(table))
        with pytest.raises(InputError) as caught:
            reproduce.main(["I", "--data", str(data), str(tmp_path / "second"), *flags])
        assert_clear(caught.value, str(tmp_path / "second"), f"other {change}")


# ---------------------------------------------------------------- splits


def test_split_file_moves_subjects_between_folders(make_data, tmp_path, tiny):
    data = make_data({"train": ["1", "a-2"], "val": ["2"], "test": ["3"]})
    (tmp_path / "split.json").write_text('{"train": [3], "val": ["1"], "test": ["2"]}')
    flags = ["--data", str(data), "--epochs", "1", "--split_file", str(tmp_path / "split.json"), *TINY]
    main(parse_config([*flags, "--out", str(tmp_path / "run")]))
    assert {row["subject"] for row in read_csv(tmp_path / "run" / "test.csv")} == {"2"}
    (tmp_path / "split.json").write_text('{"train": [3], "val": ["1"], "test": ["77"]}')
    with pytest.raises(InputError, match="no subject 77, which the split wants for test; it has 1, 2, 3, a-2"):
        main(parse_config([*flags, "--out", str(tmp_path / "other")]))


@pytest.mark.slow
def test_every_fold_trains_on_its_own_split(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    started = []
    monkeypatch.setattr(reproduce, "run_all", lambda runs, *_: started.extend(runs))
    with pytest.raises(SystemExit):  # none of them has finished
        reproduce.main(["I", "--data", "dataset", "--folds", "3", "--only", "DAF,PAM", "--out", str(tmp_path / "out")])
    assert len(started) == 6 and len({run.folder for run in started}) == 6
    for run in started:
        config = parse_config(run.flags)
        assert config.split_file.stem == run.fold == run.folder.name
        assert config.network.model == {"DAF": "daf", "PAM": "daf_pam"}[run.row]


def planned(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> list[Run]:
    """The runs that would be trained."""
    started: list[Run] = []
    monkeypatch.setattr(reproduce, "run_all", lambda runs, *_: started.extend(runs))
    with pytest.raises(SystemExit):  # none of them has finished
        reproduce.main([str(argument) for argument in arguments])
    return started


@pytest.mark.slow
def test_every_row_on_every_fold_with_every_seed(tmp_path, monkeypatch):
    files = []
    for name, test in (("a", "1"), ("b", "2")):
        files.append(tmp_path / f"{name}.json")
        split = {"train": ["3", "4"], "val": ["5"], "test": [test]}
        files[-1].write_text(json.dumps(split))
    own = "Mine, too: --model unet --backbone 'resnet18' --no-guidance"
    flags = ["--split-files", ",".join(map(str, files)), "--seeds", "0,3", "--row", own, "--backbone", "resnet34"]
    started = planned(monkeypatch, "I", "--data", ROOT / "dataset", "--only", "DAF", "--out", tmp_path / "out", *flags)
    assert len({run.folder for run in started}) == len(started) == 8
    found = set()
    for run in started:
        config = parse_config(run.flags)
        found.add((run.row, config.split_file.name, config.machine.seed))
        name = f"dataset-{config.split_file.stem}-training-seed-{config.machine.seed}"
        assert run.folder == tmp_path / "out" / "runs" / {"DAF": "daf"}.get(run.row, "mine-too") / name
        network = {"DAF": ("daf", "resnet34", True), "Mine, too": ("unet", "resnet18", False)}[run.row]
        assert (config.network.model, config.network.backbone, config.network.guidance) == network
    rows = ("DAF", "Mine, too")
    assert found == set(itertools.product(rows, ("a.json", "b.json"), (0, 3)))


def test_groups_of_the_flag_and_of_the_data_stay_whole(make_data, tmp_path, monkeypatch):
    """Subjects 1a and 1b by the pattern; 3a and 4b by dataset.json alone, which gives the others none."""
    data = make_data({"train": ["1a", "1b", "2a"], "val": ["2b"], "test": ["3a", "4b"]})
    (data / "dataset.json").write_text('{"groups": {"3a": "x", "4b": "x"}}')
    (tmp_path / "groups.json").write_text('{"1a": "1", "1b": "1", "2a": "2", "2b": "2"}')
    flags = ["--folds", "3", "--groups", tmp_path / "groups.json"]
    started = planned(monkeypatch, "I", "--data", data, "--only", "DAF", "--out", tmp_path / "out", *flags)
    tested = [json.loads(parse_config(run.flags).split_file.read_text())["test"] for run in started]
    assert sorted(tested) == [["1a", "1b"], ["2a", "2b"], ["3a", "4b"]]
    flags = ["--folds", "3", "--groups", r"(\d).", "--out", tmp_path / "other"]
    with pytest.raises(InputError, match="subject 3a: is of group 'x' in one place, '3' in another"):
        reproduce.main([str(flag) for flag in ("I", "--data", data, "--only", "DAF", *flags)])


def test_groups_of_the_flag_count_in_the_tests(finished, tmp_path, no_pictures):
    """The runs themselves know of no groups."""
    runs = [Run(row, "given", finished[row], []) for row in finished]
    options = reproduce.Options("I", out=tmp_path)
    reproduce.write_table(options, runs, tmp_path, {"1": "p", "2": "p"}, [])
    assert {row["pairs"] for row in read_csv(tmp_path / "table.csv")} == {"", "2"}


def test_no_table_of_earlier_runs_stays(finished, tmp_path, no_pictures):
    """Where all runs were removed, such as to train longer, and none has finished again."""
    options = reproduce.Options("I", out=tmp_path)
    for runs in ([Run(row, "given", finished[row], []) for row in finished], []):
        reproduce.write_table(options, runs, tmp_path, {}, [])
        assert (tmp_path / "table.md").exists() == (tmp_path / "table.csv").exists() == bool(runs)


# ---------------------------------------------------------------- mistakes of the user


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["I"], "--data: name a prepared data set"),
        (["I", "--data", "dataset", "--only", "DAF,Best"], "--only Best: no row of Table I; it has DAF, PAM"),
        (["I", "--data", "dataset", "--epoch", "3"], "all rows; perhaps you meant --epochs"),
        (
            ["I", "--data", "dataset", "--no-deep-supervision"],
            "--no-deep-supervision: says what a row is",
        ),
        (
            ["I", "--data", "dataset", "--no_deep_supervision"],
            "--no_deep_supervision: says what a row is",
        ),
        (["I", "--data", "dataset", "--guidance"], "--guidance: says what a row is"),
        (["I", "--data", "dataset", "--fine_decoder"], "--fine_decoder: says what a row is"),
        (["I", "--data", "dataset", "--model=unet"], "--model=unet: says what a row is"),
        (["I", "--data", "dataset", "--steps", "1"], "--steps: says what a row is"),
        (["I", "--data", "dataset", "--backbone", "vgg"], "--backbone vgg: must be resnet18, "),
        (["I", "--data", "dataset", "--folds", "-2"], "--folds -2, --repeats 1: must be"),
        (["I", "--data", "dataset", "--split", "10,2,2", "--repeats", "0"], "--repeats 0: must be"),
        (["I", "--data", "dataset", "--seeds", "0,x"], "--seeds 0,x: must be different whole numbers"),
        (["I", "--data", "dataset", "--seeds", "1,01"], "--seeds 1,01: must be different whole numbers"),
        (["I", "--data", "dataset", "--seeds", "0,1", "--seed", "3"], "--seed: no flag of reproduce.py"),
        (["I", "--data", "dataset", "--split_files", "a.json", "--folds", "3"], "--split_files: choose one of them"),
        (["I", "--data", "dataset", "--split_files", "nowhere.json"], "nowhere.json: no such file; correct the name"),
        (["I", "--data", "dataset", "--split_files", "x/a.json,y/a.json"], "--split_files x/a.json: two of them have"),
        (["I", "--data", "dataset", "tests", "--split_files", "a.json"], "--split_files: needs one data set"),
        (["I", "--data", "dataset", "--groups", "(.).*"], "--groups: needs --folds or --split"),
        (["I", "--data", "dataset", "--row", "Mine"], '--row Mine: must be "NAME: FLAGS"'),
        (["I", "--data", "dataset", "--row", "!: --model unet"], '--row !: --model unet: must be "NAME: FLAGS"'),
        (["I", "--data", "dataset", "--row", "daf: --model unet"], "--row daf: is called as the row DAF"),
        (["I", "--data", "dataset", "--row", "A b:", "--row", "a-B:"], "--row a-B: is called as the row A b"),
        (["I", "--data", "dataset", "--row", "Mine: --model 'unet"], "--row Mine: No closing quotation"),
        (["I", "--data", "dataset", "--row", "Mine: --data=x"], "--row Mine: --data=x is no flag of main.py that"),
        (["I", "--data", "dataset", "--row", "Mine: --split-file x"], "--row Mine: --split-file is no flag of main.py"),
        (["I", "--data", "dataset", "--row", "Mine: --modle x"], "--row Mine: --modle is no flag of main.py"),
        (["I", "--data", "dataset", "--seeds", "1,2", "--row", "Mine: --seed 3"], "--row Mine: --seed is no flag"),
        (["I", "--data", "dataset", "--row", "Mine: --model x.y"], "x.y"),
        (["I", "--data", "dataset", "--rows", "DAF=tests"], "--rows DAF: a row that is trained has this name"),
        (["I", "--data", "dataset", "--row", "A:", "--rows", "A=tests"], "--rows A: a row that is trained has this"),
        (["I", "--data", "dataset", "--rows", "A=tests"], "tests: not a finished run"),
        (["I", "--data", "dataset", "--rows", "A=tests", "--rows", "A=docs"], "A: two rows have this name"),
        (["I", "--data", "dataset", "--against", "U-Net"], "--against U-Net: no row has this name; there are DAF, PAM"),
        (["compare", "tests", "docs", "tests/../docs"], "tests/../docs: is given twice"),
        (["compare"], "no runs to compare"),
        (["comapre", "tests"], "comapre: no table of the paper; perhaps you meant compare"),
        (["I", "--data", "dataset", "--folds", "40"], "--folds 40: must be 3 to 14"),
        (["I", "--data", "dataset", "--split", "1,2"], "--split 1,2: must be three numbers"),
        (["I", "--data", "dataset", "--jobs", "0"], "--jobs 0: must be at least 1"),
        (["I", "--data", "dataset", "--slurm", "days"], "--slurm days: must be NAME=VALUE"),
        (["I", "--data", "nowhere"], "nowhere/train: no such folder"),
        (["compare", "nowhere"], "nowhere: not a finished run"),
    ],
)
def test_mistakes_of_the_user(tmp_path, monkeypatch, capsys, arguments, expected):
    monkeypatch.setattr(reproduce, "run_all", lambda *_: pytest.fail("a training was started"))
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ending, user_errors():
        reproduce.main([*arguments, "--out", str(tmp_path / "out")])
    assert ending.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    assert expected in line


def test_a_flag_of_main_out_of_its_range_starts_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "run_all", lambda *_: pytest.fail("a training was started"))
    arguments = ["I", "--data", str(ROOT / "dataset"), "--lr", "-1", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ending:
        reproduce.main(arguments)
    assert ending.value.code == 2
    assert "must be above 0" in capsys.readouterr().err


def test_the_command_ends_with_a_line_and_its_code(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "I"])
    with pytest.raises(SystemExit) as ending:
        runpy.run_path(str(ROOT / "reproduce.py"), run_name="__main__")
    assert ending.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --data: name a prepared data set") and error.count("\n") == 1


# ---------------------------------------------------------------- runs


def arguments(data: Path, out: Path, *flags: str) -> list[str]:
    """Two rows of Table I, two epochs each."""
    training = ["--epochs", "2", "--batch_size", "2", *ON_CPU]
    return ["I", "--data", str(data), "--out", str(out), "--only", "DAF,PAM", *training, *flags]


def scores(out: Path) -> list[tuple[str, ...]]:
    """The numbers of a table."""
    rows = read_csv(out / "table-I" / "table.csv")
    return [(row["row"], row["metric"], row["mean"], row["std"], row["n"]) for row in rows]


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_table(make_data, tmp_path):
    """SIGKILL to reproduce.py alone: its trainings must end with it, and the next call must go on."""
    data, log = make_data({"train": ["1"], "val": ["2"], "test": ["3", "4"]}, numbers=(1, 2, 3)), tmp_path / "log"
    assert ended(start_reproduce(arguments(data, tmp_path / "straight"), log)) == 0, log.read_text()
    straight = scores(tmp_path / "straight")
    assert [row[2:] for row in straight if row[0] == "DAF"] != [row[2:] for row in straight if row[0] == "PAM"]
    out, finished = tmp_path / "killed", {}
    for row, file in (("daf", "last.pt"), ("daf", "test.json"), ("pam", "last.pt")):
        # The training stands still at the moment when the file is written.
        process = start_reproduce(arguments(data, out), log, stop_after=file)
        wait_for(out / "runs" / row, f"*/{file}", process)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        for path in out.glob("runs/*/*/test.json"):
            moment = path.stat().st_mtime_ns
            assert finished.setdefault(path, moment) == moment, "a run was done twice"
    assert finished
    assert ended(start_reproduce(arguments(data, out, "--jobs", "2"), log)) == 0, log.read_text()
    assert scores(out) == straight
    manifest = json.loads((out / "table-I" / "manifest.json").read_text())
    assert [(run["row"], run["state"]) for run in manifest] == [("DAF", "finished"), ("PAM", "finished")]
    for path in out.glob("runs/*/*/log.csv"):
        assert [row["epoch"] for row in read_csv(path)] == ["1", "2"]
    for path, moment in finished.items():
        assert path.stat().st_mtime_ns == moment
    # Other settings in the same folder would mix two experiments.
    with pytest.raises(InputError, match=r"trained with other settings \(lr 0.001 -> 0.5\)"):
        reproduce.main(arguments(data, out, "--lr", "0.5"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGINT")])
def test_a_signal_lets_the_trainings_save(make_data, tmp_path, number, name):
    """In the middle of an epoch, from where the next call goes on."""
    data, log = make_data(numbers=tuple(range(1, 41))), tmp_path / "log"
    out = tmp_path / "out"
    process = start_reproduce(arguments(data, out, "--epochs", "300", "--batch_size", "1"), log)
    wait_for(out / "runs" / "daf", "*/last.pt", process)
    os.kill(process.pid, number)
    assert ended(process) == os.EX_TEMPFAIL, log.read_text()
    assert f"stopped by {name}; the same command goes on" in log.read_text()
    (training,) = out.glob("runs/*/*")
    assert "stopped by SIGTERM after " in (training / "output.log").read_text()
    done = load_checkpoint(training / "last.pt")["progress"]
    assert done["epoch"]["iteration"] > 0 or len(done["log"]) == done["epoch"]["number"]
    manifest = json.loads((out / "table-I" / "manifest.json").read_text())
    assert [run["state"] for run in manifest] == ["waiting", "waiting"]


@pytest.mark.slow
def test_rows_of_a_data_set_that_was_changed_are_not_mixed(make_data, tmp_path, monkeypatch, tiny):
    """Prepared anew in its place: other pixels of the same names, or another preparation."""
    data, out = make_data(), tmp_path / "out"
    folder = out / "runs" / "daf" / data.resolve().name
    train(data, folder, "--epochs", "1")
    started = []
    monkeypatch.setattr(reproduce, "goes_on", lambda run: False)  # its settings are not those of the tiny network
    monkeypatch.setattr(reproduce, "run_all", lambda runs, *_: started.append(runs))
    monkeypatch.setattr(reproduce, "write_table", lambda *_: None)
    with pytest.raises(SystemExit):  # PAM has not finished
        reproduce.main(arguments(data, out))
    assert len(started) == 1
    (data / "dataset.json").write_text('{"preparation": {"size": 48}}')
    with pytest.raises(InputError, match=r"daf/.*: was trained on other preparation than .* has; choose another --out"):
        reproduce.main(arguments(data, out))
    (data / "dataset.json").unlink()
    shutil.rmtree(data / "test")
    make_data({"test": ["3"]})
    with pytest.raises(InputError, match="was trained on other validation or test slices than"):
        reproduce.main(arguments(data, out))
    assert len(started) == 1 and (folder / "test.json").exists()


def test_more_epochs_undo_no_run_where_another_cannot_go_on(make_data, tmp_path, monkeypatch):
    data, out = make_data(), tmp_path / "out"
    folders = [out / "runs" / reproduce.slug(row) / data.name for row in ("DAF", "MS-Dual-Guided")]
    for folder, seed, row in zip(folders, ("0", "1"), ("DAF", "MS-Dual-Guided"), strict=True):
        folder.mkdir(parents=True)
        config = parse_config(["--data", str(data), "--epochs", "2", "--seed", seed, *ROWS[row]])
        (folder / "config.json").write_text(json.dumps(config.to_dict()))
        (folder / "test.json").write_text("{}")
    arguments = ["III-chaos", "--data", str(data), "--out", str(out), "--only", "DAF,MS-Dual-Guided", "--epochs", "3"]
    with pytest.raises(InputError, match=r"was trained with other settings \(seed 1 -> 0\)"):
        reproduce.main(arguments)
    assert all((folder / "test.json").exists() for folder in folders)
    monkeypatch.setattr(reproduce, "run_all", lambda *_: None)
    with pytest.raises(SystemExit):
        reproduce.main([*arguments, "--only", "DAF"])
    assert not (folders[0] / "test.json").exists()


@pytest.mark.slow
def test_a_failure_does_not_stop_the_others(make_data, tmp_path):
    data, out, log = make_data(), tmp_path / "out", tmp_path / "log"
    broken = out / "runs" / "daf" / data.resolve().name
    broken.mkdir(parents=True)
    (broken / "last.pt").write_bytes(b"noise")
    assert ended(start_reproduce(arguments(data, out, "--epochs", "1"), log)) == 1
    printed = log.read_text()
    assert "failed: DAF" in printed and "last.pt: not a checkpoint" in printed
    manifest = json.loads((out / "table-I" / "manifest.json").read_text())
    assert [run["state"] for run in manifest] == ["failed", "finished"]
    assert "last.pt: not a checkpoint" in manifest[0]["error"]
    assert {row[0] for row in scores(out)} == {"PAM"}


@pytest.mark.parametrize(
    ("device", "gpus", "said"),
    [
        ("cuda", 0, "no GPU is visible here"),
        ("cuda:1", 2, "each training sees one GPU, which is its cuda:0"),
        ("cuda", 2, ""),
        ("cuda:0", 1, ""),
        ("auto", 0, ""),
        ("cpu", 0, ""),
    ],
)
def test_devices_that_no_training_has(tmp_path, monkeypatch, device, gpus, said):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    runs = [Run("row", "fold", tmp_path, ["--device", device])]
    if not said:
        reproduce.check_device(runs)
        return
    with pytest.raises(InputError) as caught:
        reproduce.check_device(runs)
    assert_clear(caught.value, f"--device {device}: {said}")
