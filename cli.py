"""Command lines from dataclasses: a field is a flag, its docstring the help."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, get_type_hints

import docstring_parser
import tyro

WRITTEN = {"use_underscores": True, "config": (tyro.conf.OmitArgPrefixes,)}


def parse(options: type, description: str, arguments: list[str] | None = None, **settings: Any) -> Any:
    """The dataclass `options` from `arguments` (by default those of the process).

    `description` stands above the flags, an example in each line that begins with "python"; `settings` are tyro.cli's.
    """
    _describe(options)
    return tyro.cli(options, args=arguments, description=_indented(description), **WRITTEN, **settings)


def parse_command(commands: Mapping[str, type], description: str, arguments: list[str] | None = None) -> Any:
    """The dataclass of the command that `arguments` begin with, from the others; see parse."""
    for options in commands.values():
        _describe(options)
    return tyro.extras.subcommand_cli_from_dict(commands, description=_indented(description), args=arguments, **WRITTEN)


def _indented(description: str) -> str:
    """With examples indented: tyro joins lines that are not."""
    return re.sub("\n+python", "\n  python", description)


def _describe(options: type) -> None:
    """Give the fields of a dataclass and of those within it their docstrings, as one paragraph each.

    tyro, which would find them, keeps the line breaks of indented ones.
    """
    for kind in filter(dataclasses.is_dataclass, options.__mro__):
        texts = {entry.arg_name: entry.description for entry in docstring_parser.parse_from_object(kind).params}
        for field in dataclasses.fields(kind):
            if texts.get(field.name):
                field.metadata = {"help": " ".join(texts[field.name].split())}
    for within in filter(dataclasses.is_dataclass, get_type_hints(options).values()):
        _describe(within)
