"""Label descriptions for viewers, read as the viewers' manuals say."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from data.description import Labels
from data.viewers import check_viewer_labels, write_viewer_labels
from tests.helpers.errors import assert_clear
from utils import InputError

NAMES = ("background", "right kidney", 'the "big" one', "Leber, l\u00e4sion\tx")
LABELS = Labels(NAMES, (0, 1, 2, 3), (0, 7, 3, 300))
# Okabe and Ito's orange, sky blue and bluish green.
COLORS = [(0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115)]


def lines_of(path: Path) -> list[str]:
    """Those that are no comment."""
    return [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]


def test_itk_snap_reads_index_color_opacity_visibility_and_a_name_in_quotes(tmp_path):
    write_viewer_labels(tmp_path, LABELS)
    rows = [next(csv.reader([line], delimiter=" ", strict=True)) for line in lines_of(tmp_path / "labels_itksnap.txt")]
    assert [int(row[0]) for row in rows] == [0, 7, 3, 300]
    assert [tuple(map(int, row[1:4])) for row in rows] == COLORS
    assert [row[4:7] for row in rows] == [["0"] * 3] + [["1"] * 3] * 3
    assert [row[7] for row in rows] == ["background", "right kidney", "the 'big' one", "Leber, l\u00e4sion\\tx"]
    assert all(len(row) == 8 for row in rows)


def test_slicer_reads_six_words_a_line(tmp_path):
    write_viewer_labels(tmp_path, LABELS)
    rows = [line.split(" ") for line in lines_of(tmp_path / "labels_slicer.ctbl")]
    assert [int(value) for value, *_ in rows] == [0, 7, 3, 300]
    names = ["background", "right_kidney", 'the_"big"_one', "Leber,_l\u00e4sion\\tx"]
    assert [name for _, name, *_ in rows] == names
    assert [tuple(map(int, color)) for *_, red, green, blue, _ in rows for color in [(red, green, blue)]] == COLORS
    assert [int(opacity) for *_, opacity in rows] == [0, 255, 255, 255]


def test_descriptions_of_other_labels_are_refused(tmp_path):
    check_viewer_labels(tmp_path, LABELS)
    write_viewer_labels(tmp_path, LABELS)
    check_viewer_labels(tmp_path, LABELS)
    assert {path.name for path in tmp_path.iterdir()} == {"labels_itksnap.txt", "labels_slicer.ctbl"}
    for name in ("labels_itksnap.txt", "labels_slicer.ctbl"):  # each, where it is alone
        with pytest.raises(InputError) as caught:
            check_viewer_labels(tmp_path, Labels.indexed(NAMES, (0, 1, 2, 3)))
        assert_clear(caught.value, str(tmp_path / name), "other labels")
        (tmp_path / name).unlink()
