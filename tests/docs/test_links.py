"""README.md and the pages: every link, file, class and flag that they name exists. Nothing here uses the network."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

import evaluate
import predict
import prepare
import report
import reproduce
from config import GROUP_OF
from experiments.folds import Splitting
from inference.evaluation import Sources

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
OUTPUT = {line.strip().strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir()} - OUTPUT
# Of torchrun, sbatch, docker, tensorboard, pip; and what docs/extending.md adds.
FOREIGN = {
    "nproc_per_node",
    "max-restarts",
    "time",
    "gpus",
    "requeue",
    "signal",
    "open-mode",
    "rm",
    "network",
    "logdir",
}
FOREIGN |= {"no-index", "help", "weight_decay", "focal", "erase_probability"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """A page without its fenced code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found.add(anchor if anchor not in found else f"{anchor}-1")
    return found


def links(page: Path) -> list[str]:
    """The targets of all links and pictures."""
    return [unquote(a or b) for a, b in LINK.findall(prose(page))]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path):
    for link in links(page):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert ROOT in target.resolve().parents, link
        if anchor:
            assert anchor in anchors(target), link


def test_every_picture_and_page_is_linked():
    linked = {(page.parent / link.partition("#")[0]).resolve() for page in PAGES for link in links(page)}
    files = [path for path in ROOT.glob("docs/**/*") if path.suffix in (".md", ".png", ".svg", ".csv")]
    assert files and not set(files) - linked


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page: Path):
    for name in re.findall(r"`([\w.-]+(?:/[\w.-]*)*)`", prose(page)):
        first = name.partition("/")[0]
        ours = first in FOLDERS if "/" in name else name.endswith(".py")
        if ours:
            assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_classes_stand_where_the_page_says(page: Path):
    for names, file in re.findall(r"((?:`\w+`, )*`\w+`)(?: of| in)? `(\w+(?:/\w+)*\.py)`", prose(page)):
        for name in re.findall(r"\w+", names):
            assert re.search(rf"^(class |def |    def )?{name}\b", (ROOT / file).read_text(), re.MULTILINE), (
                name,
                file,
            )


def known_flags() -> set[str]:
    """The flags of all commands; those that are yes or no have a "no_" form, too."""
    options = [evaluate.Options, Sources, predict.Options, report.Options, *prepare.COMMANDS.values()]
    options += [reproduce.Options, Splitting, reproduce.Compare]
    names = GROUP_OF.keys() | {field.name for option in options for field in dataclasses.fields(option)}
    return names | {f"no_{name}" for name in names}


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name != "history"], ids=name_of)
def test_flags_exist(page: Path):
    text = re.sub(r"#SBATCH.*", "", page.read_text(encoding="utf-8"))
    flags = set(re.findall(r"(?<![\w-])--([A-Za-z][\w-]*)", text))
    assert not flags - known_flags() - FOREIGN
