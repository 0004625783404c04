"""What a message for users must be: one line that names the file and the remedy."""

from __future__ import annotations

import re

from utils import InputError

REMEDY = re.compile(
    r"write (the file|it) again|put|remove|correct|save|crop|export|keep|list|choose|rename|number|pad|prepare|leave|"
    r"add |must |such as"
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
