"""The same model with the operators on gmoe_ext.reference: the before of every before and after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gmoe_ext import _native


@contextmanager
def on_reference() -> Iterator[None]:
    """Inside, gmoe_ext.ops run the reference, as they do where nothing was compiled."""
    compiled = _native.available
    _native.available = False
    try:
        yield
    finally:
        _native.available = compiled
