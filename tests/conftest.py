"""Shared fixtures. Large reference data lives beside the checkout in ../shared; tests that need it skip without it.

Hypothesis: set HYPOTHESIS_PROFILE=ci for runs that repeat exactly (the default where the variable CI is set), dev for
fresh examples each time. No deadlines: machines that run tests are shared.

NumPy's BLAS gets one thread, here and in processes that tests start: its threads spin while they wait, and on a busy
machine that made the matrices of these tests, all small, ten times slower.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

for library in ("OPENBLAS", "MKL", "OMP"):  # read when NumPy is imported, so before anything else
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

import pytest  # noqa: E402
from hypothesis import HealthCheck, Phase, settings  # noqa: E402

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
    from mixkv.kernels import _native as native
except ImportError:  # built without native code: the tests that would ask for `isa` skip themselves
    ISAS = []
else:
    ISAS = native.supported_isas()


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this machine runs, in turn, with two threads."""
    before, threads = native.isa(), native.threads()
    native.set_isa(request.param)
    native.set_threads(2)
    yield request.param
    native.set_threads(threads)
    native.set_isa(before)


@pytest.fixture
def poison() -> Iterator[None]:
    """Scratch memory of the native attention full of NaN before each use."""
    native.poison_scratch(True)
    yield
    native.poison_scratch(False)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data (golden logits, vocabularies, books); the test is skipped where it is missing."""
    if not SHARED.is_dir():
        pytest.skip(f"reference data not found at {SHARED}")
    return SHARED
