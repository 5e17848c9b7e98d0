"""Shared fixtures. Large reference data lives beside the checkout in ../shared; tests that need it skip without it.

Hypothesis: set HYPOTHESIS_PROFILE=ci for runs that repeat exactly (the default where the variable CI is set), dev for
fresh examples each time. No deadlines: machines that run tests are shared.

NumPy's BLAS gets one thread, here and in processes that tests start: its threads spin while they wait, and on a busy
machine that made the matrices of these tests, all small, ten times slower.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

for library in ("OPENBLAS", "MKL", "OMP"):  # read when NumPy is imported, so before anything else
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

import pytest  # noqa: E402
from hypothesis import HealthCheck, Phase, settings  # noqa: E402

from mixkv.kernels import open_backend  # noqa: E402

SHARED = Path(__file__).resolve().parents[1].parent / "shared"

settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, print_blob=True)
# for tools/mutate.py: that a test fails is all that counts, not how small an example can be
settings.register_profile("mutate", settings.get_profile("ci"), phases=[Phase.explicit, Phase.generate])
# `python -c` in a child must not find the folder mixkv/ of the checkout before the installed package
os.environ["PYTHONSAFEPATH"] = "1"
# a shell that runs the tests in the background lets them, and so their children, ignore Ctrl-C
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))


try:
    from mixkv.kernels import _native
except ImportError:  # built without native code: the tests that would ask for `isa` skip themselves
    ISAS = []
else:
    ISAS = _native.supported_isas()


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction set that this machine runs, in turn: backends that the test opens, models load, use it."""
    monkeypatch.setenv("MIXKV_ISA", request.param)
    name: str = request.param
    return name


@pytest.fixture
def backend(isa: str) -> Any:
    """A native backend of two threads on each instruction set; attention finds its scratch memory full of NaN."""
    opened: Any = open_backend(2, kind="native", isa=isa)
    opened.poison_scratch(True)
    return opened


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data (golden logits, vocabularies, books); the test is skipped where it is missing."""
    if not SHARED.is_dir():
        pytest.skip(f"reference data not found at {SHARED}")
    return SHARED
