"""The list of tools/mutate.py: a change whose text no longer stands in the code breaks nothing."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tools" / "mutations.toml"


@pytest.mark.skipif(not LIST.exists(), reason="the source is not here")
def test_every_change_of_the_list_can_be_made() -> None:
    for change in tomllib.loads(LIST.read_text())["mutation"]:
        where = f"{change['file']}: {change['old']!r}"
        assert (ROOT / change["file"]).read_text().count(change["old"]) == 1, where
        assert change["old"] != change["new"], where
        for name in change["tests"].split():
            assert (ROOT / "tests" / name).exists(), f"{where}: {name}"
