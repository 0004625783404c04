"""The paper's tables: statistics against scipy and by hand, the written table, and runs that are killed and go on."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import launch
import reproduce
from config import PRESETS, parse_config
from data.folder import list_images
from launch import Run, submit_all
from main import main
from models import MSDualGuided, build_model
from models.attention import SemanticModule
from tables import (
    PAPER,
    Table,
    bootstrap_interval,
    compare,
    holm,
    latex,
    markdown,
    paired_differences,
    read_result,
    wilcoxon,
)
from utils import InputError

ROOT = Path(__file__).parents[1]
TINY = ["--backbone", "resnet18", "--batch_size", "2", "--workers", "0", "--device", "cpu", "--amp", "off"]
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


# ---------------------------------------------------------------- statistics


def test_holm_by_hand():
    """Holm (1979): sorted p times 4, 3, 2, 1, never falling: 0.02, 0.03 -> 0.03, 0.04 -> 0.04, 0.8."""
    np.testing.assert_allclose(holm([0.02, 0.005, 0.8, 0.01]), [0.04, 0.02, 0.8, 0.03])
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.5, np.nan, 0.03]), [0.5, np.nan, 0.06])


@given(P_VALUES, st.floats(0.001, 0.5))
def test_holm_rejects_what_the_step_down_procedure_rejects(p, level):
    adjusted, rejected = holm(p), set()
    for rank, k in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if p[k] * (len(p) - rank) > level:
            break
        rejected.add(k)
    assert {k for k, value in enumerate(adjusted) if value <= level} == rejected


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=9, unique=True), st.data())
@settings(max_examples=40, deadline=None)
def test_wilcoxon_counts_the_signs(sizes, data):
    """Without ties, p is the share of all choices of signs whose rank sum is at least as far from its mean."""
    signs = data.draw(st.lists(st.sampled_from([-1, 1]), min_size=len(sizes), max_size=len(sizes)))
    ranks = stats.rankdata(sizes)
    middle = ranks.sum() / 2
    distance = abs(sum(r for r, sign in zip(ranks, signs, strict=True) if sign > 0) - middle)
    sums = [sum(itertools.compress(ranks, choice)) for choice in itertools.product([0, 1], repeat=len(sizes))]
    expected = np.mean([abs(total - middle) >= distance - 1e-9 for total in sums])
    assert wilcoxon(np.array(sizes) * np.array(signs) / 7) == pytest.approx(expected)


def test_wilcoxon_without_differences():
    assert wilcoxon(np.zeros(5)) == 1
    assert np.isnan(wilcoxon(np.empty(0)))
    assert wilcoxon(np.array([1.0, 2, 3, 4, 5])) == pytest.approx(2 / 2**5)


def test_bootstrap_interval_against_scipy():
    values = np.random.default_rng(3).normal(86, 5, 15)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=100_000, method="percentile", rng=1).confidence_interval
    np.testing.assert_allclose(bootstrap_interval(values), theirs, atol=0.08)
    assert bootstrap_interval([2, 2, 2]) == (2, 2)
    assert np.isnan(bootstrap_interval([2])).all()


def test_pairs_are_of_the_same_subject():
    ours, theirs = {"1": 3.0, "2": 5.0, "9": float("nan")}, {"2": 1.0, "9": 4.0, "1": 2.5, "7": 0.0}
    np.testing.assert_allclose(paired_differences(ours, theirs), [0.5, 4.0])


# ---------------------------------------------------------------- the table

DICE = {
    "MS-Dual-Guided": {"1": (0.90, 0.80), "2": (0.70, 0.60), "3": (0.95, 0.85)},
    "DAF": {"1": (0.80, 0.70), "2": (0.65, 0.45), "3": (0.90, 0.90)},
}


@pytest.fixture
def finished(tmp_path):
    """Run folders with the scores above: what main.py writes, with the numbers of two classes."""
    folders = {}
    for name, subjects in DICE.items():
        folders[name] = folder = tmp_path / reproduce.slug(name)
        folder.mkdir()
        rows = [
            {"subject": subject, "class": label, "dsc": dsc, "vs": dsc, "msd": 2 - dsc, "hd95": 10 * dsc}
            for subject, pair in subjects.items()
            for label, dsc in zip(("liver", "spleen"), pair, strict=True)
        ]
        with (folder / "test.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        cost = {"parameters": 1234567, "epochs": 4, "seconds": 3725.0, "memory_gib": 1.26}
        (folder / "test.json").write_text(json.dumps(cost))
        (folder / "log.csv").write_text("epoch,val_dsc,seconds\n1,0.5,1800\n2,0.75,900\n")
    return folders


def results(finished):
    return [read_result(name, [folder]) for name, folder in finished.items()]


def test_table_by_hand(finished):
    table = Table("I", results(finished))
    rows = {(row["row"], row["metric"]): row for row in table.rows()}
    # Means over the two classes: 85, 65, 90 and 75, 55, 90.
    assert rows["MS-Dual-Guided", "DSC"]["mean"] == pytest.approx(80)
    assert rows["MS-Dual-Guided", "DSC"]["std"] == pytest.approx(np.sqrt((25 + 225 + 100) / 2))
    assert rows["DAF", "DSC"]["mean"] == pytest.approx(220 / 3)
    assert rows["DAF", "DSC"]["paper_mean"] == 82.48
    assert rows["DAF", "DSC"]["difference"] == pytest.approx(220 / 3 - 82.48)
    assert rows["DAF", "DSC"]["paired_difference"] == pytest.approx(-20 / 3)
    assert rows["DAF", "DSC"]["pairs"] == 3
    assert rows["DAF", "MSD"]["mean"] == pytest.approx(2 - 2.2 / 3)
    text = markdown(table)
    assert "**80.00 ± 13.23**<br>86.75 ± 5.05<br>-6.75" in text
    assert "| 73.33 ± 17.56<br>82.48 ± 6.06<br>-9.15 |" in text
    assert "**1.20 ± 0.13**<br>0.66 ± 0.27<br>+0.54" in text  # the smaller distance is the better one
    assert "| 3 | 1,234,567 | 1 h 02 min | 1.3 GiB |" in text
    assert "Epochs: 4; folds: 1." in text


@pytest.mark.parametrize(
    ("names", "printed"),
    [
        (("necrotic and non-enhancing", "edema", "enhancing"), ("TC", "oedema", "enhancing")),  # prepare.py brats
        (("edema", "non-enhancing tumor", "enhancing tumour"), ("oedema", "TC", "enhancing")),  # the Decathlon
    ],
)
def test_classes_of_brats_are_those_of_the_paper(finished, names, printed):
    value = {(name, "DSC"): {"1": 50.0} for name in (*names, "mean")}
    result = results(finished)[0]._replace(classes=list(names), values=value)
    table = Table("VII", [result])
    for name, theirs in zip(names, printed, strict=True):
        wanted = PAPER["tables"]["VII"]["rows"]["MS-Dual-Guided"][theirs]["DSC"]
        assert table.printed("MS-Dual-Guided", (name, "DSC")) == tuple(wanted)


def test_a_folder_called_as_the_proposed_network_is_no_reference(finished, tmp_path, capsys):
    """Of runs of one's own, the first is the reference, whatever the folders are called."""
    folders = [str(finished[name].rename(tmp_path / name)) for name in ("DAF", "MS-Dual-Guided")]
    reproduce.main(["compare", *folders, "--out", str(tmp_path / "out")])
    text = (tmp_path / "out" / "table.md").read_text()
    assert f"Paired tests against {folders[0]}," in text


