"""The backend that this run does not use is held to the same tests, in a process of its own.

Where the native extension is built, everything else here runs on it, and these tests run on NumPy's twin.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mixkv.kernels import default_backend

TESTS = Path(__file__).parent
FILES = ["test_operator.py", "test_operator_algebra.py", "test_kv_cache.py", "test_kv_state.py", "test_golden.py",
         "test_families.py", "test_memory_plan.py", "test_session.py", "test_llm.py", "test_metadata.py",
         "test_kv_store.py", "test_kv_sharing.py"]  # fmt: skip
NATIVE_IS_BUILT = importlib.util.find_spec("mixkv.kernels._native") is not None


@pytest.mark.skipif(not NATIVE_IS_BUILT, reason="the native extension is not built: the reference runs everything")
@pytest.mark.skipif("MIXKV_KERNELS" in os.environ, reason="MIXKV_KERNELS forces one backend")
def test_the_other_backend_passes_the_same_tests() -> None:
    """Golden values, properties and sessions do not depend on who computes."""
    other = "reference" if default_backend().name == "native" else "native"
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-x", "-p", "no:cacheprovider", *(str(TESTS / f) for f in FILES)],
        env=os.environ | {"MIXKV_KERNELS": other}, capture_output=True, text=True, timeout=580, cwd=TESTS,
    )  # fmt: skip
    assert done.returncode == 0, f"{other}: {done.stdout[-3000:]}"
    assert " passed" in done.stdout


@pytest.mark.parametrize(
    ("value", "words"), [("gpu", "use native, reference, or leave it unset"), ("native", "no native extension")]
)
def test_a_backend_that_cannot_be_had_is_one_clear_error(value: str, words: str) -> None:
    """Asked for by name, it is never replaced in silence."""
    if value == "native" and NATIVE_IS_BUILT:
        pytest.skip("the native extension is built")
    code = "import mixkv.kernels; mixkv.kernels.open_backend()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=os.environ | {"MIXKV_KERNELS": value}, capture_output=True, text=True
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("mixkv.kernels.errors.ConfigError") and words in last


def test_the_reference_can_be_forced() -> None:
    code = "from mixkv.kernels import default_backend; print(default_backend().name)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=os.environ | {"MIXKV_KERNELS": "reference"}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "reference"
