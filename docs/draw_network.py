"""The drawing of the network in README.md: python -m docs.draw_network

Writes docs/network-light.svg and docs/network-dark.svg. Names are those of the code: a module that the network does not
have is an error. Shapes are read from a forward pass of the default network without memory (fake tensors).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from config import LossConfig
from models import count_parameters
from models.ms_dual_guided import MSDualGuided
from models.multi_scale import SCALES
from utils import write_text

HERE = Path(__file__).resolve().parent
SIDE = 256  # pixels of the slice
WIDTH, HEIGHT = 880, 812

# Color of: page, panel, its edge, text, small text, lines; and for each kind of box its fill and edge.
PALETTES = {
    "light": {
        "page": "#ffffff", "panel": "#f6f8fa", "rim": "#d1d9e0",
        "text": "#1f2328", "small": "#59636e", "line": "#6e7781",
        "maps": ("#ffffff", "#8c959f"), "trunk": ("#ddeefc", "#3b82c4"), "attention": ("#ffedd2", "#d98412"),
        "semantic": ("#eee3fb", "#8456c9"), "head": ("#d9f2df", "#2e9b4f"), "loss": ("#fde1e3", "#d03a4b"),
    },
    "dark": {
        "page": "#0d1117", "panel": "#151b23", "rim": "#3d444d",
        "text": "#f0f6fc", "small": "#9aa4af", "line": "#9198a1",
        "maps": ("#212830", "#8c959f"), "trunk": ("#12304d", "#4c9be8"), "attention": ("#4a3110", "#e8a33d"),
        "semantic": ("#36254f", "#a87fe8"), "head": ("#133d22", "#45b868"), "loss": ("#4d1a20", "#f0616f"),
    },
}  # fmt: skip
TIMES, PRIME = "\N{MULTIPLICATION SIGN}", "\N{PRIME}"
CONVOLUTIONS, RESIZING = "convolutions", "resizing"
KINDS = ("maps", "trunk", "attention", "semantic", "head", "loss")


# ---------------------------------------------------------------- what is drawn


def shapes_of(value: Any) -> Any:
    """Tensors, in whatever lists they come, as shapes without the batch."""
    if isinstance(value, Tensor):
        return tuple(value.shape[1:])
    return [shapes_of(item) for item in value]


class Shapes:
    """The default network and the shapes of all its feature maps, (channels, rows, columns)."""

    def __init__(self) -> None:
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        with FakeTensorMode():
            self.network = MSDualGuided()
            image = torch.zeros(1, 1, SIDE, SIDE)
            for name, module in self.network.named_modules():
                if name:
                    self._watch(name, module)
            self.image = shapes_of(image)
            output = self.network.train()(image)
            self.logits = shapes_of(output.refined[0])
            self.prediction = shapes_of(self.network.eval()(image))
        self.parameters = count_parameters(self.network)
        self.supervised = len(output.raw) + len(output.refined)
        self.steps = len(self.network.steps)

    def _watch(self, name: str, module: nn.Module) -> None:
        def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self.inputs.setdefault(name, shapes_of(inputs)[0])
            self.outputs.setdefault(name, shapes_of(output))

        module.register_forward_hook(keep)

    def into(self, name: str) -> str:
        """The shape of a module's input."""
        return text_of(self.inputs[name])

    def out(self, name: str) -> str:
        """The shape of a module's output."""
        return text_of(self.outputs[name])

    def semantic(self) -> list[tuple[str, tuple[int, int, int]]]:
        """The maps of the semantic module: what makes each, and its shape."""
        name = "steps.0.semantic"
        maps = [("", self.inputs[name][0])]
        for half in ("encoder", "decoder"):
            for number, layer in enumerate(self.network.get_submodule(f"{name}.{half}")):
                way = RESIZING if isinstance(layer, nn.MaxPool2d | nn.ConvTranspose2d) else CONVOLUTIONS
                shape = self.outputs[f"{name}.{half}.{number}"]
                if way == maps[-1][0] == CONVOLUTIONS:
                    maps[-1] = (way, shape)
                else:
                    maps.append((way, shape))
        return maps


def text_of(shape: tuple[int, ...]) -> str:
    """(64, 32, 32) -> 64x32x32, with the sign of multiplication."""
    return TIMES.join(map(str, shape))


def class_of(network: nn.Module, name: str) -> str:
    """The class of a module of the network."""
    return type(network.get_submodule(name)).__name__


# ---------------------------------------------------------------- how it is drawn