def test_folds_join_subjects_and_average_repeated_ones(finished):
    joined = read_result("both", list(finished.values()))
    assert joined.values["liver", "DSC"] == pytest.approx({"1": 85, "2": 67.5, "3": 92.5})
    assert joined.runs == 2
    for hours, dice in joined.curves:
        assert (hours.tolist(), dice.tolist()) == ([0.5, 0.75], [50, 75])


def test_comparison_corrects_over_the_other_rows(finished):
    ours = results(finished)
    other = ours[1]._replace(name="PAM")
    found = compare([*ours, other], ours[0], ("mean", "DSC"))
    assert found.keys() == {"DAF", "PAM"}
    assert found["DAF"].n == 3
    assert found["DAF"].p_holm == pytest.approx(min(1, 2 * found["DAF"].p))


@pytest.mark.parametrize("name", ["I", "IV", "V", "VI", "VII", "Comparison"])
def test_latex_is_a_rectangle_and_compiles(finished, tmp_path, name):
    text = latex(Table(name, results(finished)))
    body = re.search(r"\\toprule\n(.*)\\bottomrule", text, re.S)[1]
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1]
    for line in body.splitlines():
        if line != r"\midrule":
            assert line.endswith(r" \\")
            assert line.count("&") == len(columns) - 1, line
    assert text.count("{") == text.count("}")
    assert not re.search(r"(?<!\\)[%#_]", text)
    assert [f"\\begin{{{name}}}" in text for name in ("table", "tabular")] == [True, True]
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex here: the structure was checked, the compilation was not")
    document = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n" + text + "\\end{document}\n"
    (tmp_path / "t.tex").write_text(document)
    subprocess.run(["pdflatex", "-interaction=batchmode", "-halt-on-error", "t.tex"], cwd=tmp_path, check=True)


