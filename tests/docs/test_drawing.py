"""docs/network-*.svg: what docs/draw_network.py draws of the network as it is, with texts that do not collide."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest

from docs import draw_network

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"
SVG = "{http://www.w3.org/2000/svg}"
SIZE = 11  # of most texts; titles are larger


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return draw_network.write(tmp_path_factory.mktemp("drawing"))


def test_the_files_show_the_network_as_it_is(drawn: list[Path]):
    assert [path.name for path in drawn] == ["network-light.svg", "network-dark.svg"]
    for path in drawn:
        assert (DOCS / path.name).read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), (
            "run python -m docs.draw_network"
        )


def test_names_and_shapes_are_in_it(drawn: list[Path]):
    texts = {"".join(text.itertext()) for text in ElementTree.parse(drawn[0]).iter(f"{SVG}text")}
    names = {"backbone", "reduce.0", "fuse", "steps.0", "steps.1", "semantic", "guide", "project", "refined_heads"}
    shapes = {
        "2048\N{MULTIPLICATION SIGN}8\N{MULTIPLICATION SIGN}8",
        "256\N{MULTIPLICATION SIGN}64\N{MULTIPLICATION SIGN}64",
    }
    assert names | shapes | {"PositionAttention", "ChannelAttention", "SemanticModule", "RefinementStep"} <= texts
    assert "MSDualGuided, 2 steps, 58,499,679 parameters" in texts


def widths(weight: str) -> dict[str, int]:
    """How wide Helvetica's characters are, in thousandths of the size: matplotlib has the tables."""
    path = Path(matplotlib.get_data_path(), f"fonts/pdfcorefonts/{weight}.afm")
    table = re.findall(r"^C (\d+) ; WX (\d+) ;", path.read_text(encoding="latin-1"), re.MULTILINE)
    return {chr(int(code)): int(width) for code, width in table}


def boxes(path: Path) -> list[tuple[str, list[float]]]:
    """Each text with its left, top, right and bottom."""
    regular, bold = widths("Helvetica"), widths("Helvetica-Bold")
    found = []
    for element in ElementTree.parse(path).iter(f"{SVG}text"):
        words, kind = "".join(element.itertext()), element.get("class")
        size = 15 if kind == "title" else SIZE
        table = bold if kind in ("title", "name", "sign") else regular
        width = sum(table.get(sign, table["+"]) for sign in words) * size / 1000
        x, y = float(element.get("x")), float(element.get("y"))
        left = x - {"start": 0, "middle": width / 2, "end": width}[element.get("text-anchor")]
        found.append((words, [left, y - 0.75 * size, left + width, y + 0.2 * size]))
    return found


def test_texts_neither_collide_nor_leave_the_page(drawn: list[Path]):
    texts = boxes(drawn[0])
    assert len(texts) > 100
    for words, (left, top, right, bottom) in texts:
        assert left >= 8 and top >= 8, words
        assert right <= draw_network.WIDTH - 8 and bottom <= draw_network.HEIGHT - 8, words
    for (a, first), (b, second) in itertools.combinations(texts, 2):
        apart = first[2] < second[0] or second[2] < first[0] or first[3] < second[1] or second[3] < first[1]
        assert apart, (a, b)
