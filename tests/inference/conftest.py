"""What the tests of predictions only read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers import networks
from tests.helpers.trained import Trained, train_on_scans


@pytest.fixture(scope="package")
def trained(tmp_path_factory) -> Iterator[Trained]:
    """A trained network with its scans."""
    with pytest.MonkeyPatch.context() as patch:
        networks.register(patch)
        yield train_on_scans(tmp_path_factory.mktemp("trained"))