def test_latex_has_the_papers_values(finished):
    text = latex(Table("I", results(finished)))
    for number in (r"86.75 $\pm$ 5.05", r"80.00 $\pm$ 13.23"):
        assert number in text.replace(r"\textbf{", "").replace("}", "")


def test_names_of_runs_stay_whole_in_latex(finished):
    first = results(finished)[0]._replace(name="reproduction/alpha_1")
    assert r"reproduction/alpha\_1 & ours" in latex(Table("Comparison", [first]))


def test_paper_tables_are_whole():
    """Means over classes in the paper's own tables, within what printing two decimals can hide; its slips excepted."""
    slips = {(note["row"], note["class"], note["metric"]) for note in PAPER["footnotes"] if note.get("class")}
    for name, table in PAPER["tables"].items():
        for row, classes in table["rows"].items():
            assert row in reproduce.ROWS
            for metric in classes["mean"]:
                parts = [values[metric][0] for label, values in classes.items() if label != "mean"]
                if parts and (row, "mean", metric) not in slips:
                    assert np.mean(parts) == pytest.approx(classes["mean"][metric][0], abs=0.011), (name, row, metric)


def test_table_viii(tmp_path, capsys):
    reproduce.main(["VIII", "--out", str(tmp_path)])
    text = (tmp_path / "table-VIII" / "table.md").read_text()
    assert "| MS-Dual-Guided | 58,499,679 | 58,499,679 | 0 |" in text
    for row in PAPER["parameters"]:
        line = next(line for line in text.splitlines() if line.startswith(f"| {row} |"))
        assert line.split("|")[4].strip() == "0" or len(line.split("|")[5]) > 20  # equal, or a note says why


# ---------------------------------------------------------------- splits


def test_split_file_moves_subjects_between_folders(make_data, tmp_path):
    data = make_data({"train": ["1", "a-2"], "val": ["2"], "test": ["3"]})
    (tmp_path / "split.json").write_text('{"train": [3], "val": ["1"], "test": ["2"]}')
    flags = ["--data", str(data), "--epochs", "1", "--steps", "1", "--split_file", str(tmp_path / "split.json")]
    main(parse_config([*flags, *TINY, "--out", str(tmp_path / "run")]))
    with (tmp_path / "run" / "test.csv").open() as file:
        assert {row["subject"] for row in csv.DictReader(file)} == {"2"}
    (tmp_path / "split.json").write_text('{"train": [3], "val": ["1"], "test": ["77"]}')
    with pytest.raises(InputError, match="no subject 77, which the split wants for test; it has 1, 2, 3, a-2"):
        main(parse_config([*flags, *TINY, "--out", str(tmp_path / "other")]))


@pytest.mark.parametrize(
    ("flags", "tested"), [(["--folds", "3"], 14), (["--split", "10,2,2", "--repeats", "3"], 6), ([], 2)]
)
def test_folds_test_each_subject_once(tmp_path, flags, tested):
    options = reproduce.tyro.cli(
        reproduce.Options, args=["I", "--data", str(ROOT / "dataset"), "--out", str(tmp_path), *flags]
    )
    found = reproduce.folds(options)
    subjects = []
    for fold in found:
        if fold.split_file is None:
            subjects += list_images(fold.data / "test")
        else:
            split = json.loads(fold.split_file.read_text())
            assert not set(split["test"]) & {*split["train"], *split["val"]}
            assert not set(split["val"]) & set(split["train"])
            assert len({*split["train"], *split["val"], *split["test"]}) == 14
            subjects += split["test"]
    assert len(subjects) == len(set(subjects)) == tested
    assert found == reproduce.folds(options)


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
        assert config.model == {"DAF": "daf", "PAM": "daf_pam"}[run.row]