@dataclass
class Canvas:
    """An SVG that is being written. Positions are in pixels at a width of WIDTH."""

    parts: list[str] = field(default_factory=list)

    def rectangle(self, x: float, y: float, width: float, height: float, kind: str, radius: float = 5) -> None:
        self.parts.append(
            f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"/>'
        )

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "middle", below: str = "") -> None:
        """`words` on the baseline y; `below` is a subscript."""
        lowered = f'<tspan class="sub" dy="3">{escape(below)}</tspan>' if below else ""
        self.parts.append(
            f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}{lowered}</text>'
        )

    def box(self, x: float, y: float, width: float, kind: str, name: str = "", shape: str = "") -> None:
        """A box about the height y, from x on: a name, and below it a shape."""
        height = 34 if shape else 20
        self.rectangle(x, y - height / 2, width, height, kind)
        if name:
            self.text(x + width / 2, y - 3 if shape else y + 4, name, "name")
        if shape:
            self.text(x + width / 2, y + 11, shape, "shape")

    def pill(self, x: float, y: float, width: float, name: str) -> None:
        """A head that has no room for a box."""
        self.rectangle(x, y - 8, width, 16, "head", 8)
        self.text(x + width / 2, y + 4, name)

    def line(self, *points: tuple[float, float], kind: str = "flow", arrow: bool = True) -> None:
        """A line through points; an arrow at its end."""
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
        end = f' marker-end="url(#{kind})"' if arrow else ""
        self.parts.append(f'<path class="line {kind}" d="{path}"{end}/>')

    def node(self, x: float, y: float, sign: str) -> None:
        """A small circle: an operation on what comes in."""
        self.parts.append(f'<circle class="maps" cx="{x:g}" cy="{y:g}" r="8"/>')
        self.text(x, y + 4, sign, "sign")

    def dot(self, x: float, y: float) -> None:
        """Where a line forks."""
        self.parts.append(f'<circle class="dot" cx="{x:g}" cy="{y:g}" r="2.2"/>')

    def panel(self, x: float, y: float, width: float, height: float, title: str, place: str) -> None:
        self.rectangle(x, y, width, height, "panel", 8)
        self.text(x + 12, y + 22, title, "title", "start")
        self.text(x + 12, y + 38, place, "note", "start")

    def svg(self, palette: dict[str, Any]) -> str:
        """The whole file in the colors of a palette."""
        colors = {name: value for name, value in palette.items() if isinstance(value, str)}
        style = STYLE.format(**colors)
        for kind in KINDS:
            fill, edge = palette[kind]
            style += f".{kind} {{ fill: {fill}; stroke: {edge}; }}\n"
        for kind in ("semantic", "loss"):
            style += f".line.{kind} {{ fill: none; stroke: {palette[kind][1]}; }}\n"
        ends = {"flow": palette["line"], "semantic": palette["semantic"][1], "loss": palette["loss"][1]}
        heads = "".join(MARKER.format(name=name, color=color) for name, color in ends.items())
        size = f'width="{WIDTH}" height="{HEIGHT}"'
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {size} role="img">\n'
            f"<title>The network MS-Dual-Guided: backbone, fusion, refinement steps, losses</title>\n"
            f"<style>\n{style}</style>\n<defs>{heads}</defs>\n"
            f'<rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="10"/>\n{body}\n</svg>\n'
        )


STYLE = """text {{ font: 11px Helvetica, Arial, sans-serif; fill: {text}; }}
text.title {{ font-size: 15px; font-weight: bold; }}
text.name {{ font-weight: bold; }}
text.shape, text.note {{ fill: {small}; }}
text.sign {{ font-size: 12px; font-weight: bold; }}
.sub {{ font-size: 8.5px; }}
.page {{ fill: {page}; }}
.panel {{ fill: {panel}; stroke: {rim}; }}
.group {{ fill: {page}; stroke: {rim}; }}
.dot {{ fill: {line}; }}
.line {{ fill: none; stroke-width: 1.2; stroke: {line}; }}
"""
MARKER = (
    '<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6.5" markerHeight="6.5" orient="auto">'
    '<path d="M0 0.8 L8 4 L0 7.2 z" fill="{color}"/></marker>'
)


# ---------------------------------------------------------------- Figure 1

ROWS = [214 + 60 * scale for scale in range(SCALES)]  # heights of the scales
BUS, SEMANTIC, LOSSES = 132, 458, 510  # heights of F_MS, of the semantic modules, of the losses
FIRST_CAT, PRODUCT, SECOND_CAT = 366, 530, 560  # columns between the boxes
STEP_X, STEP_WIDTH = (384, 578), 116


