"""Every benchmark says which implementation it timed, so that the report can put them side by side."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def named_implementation(request: pytest.FixtureRequest) -> None:
    """Write "native", "reference" or the rival's own name into the benchmark's record."""
    if "benchmark" not in request.fixturenames:
        return
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    implementation = parameters.get("implementation")
    if implementation is not None:
        request.getfixturevalue("benchmark").extra_info["implementation"] = _name(implementation)


def _name(implementation: object) -> str:
    if isinstance(implementation, str):
        return implementation
    module, name = getattr(implementation, "__module__", ""), getattr(implementation, "__name__", "")
    for package, word in (("gmoe_ext.ops", "native"), ("gmoe_ext.reference", "reference")):
        if module.startswith(package):
            return word
    return name
