"""Networks and losses that are not of this repository: "package.module:Class" or "package.module:Class(key=value)"."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import traceback
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from config import LONGEST_TEXT
from models.network import Network, Output, tolerate_single_values
from utils import InputError, OptionError, ceil_div, is_out_of_memory


def is_own(text: str) -> bool:
    """Whether the value of an option names a class of a module."""
    return ":" in text


def own_class(option: str, text: str) -> partial[nn.Module]:
    """The class that `text` names, with the keyword arguments that stand in its brackets.

    The module lies in the folder where the program was started, or is an installed library. Raises OptionError, whose
    message begins with `option`, where there is no such module, it fails, or has no such class of networks or losses
    with these arguments.
    """
    where = f"{option} {text}"
    name, class_name, arguments = _parse(where, text)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # the latter of a script that ends itself
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            reason = f"no module {error.name} in {Path.cwd()}, and none is installed; start where its file or folder is"
        else:
            reason = f"the module fails while it is imported: {in_words(error)}"
        raise OptionError(f"{where}: {reason}") from None
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        file = getattr(module, "__file__", None) or name
        raise OptionError(
            f"{where}: {file} has no class {class_name} derived from torch.nn.Module; correct the name, or rename the "
            "file if you mean another one"
        )
    try:
        inspect.signature(found).bind_partial(**arguments)
    except (TypeError, ValueError) as error:
        raise OptionError(f"{where}: {class_name} does not take these arguments: {error}") from None
    return partial(found, **arguments)


def own_file(text: str) -> str:
    """Where the code of a network of one's own is. Raises OptionError as `own_class` does."""
    return inspect.getfile(own_class("model", text).func)


def _parse(where: str, text: str) -> tuple[str, str, dict[str, Any]]:
    """Module, class and keyword arguments. Nothing of the text is computed: values are literals."""
    wrong = OptionError(
        f"{where}: must be package.module:Class or package.module:Class(key=value, ...), in at most {LONGEST_TEXT} "
        "signs, with values such as 2, 0.5, 'text', True or [1, 2]"
    )
    name, _, call = text.partition(":")
    try:
        tree = ast.parse(call, mode="eval").body
        called = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
        arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in called.keywords}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise wrong from None
    is_named = isinstance(called.func, ast.Name) and all(map(str.isidentifier, name.split(".")))
    are_keywords = not called.args and None not in arguments and len(arguments) == len(called.keywords)
    if not (is_named and are_keywords) or len(text) > LONGEST_TEXT:
        raise wrong
    return name, called.func.id, arguments


def build_own(option: str, text: str, fields: Mapping[str, Any]) -> nn.Module:
    """The object of a class: its constructor gets those of `fields` that it names, and the arguments in the text.

    Raises OptionError as `own_class` does, and for whatever the constructor raises.
    """
    found = own_class(option, text)
    taken = {name: fields[name] for name in named_by(found) if name in fields}
    try:
        return found(**taken)
    except Exception as error:
        if isinstance(error, InputError) or is_out_of_memory(error):
            raise
        given = ", ".join(f"{name}={value!r}" for name, value in (taken | found.keywords).items())
        raise OptionError(f"{option} {text}: {found.func.__name__}({given}) fails: {in_words(error)}") from None


def named_by(constructor: Any) -> list[str]:
    """The arguments that a constructor names, without those that it has been given already."""
    given = getattr(constructor, "keywords", {})
    return [name for name in inspect.signature(constructor).parameters if name not in given]


def in_words(error: BaseException) -> str:
    """An error of code that is not ours in a line, with the place outside of PyTorch where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    others = ("<", importlib.__file__, str(Path(torch.__file__).parent))
    places = [frame for frame in frames if not frame.filename.startswith(others)]
    place = f" ({places[-1].filename}, line {places[-1].lineno})" if places else ""
    return f"{type(error).__name__}: {error}".partition("\n")[0] + place


class OwnNetwork(Network):
    """Any network that returns logits, of any resolution: one map, several with its prediction first, or an `Output`.

    Images are padded to its `multiple` and `smallest` (sides in pixels; 32 and 64 where it does not say). It keeps its
    initialization. Raises OptionError for other sides, and (forward) for an output of another kind and what it raises.
    """

    def __init__(self, text: str, network: nn.Module, classes: int) -> None:
        super().__init__()
        self.text, self.classes = text, classes
        self.network = network
        self.multiple, smallest = getattr(network, "multiple", 32), getattr(network, "smallest", 64)
        if not all(type(side) is int and side > 0 for side in (self.multiple, smallest)):
            raise OptionError(f"model {text}: its multiple and smallest must be whole numbers of pixels, at least 1")
        self.smallest = ceil_div(smallest, self.multiple) * self.multiple
        tolerate_single_values(network)

    @property
    def backbone(self) -> nn.Module:
        """Its part of this name. Raises AttributeError where it has none."""
        backbone = self.network.backbone
        if not isinstance(backbone, nn.Module):
            raise AttributeError("backbone")
        return backbone

    def maps(self, image: Tensor) -> Output:
        """Padded image (B, C, H, W) -> Output with what the network returned."""
        try:
            returned = self.network(image)
        except Exception as error:
            without_content = type(image) is not Tensor  # such an image may be the reason
            if isinstance(error, InputError) or is_out_of_memory(error) or without_content:
                raise
            raise OptionError(f"model {self.text}: fails on images {tuple(image.shape)}: {in_words(error)}") from None
        output = Output.of(returned)
        for logits in (*output.raw, *output.refined):
            self._check(logits, image.shape[0])
        if not output.refined:
            self._refuse("nothing")
        return output

    def _check(self, logits: Any, batch: int) -> None:
        if not isinstance(logits, Tensor):
            self._refuse(f"a {type(logits).__name__}")
        if logits.dim() != 4 or logits.shape[:2] != (batch, self.classes) or not logits.is_floating_point():
            self._refuse(f"a tensor {tuple(logits.shape)} of {str(logits.dtype).removeprefix('torch.')}")

    def _refuse(self, what: str) -> None:
        raise OptionError(
            f"model {self.text}: returned {what}; must return logits (batch, {self.classes} classes, rows, columns), a "
            "list of them with the prediction first, or an Output of models"
        )