def draw_network(canvas: Canvas, shapes: Shapes) -> None:
    """Figure 1: from the slice to the prediction."""
    title = f"{type(shapes.network).__name__}, {shapes.steps} steps, {shapes.parameters:,} parameters"
    canvas.panel(
        8, 8, 864, 536, title, "Figure 1 · models/ms_dual_guided.py; backbone, reduce and fuse: models/multi_scale.py"
    )
    draw_lines(canvas)
    draw_backbone(canvas, shapes)
    draw_trunk(canvas, shapes)
    for number in range(shapes.steps):
        draw_step(canvas, shapes, number)
    draw_prediction(canvas, shapes)
    draw_losses(canvas)
    draw_legend(canvas, shapes)


def draw_lines(canvas: Canvas) -> None:
    """What lies below the boxes: the ways of F'_s and F_MS."""
    for x in STEP_X:
        canvas.rectangle(x, 158, STEP_WIDTH, 328, "group")
        middle = x + STEP_WIDTH / 2
        canvas.line((middle, ROWS[0]), (middle, SEMANTIC), kind="semantic", arrow=False)
    canvas.line((334, ROWS[-1]), (334, BUS + 17))
    canvas.line((352, BUS), (PRODUCT, BUS), (PRODUCT, ROWS[-1]), arrow=False)
    canvas.line((FIRST_CAT, BUS), (FIRST_CAT, ROWS[-1]), arrow=False)
    canvas.dot(FIRST_CAT, BUS)
    for y in ROWS:
        canvas.line((316, y), (STEP_X[0] + 10, y))
        canvas.line((348, y), (348, y + 28), (SECOND_CAT, y + 28), (SECOND_CAT, y + 8))
        canvas.dot(334, y)
        canvas.dot(348, y)
        canvas.line((STEP_X[0] + STEP_WIDTH - 10, y), (STEP_X[1] + 10, y))
        canvas.line((STEP_X[1] + STEP_WIDTH - 10, y), (712, y))
        canvas.node(FIRST_CAT, y, "c")
        canvas.node(PRODUCT, y, TIMES)
        canvas.node(SECOND_CAT, y, "c")


def draw_backbone(canvas: Canvas, shapes: Shapes) -> None:
    """The slice, and Res-1 to Res-5 one below the other."""
    canvas.box(26, 74, 94, "maps", "image", text_of(shapes.image))
    canvas.rectangle(18, 104, 110, ROWS[-1] + 26 - 104, "group")
    canvas.text(73, 120, "backbone", "name")
    heights = [ROWS[0] - 62, *ROWS]
    for number, (y, shape) in enumerate(zip(heights, shapes.outputs["backbone"], strict=True), 1):
        canvas.box(26, y, 94, "trunk", f"Res-{number}", text_of(shape))
    canvas.line((73, 91), (73, 106))
    for before, after in pairwise(heights):
        canvas.line((73, before + 17), (73, after - 17))


def draw_trunk(canvas: Canvas, shapes: Shapes) -> None:
    """Reductions, the maps F'_s, their raw heads, and the fusion F_MS."""
    for scale, y in enumerate(ROWS):
        canvas.line((120, y), (148, y))
        canvas.box(148, y, 76, "trunk", f"reduce.{scale}", shapes.out(f"reduce.{scale}"))
        canvas.line((224, y), (248, y))
        canvas.box(248, y, 68, "maps", shape=shapes.into(f"raw_heads.{scale}"))
        canvas.text(282, y - 3, f"F{PRIME}", "name", below=str(scale + 1))
        canvas.line((282, y + 17), (282, y + 23), arrow=False)
        canvas.pill(244, y + 31, 76, f"raw_heads.{scale}")
    canvas.text(328, 172, shapes.into("fuse"), "shape", "end")
    canvas.box(284, BUS, 68, "trunk", "fuse", shapes.out("fuse"))
    canvas.text(STEP_X[0] + STEP_WIDTH / 2, BUS - 6, "F", "name", below="MS")


