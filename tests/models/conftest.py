"""Models are tested on every device there is."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _everywhere(made_on_device: None) -> None:
    return
