"""The short examples run as they stand, on the demo model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("quickstart.py", "48 tokens, "),
        ("stream.py", " of them reused]"),
        ("structured.py", "'kind': '"),
        ("flash_attention.py", "old keys in 4 bits:"),
    ],
)
def test_an_example_runs_and_says_what_it_promises(name: str, shown: str, tmp_path: Path) -> None:
    line = [sys.executable, str(EXAMPLES / name)]
    result = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert shown in result.stdout