def draw_step(canvas: Canvas, shapes: Shapes, number: int) -> None:
    """A refinement step: a guided attention module at each scale, and the semantic module that guides all of them."""
    x, name = STEP_X[number], f"steps.{number}"
    middle = x + STEP_WIDTH / 2
    canvas.text(middle, 174, name, "name")
    canvas.text(middle, 188, f"input {text_of(shapes.inputs[name][0])}", "shape")
    for scale, y in enumerate(ROWS):
        canvas.box(x + 10, y, STEP_WIDTH - 20, "attention", "PAM + CAM", shapes.out(f"{name}.project.{scale}"))
    canvas.text(middle + 6, SEMANTIC - 24, "all scales", "shape", "start")
    semantic = f"{name}.semantic"
    canvas.box(x + 10, SEMANTIC, STEP_WIDTH - 20, "semantic", "semantic", class_of(shapes.network, semantic))


def draw_prediction(canvas: Canvas, shapes: Shapes) -> None:
    """The heads of the last step, and their mean."""
    for scale, y in enumerate(ROWS):
        canvas.box(712, y, 88, "head", "refined_heads", shapes.out(f"refined_heads.0.{scale}"))
        canvas.line((800, y), (812, y), arrow=False)
    middle = (ROWS[0] + ROWS[-1]) / 2
    canvas.line((812, ROWS[0]), (812, ROWS[-1]), arrow=False)
    canvas.line((812, middle), (822, middle), arrow=False)
    canvas.box(822, middle, 42, "maps", "mean")
    canvas.line((843, middle + 10), (843, SEMANTIC - 17))
    canvas.box(786, SEMANTIC, 78, "maps", "prediction", text_of(shapes.prediction))


def draw_losses(canvas: Canvas) -> None:
    """The three terms of the loss."""
    weights = LossConfig()
    between = (STEP_X[0] + STEP_WIDTH + STEP_X[1]) / 2
    for x in STEP_X:
        canvas.line((x + STEP_WIDTH / 2, SEMANTIC + 17), (x + STEP_WIDTH / 2, LOSSES - 17), kind="loss")
        canvas.box(x + 10, LOSSES, STEP_WIDTH - 20, "loss", "reconstruction", f"Eq. 6, gamma {weights.gamma:g}")
    canvas.line((STEP_X[0] + STEP_WIDTH - 10, SEMANTIC), (between, SEMANTIC), (between, LOSSES - 17), kind="loss")
    canvas.line((STEP_X[1] + 10, SEMANTIC), (between, SEMANTIC), kind="loss", arrow=False)
    canvas.box(between - 46, LOSSES, 92, "loss", "guided", f"Eq. 7, beta {weights.beta:g}")
    canvas.line((750, ROWS[-1] + 17), (750, LOSSES - 17), kind="loss")
    canvas.box(702, LOSSES, 96, "loss", "segmentation", f"Eq. 10, alpha {weights.alpha:g}")


def draw_legend(canvas: Canvas, shapes: Shapes) -> None:
    """Signs and colors."""
    canvas.pill(18, SEMANTIC, 42, "head")
    lines = [
        f"1{TIMES}1 convolution to logits, enlarged to {text_of(shapes.logits)};",
        f"each of the {shapes.supervised} maps has a cross-entropy (segmentation)",
    ]
    for number, words in enumerate(lines):
        canvas.text(68, SEMANTIC - 3 + 14 * number, words, "note", "start")
    canvas.node(52, SEMANTIC + 32, "c")
    canvas.text(68, SEMANTIC + 36, "concatenation", "note", "start")
    canvas.node(158, SEMANTIC + 32, TIMES)
    canvas.text(172, SEMANTIC + 36, "product of each element", "note", "start")
    sides = TIMES.join(("channels", "rows", "columns"))
    canvas.text(18, SEMANTIC + 60, f"Shapes: {sides}, for a slice of {SIDE}{TIMES}{SIDE}", "note", "start")
    canvas.text(18, SEMANTIC + 75, f"F{PRIME}: the output of reduce, enlarged to the size of Res-2", "note", "start")


# ---------------------------------------------------------------- Figure 2


