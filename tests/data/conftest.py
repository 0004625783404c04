"""Whatever hangs, such as a reader that waits at a pipe, ends the process."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator

import pytest

DEADLINE = 300  # seconds


@pytest.fixture(autouse=True)
def never_hangs() -> Iterator[None]:
    faulthandler.dump_traceback_later(DEADLINE, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