@pytest.mark.parametrize("preset", PRESETS)
def test_no_preset_changes_what_a_row_is(preset):
    """Parts of the networks, by their modules, for the rows of Tables I and II."""
    for row, flags in reproduce.ROWS.items():
        config = parse_config(["--preset", preset, "--backbone", "resnet18", *flags])
        with torch.device("meta"):
            model = build_model(config)
        assert isinstance(model, MSDualGuided) == ("MS-Dual" in row or row.startswith("w/o")), row
        if isinstance(model, MSDualGuided):
            guided = "Guided" in row or row.startswith("w/o")
            assert all((step.semantic is not None) == guided for step in model.steps), row
            assert (model.raw_heads is None) == ("deep supervision" in row), row
            assert model.decoder is None, row
            encoders = any(isinstance(part, SemanticModule) for part in model.modules())
            assert encoders == (guided and "encoder-decoder" not in row), row
            assert len(model.steps) == next((n for text, n in reproduce.STEPS.items() if text in row), 2), row


def test_a_split_of_other_subjects_is_not_mixed_in(make_data, tmp_path):
    """--folds again after a subject was added: the runs of the old folds must not join those of the new ones."""
    data = make_data({"train": ["1", "2"], "val": ["3"], "test": ["4"]})
    options = reproduce.Options("I", (data,), tmp_path / "out", folds=3)
    before = reproduce.folds(options)
    assert reproduce.folds(options) == before
    texts = [fold.split_file.read_text() for fold in before]
    for path in sorted(data.glob("test/*/*.png")):
        shutil.copy(path, path.with_name(path.name.replace("Subj_4", "Subj_5")))
    with pytest.raises(InputError, match="has other subjects now than it was split for"):
        reproduce.folds(options)
    assert [fold.split_file.read_text() for fold in before] == texts


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["I"], "--data: name a prepared data set"),
        (["I", "--data", "dataset", "--only", "DAF,Best"], "--only Best: no row of Table I; it has DAF, PAM"),
        (["I", "--data", "dataset", "--epoch", "3"], "--epoch: no flag of reproduce.py"),
        (["I", "--data", "dataset", "--no-deep-supervision"], "--no-deep-supervision: no flag of reproduce.py"),
        (["I", "--data", "dataset", "--guidance"], "--guidance: no flag of reproduce.py"),
        (["I", "--data", "dataset", "--fine_decoder"], "--fine_decoder: no flag of reproduce.py"),
        (["I", "--data", "dataset", "--model=unet"], "--model=unet: no flag of reproduce.py"),
        (["I", "--data", "dataset", "--steps", "1"], "--steps: no flag of reproduce.py"),
        (["I", "--data", "dataset", "--folds", "-2"], "--folds -2, --repeats 1: must be"),
        (["I", "--data", "dataset", "--split", "10,2,2", "--repeats", "0"], "--repeats 0: must be"),
        (["compare"], "no runs to compare"),
        (["I", "--data", "dataset", "--folds", "40"], "needs 3 to 14 folds"),
        (["I", "--data", "dataset", "--split", "1,2"], "--split 1,2: must be three numbers"),
        (["I", "--data", "dataset", "--jobs", "0"], "--jobs 0: must be at least 1"),
        (["I", "--data", "dataset", "--slurm", "days"], "--slurm days: must be NAME=VALUE"),
        (["I", "--data", "nowhere"], "nowhere/train: no such folder"),
        (["compare", "nowhere"], "nowhere: not a finished run"),
    ],
)
def test_mistakes_of_the_user(tmp_path, monkeypatch, arguments, expected):
    monkeypatch.setattr(reproduce, "run_all", lambda *_: pytest.fail("a training was started"))
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match=re.escape(expected)):
        reproduce.main([*arguments, "--out", str(tmp_path / "out")])


# ---------------------------------------------------------------- runs


