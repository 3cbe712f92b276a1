"""SECURITY.md lists every direct dependency, so that none comes in without a reason."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\s<>=!\[;]", requirement, maxsplit=1)[0] for requirement in requirements}


def test_every_direct_dependency_has_its_reason(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    declared = names(project["project"]["dependencies"]) | names(project["build-system"]["requires"])
    declared |= {name for extra in extras.values() for name in names(extra)} - {"gmoe_ext"}
    section = (repository / "SECURITY.md").read_text().split("## Dependencies")[1]
    listed = {
        name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall("`(.*?)`", row)
    }
    assert listed == declared