def draw_refinement(canvas: Canvas, shapes: Shapes) -> None:
    """Figure 2: the guided attention of a step at one scale."""
    canvas.panel(
        8,
        552,
        492,
        252,
        class_of(shapes.network, "steps.0"),
        "Figure 2, a step at one scale · models/ms_dual_guided.py, models/attention.py",
    )
    top, middle, low = 640, 702, 768
    plus = (top + middle) / 2
    for y in (top, middle):
        canvas.line((86, middle), (98, middle), (98, y), (112, y))
    canvas.line((98, middle), (98, low), (112, low))
    canvas.box(18, middle, 68, "maps", "input", text_of(shapes.inputs["steps.0"][0]))
    branches = ((top, "position", "Eq. 1, 2"), (middle, "channel", "Eq. 3, 4"))
    for y, name, equations in branches:
        layer = f"steps.0.{name}.0"
        canvas.text(112, y - 24, f"{name}: {class_of(shapes.network, layer)}, {equations}", "note", "start")
        for x in (170, 286):
            canvas.line((x, y), (x + 14, y))
        canvas.box(112, y, 58, "attention", f"conv 3{TIMES}3", shapes.out(f"{layer}.0"))
        canvas.box(184, y, 102, "attention", class_of(shapes.network, f"{layer}.1"), shapes.out(f"{layer}.1"))
        canvas.box(300, y, 58, "attention", f"conv 3{TIMES}3", shapes.out(f"{layer}.2"))
        canvas.line((358, y), (378, y), (378, plus - 9 if y < plus else plus + 9))
    canvas.text(112, low - 24, "semantic: one for all scales; its reconstruction of the input", "note", "start")
    canvas.box(
        112,
        low,
        174,
        "semantic",
        class_of(shapes.network, "steps.0.semantic"),
        text_of(shapes.outputs["steps.0.semantic"][1][0]),
    )
    canvas.line((286, low), (300, low))
    canvas.box(300, low, 58, "semantic", "guide", shapes.out("steps.0.guide.0"))
    canvas.line((358, low), (404, low), (404, plus + 9))
    canvas.line((386, plus), (395, plus), arrow=False)
    canvas.node(378, plus, "+")
    canvas.node(404, plus, TIMES)
    canvas.line((412, plus), (426, plus))
    canvas.box(426, plus, 62, "attention", "project", shapes.out("steps.0.project.0"))


# ---------------------------------------------------------------- Figure 3


def draw_semantic(canvas: Canvas, shapes: Shapes) -> None:
    """Figure 3: the encoder-decoder that guides."""
    canvas.panel(508, 552, 364, 252, class_of(shapes.network, "steps.0.semantic"), "Figure 3 · models/semantic.py")
    maps = shapes.semantic()
    left, gap, middle, below = 538, 38, 666, 731
    heights = {side: 22 + 22 * k for k, side in enumerate(sorted({shape[1] for _, shape in maps}))}
    places = [left + gap * k for k in range(len(maps))]
    halves = [4 + shape[0] / 128 for _, shape in maps]
    for k, (way, shape) in enumerate(maps):
        height = heights[shape[1]]
        canvas.rectangle(places[k] - halves[k], middle - height / 2, 2 * halves[k], height, "semantic", 3)
        canvas.text(places[k], middle - height / 2 - 6, str(shape[0]))
        canvas.text(places[k], middle + height / 2 + 14, TIMES.join(map(str, shape[1:])), "shape")
        if k > 0:
            start, end = places[k - 1] + halves[k - 1] + 2, places[k] - halves[k] - 1
            canvas.line((start, middle), (end, middle), kind="flow" if way == CONVOLUTIONS else "semantic")
    latent = places[min(range(len(maps)), key=lambda k: maps[k][1][1])]
    canvas.text((places[0] + latent) / 2, 611, "encoder", "name")
    canvas.text((latent + places[-1]) / 2, 611, "decoder", "name")
    canvas.text(places[0], below, "input")
    canvas.text(latent, below, "latent")
    canvas.text(862, below, "reconstruction", "", "end")
    canvas.line((522, 747), (540, 747))
    canvas.text(546, 751, f"two conv 3{TIMES}3, BN, ReLU", "note", "start")
    canvas.line((686, 747), (704, 747), kind="semantic")
    canvas.text(710, 751, "MaxPool2d, ConvTranspose2d", "note", "start")
    weights = LossConfig()
    lines = [
        f"reconstruction: MSE of input and reconstruction, gamma {weights.gamma:g}",
        f"guided: MSE of the latents of two successive steps, beta {weights.beta:g}",
    ]
    for number, words in enumerate(lines):
        canvas.rectangle(520, 762 + 18 * number, 20, 12, "loss", 3)
        canvas.text(546, 772 + 18 * number, words, "note", "start")


def write(folder: Path = HERE) -> list[Path]:
    """Write the drawing in both palettes; return the files."""
    shapes, canvas = Shapes(), Canvas()
    draw_network(canvas, shapes)
    draw_refinement(canvas, shapes)
    draw_semantic(canvas, shapes)
    files = []
    for name, palette in PALETTES.items():
        files.append(folder / f"network-{name}.svg")
        write_text(files[-1], canvas.svg(palette))
    return files


if __name__ == "__main__":
    print(*write())
