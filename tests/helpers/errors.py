"""What a message for users must be: one line that names the file and the remedy."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from utils import InputError, user_errors

REMEDY = re.compile(
    r"write (the file|it) again|put|remove|correct|save|crop|export|keep|list|choose|rename|number|pad|prepare|leave|"
    r"add |must |such as|copy|convert|resample"
)


def assert_one_line(error: InputError, *parts: str) -> None:
    """The message is one line and holds these parts."""
    message = str(error)
    assert message.isprintable()
    for part in parts:
        assert part in message, message


def assert_clear(error: InputError, *parts: str) -> None:
    """The message is one line, holds these parts, says what to do, and shows no object of Python's."""
    assert_one_line(error, *parts)
    message = str(error)
    assert REMEDY.search(message), message
    assert "object at 0x" not in message


def error_of(capsys: pytest.CaptureFixture, command: Callable[..., Any], *arguments: Any) -> str:
    """The one line on stderr with which a command ends that has got something wrong."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught, user_errors():
        command(*arguments)
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert error.startswith("error: ")
    assert error.endswith("\n")
    assert error[:-1].isprintable()
    return error[:-1]
