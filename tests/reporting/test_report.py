"""The command that writes pages and figures."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest

import report
from tests.helpers.pages import held
from utils import InputError, write_json

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run", "refined"])
def test_the_command_writes_the_same_page_again(kind, request, tiny, tmp_path, capsys):
    """As main.py writes it, and with the maps of a network that refines."""
    folder = request.getfixturevalue(kind)
    first = (folder / "report.html").read_text(encoding="utf-8")
    again = tmp_path / folder.name
    shutil.copytree(folder, again)
    (again / "report.html").unlink()
    report.main(report.Options((str(again),), device="cpu"))
    assert (again / "report.html").read_text(encoding="utf-8") == first
    config = json.loads((again / "config.json").read_text())
    write_json(again / "config.json", config | {"data": str(tmp_path / "gone")})
    capsys.readouterr()
    report.main(report.Options((str(again),), device="cpu"))
    printed = capsys.readouterr().out
    assert "note: no slices in the page: " in printed and "gone" in printed
    assert '"viewer":null' in (again / "report.html").read_text(encoding="utf-8")


def test_several_folders_or_rows_make_one_page_that_compares_them(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other", ignore=shutil.ignore_patterns("*.pt"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"seed": config["seed"] + 1}))
    for rows, names in (((f"{run},{other}",), ["run"]), ((f"A, B={run}", f"x={other}"), ["A, B", "x"])):
        report.main(report.Options(rows, out=tmp_path / "page", device="cpu"))
        page = held(tmp_path / "page" / "report.html")
        assert [row["name"] for row in page["runs"]] == names and page["reference"] == names[0]
    report.main(report.Options(rows, out=tmp_path / "page", against="x"))
    assert held(tmp_path / "page" / "report.html")["reference"] == "x"
    with pytest.raises(InputError, match="against y: no row"):
        report.main(report.Options(rows, out=tmp_path / "nothing", against="y"))
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("command", ["page", "figure", "several", "none"])
def test_mistakes_of_the_user(run, tmp_path, command):
    runs, options = {
        "page": ((tmp_path,), {}),
        "figure": ((tmp_path,), {"figure": tmp_path / "figures"}),
        "several": ((run, run), {}),
        "none": ((), {}),
    }[command]
    expected = {"several": "twice", "none": "no runs"}.get(command, re.escape(str(tmp_path)))
    with pytest.raises(InputError, match=expected):
        report.main(report.Options(tuple(map(str, runs)), out=tmp_path / "out", device="cpu", **options))
    assert not any(tmp_path.iterdir())


def test_the_command_ends_with_a_line_and_its_code(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path)])
    with pytest.raises(SystemExit) as ending:
        runpy.run_path(str(ROOT / "report.py"), run_name="__main__")
    assert ending.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: not a run folder of main.py; it has no config.json\n"