def arguments(data: Path, out: Path, *flags: str) -> list[str]:
    return ["I", "--data", str(data), "--out", str(out), "--only", "DAF,PAM", "--epochs", "2", *TINY, *flags]


def scores(out: Path) -> list[tuple[str, ...]]:
    with (out / "table-I" / "table.csv").open() as file:
        return [(row["row"], row["metric"], row["mean"], row["std"], row["n"]) for row in csv.DictReader(file)]


def test_killed_at_any_moment_it_ends_with_the_same_table(make_data, tmp_path, monkeypatch):
    """SIGKILL to reproduce.py alone: its trainings must end with it, and the next call must go on."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # sums of other numbers of threads are rounded otherwise
    data = make_data({"train": ["1"], "val": ["2"], "test": ["3", "4"]}, numbers=(1, 2, 3))
    reproduce.main(arguments(data, tmp_path / "straight"))
    out, finished = tmp_path / "killed", {}
    for event in ("daf/*/last.pt", "daf/*/test.json", "pam/*/last.pt"):
        process = subprocess.Popen([sys.executable, "reproduce.py", *arguments(data, out)], cwd=ROOT)
        while not list((out / "runs").glob(event)):
            assert process.poll() is None, "it ended too soon"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path in out.glob("runs/*/*/test.json"):
            moment = path.stat().st_mtime_ns
            assert finished.setdefault(path, moment) == moment, "a run was done twice"
    assert finished
    reproduce.main(arguments(data, out, "--jobs", "2"))
    assert scores(out) == scores(tmp_path / "straight")
    manifest = json.loads((out / "table-I" / "manifest.json").read_text())
    assert [(run["row"], run["state"]) for run in manifest] == [("DAF", "finished"), ("PAM", "finished")]
    for path in out.glob("runs/*/*/log.csv"):
        with path.open() as file:
            assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    for path, moment in finished.items():
        assert path.stat().st_mtime_ns == moment
    # Other settings in the same folder would mix two experiments.
    with pytest.raises(InputError, match=r"trained with other settings \(lr 0.001 -> 0.5\)"):
        reproduce.main(arguments(data, out, "--lr", "0.5"))


def test_more_epochs_undo_no_run_where_another_cannot_go_on(make_data, tmp_path, monkeypatch):
    data, out = make_data(), tmp_path / "out"
    folders = [out / "runs" / reproduce.slug(row) / data.name for row in ("DAF", "MS-Dual-Guided")]
    for folder, seed, row in zip(folders, ("0", "1"), ("DAF", "MS-Dual-Guided"), strict=True):
        folder.mkdir(parents=True)
        config = parse_config(["--data", str(data), "--epochs", "2", "--seed", seed, *reproduce.ROWS[row]])
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


def test_trainings_at_the_same_time_have_a_gpu_each(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(launch, "visible_gpus", lambda: ["3", "5"])
    monkeypatch.setattr(subprocess, "Popen", lambda *_, env, **__: seen.append(env["CUDA_VISIBLE_DEVICES"]))
    for slot in range(4):
        launch._start(Run("DAF", "1", tmp_path / str(slot), []), slot, jobs=4)
    assert seen == ["3", "5", "3", "5"]


def test_a_failure_does_not_stop_the_others(make_data, tmp_path, capsys):
    data, out = make_data(), tmp_path / "out"
    broken = out / "runs" / "daf" / data.resolve().name
    broken.mkdir(parents=True)
    (broken / "last.pt").write_bytes(b"noise")
    with pytest.raises(SystemExit) as ending:
        reproduce.main(arguments(data, out, "--epochs", "1"))
    assert ending.value.code == 1
    printed = capsys.readouterr().err
    assert "failed: DAF" in printed and "last.pt: not a checkpoint" in printed
    manifest = json.loads((out / "table-I" / "manifest.json").read_text())
    assert [run["state"] for run in manifest] == ["failed", "finished"]
    assert "last.pt: not a checkpoint" in manifest[0]["error"]
    assert {row[0] for row in scores(out)} == {"PAM"}


def test_the_manifest_says_how_a_run_ended(tmp_path):
    (tmp_path / "output.log").write_text("epoch 1/2\nerror: the disk is full\n\n")
    assert launch._last_line(tmp_path / "output.log", 2) == "error: the disk is full"
    assert launch._last_line(tmp_path / "output.log", -9) == "killed by SIGKILL; last line: error: the disk is full"


def test_a_second_process_is_kept_out(make_data, tmp_path):
    """The lock is another process's: within one process such locks do not exclude each other."""
    out = tmp_path / "run"
    out.mkdir()
    script = (
        f"import time; from pathlib import Path; from checkpoint import lock_folder; lock_folder(Path({str(out)!r})); "
    )
    with subprocess.Popen(
        [sys.executable, "-c", script + "print('locked', flush=True); time.sleep(60)"], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"locked\n"
        flags = ["--data", str(make_data()), "--epochs", "1", "--steps", "1", *TINY, "--out", str(out)]
        with pytest.raises(InputError, match="another process is at work in it"):
            main(parse_config(flags))
        assert not (out / "config.json").exists()
        process.kill()
    main(parse_config(flags))
    assert (out / "test.json").exists()


# ---------------------------------------------------------------- SLURM


def jobs(data: Path, out: Path) -> list[Run]:
    flags = ["--data", str(data), "--epochs", "1", "--steps", "1", *TINY]
    return [
        Run("MS-Dual", "given", out / "runs" / "a", [*flags, "--no-guidance"]),
        Run("broken", "given", out / "runs" / "b", [*flags, "--data", str(out / "nowhere")]),
    ]


def test_jobs_through_submitit_s_local_executor(make_data, tmp_path):
    pytest.importorskip("submitit")
    runs, manifest = jobs(make_data(), tmp_path), tmp_path / "table" / "manifest.json"
    submit_all(runs, manifest, 2, {"timeout_min": 5}, cluster="local")
    assert [run.state for run in runs] == ["finished", "failed"]
    assert "nowhere/train: no such folder" in runs[1].error
    assert [run["state"] for run in json.loads(manifest.read_text())] == ["finished", "failed"]
    assert (tmp_path / "runs" / "a" / "test.json").exists()


def test_what_slurm_is_asked_for(make_data, tmp_path, monkeypatch):
    """Programs in the place of SLURM's, which keep what they are handed and say that the jobs have failed."""
    pytest.importorskip("submitit")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, script in {
        "srun": "exit 0",
        "sbatch": f"cp ${{@: -1}} {tmp_path}/batch.sh; echo Submitted batch job 12",
        "sacct": "echo 'JobID|State|NodeList'; echo '12_0|FAILED|n'; echo '12_1|FAILED|n'",
    }.items():
        (commands / name).write_text(f"#!/bin/bash\n{script}\n")
        (commands / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(commands), prepend=os.pathsep)
    runs, manifest = jobs(make_data(), tmp_path), tmp_path / "table-I" / "manifest.json"
    monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 0)  # else it waits for files of failed jobs
    options = reproduce.slurm_options("timeout_min=90 gpus_per_node=1 slurm_partition=gpu slurm_signal_delay_s=120")
    submit_all(runs, manifest, 2, options)
    batch = (tmp_path / "batch.sh").read_text()
    for wanted in ("--array=0-1%2", "--time=90", "--gpus-per-node=1", "--partition=gpu", "--signal=USR2@120",
                   "--job-name=table-I", "--open-mode=append"):  # fmt: skip
        assert f"#SBATCH {wanted}" in batch
    assert [(run.state, run.job) for run in runs] == [("failed", "12_0"), ("failed", "12_1")]
    with pytest.raises(InputError, match="slurm_color"):
        submit_all(runs, manifest, 2, {"slurm_color": "red"})


def test_without_submitit_or_slurm(make_data, tmp_path, monkeypatch):
    runs = jobs(make_data(), tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="--slurm: "):
        submit_all(runs, tmp_path / "t" / "manifest.json", 1, {})
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match="pip install submitit"):
        submit_all(runs, tmp_path / "t" / "manifest.json", 1, {})


def test_requeued_jobs_go_on(make_data, tmp_path):
    """A preempted job is put back with the same arguments, which resume."""
    pytest.importorskip("submitit")
    from launch import TrainingJob

    arguments = jobs(make_data(), tmp_path)[0].arguments()
    again = TrainingJob().checkpoint(arguments)
    assert isinstance(again.function, TrainingJob)
    assert again.args == (arguments,)
    assert "--resume" in arguments
