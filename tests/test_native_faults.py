"""When the system says no, and when the process is copied: memory that ends inside a task, threads that do not start,
fork() in the middle of other threads' calls. The worst that may come of it is an exception, and everything works on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_tools import F32, native_backend

from mixkv.kernels import LayerFormat
from mixkv.kernels.parts import Norm, Rotation

pytest.importorskip("mixkv.kernels._native", reason="the native extension is not built here")
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").is_file(), reason="this system does not say what is in use"
)

LIMIT = """
import re, resource, sys, warnings
import numpy as np
import mixkv
import mixkv.kernels

def open_backend(n): return mixkv.kernels.open_backend(n, kind="native")

class Limit:
    def __init__(self, extra): self.extra = extra
    def __enter__(self):
        used = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) << 10
        resource.setrlimit(resource.RLIMIT_AS, (used + self.extra, -1))
    def __exit__(self, *args): resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
"""


def run(code: str, *args: object) -> str:
    """Runs LIMIT and code in a process of its own, which must end well; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", LIMIT + code, *map(str, args)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("n_threads", [1, 2, 4])
def test_memory_ends_inside_a_task(n_threads: int) -> None:
    """The exception of a worker ended the process at once, that of the calling thread with the next call."""
    found = run("""
rng = np.random.default_rng(0)
q, k = rng.standard_normal((4, 256, 1024), np.float32), rng.standard_normal((64, 1, 1024), np.float32)
wanted = mixkv.flash_attn_with_state(q, k, k, backend=open_backend(1)).acc
for mib in range(20):
    backend = open_backend(int(sys.argv[1]))
    mixkv.flash_attn_with_state(q[:, :64, :64].copy(), k[..., :64].copy(), k[..., :64].copy(), backend=backend)
    with Limit(mib << 20):
        try: print(len(mixkv.flash_attn_with_state(q, k, k, backend=backend).acc))
        except MemoryError as error: print(type(error).__name__)
    assert (mixkv.flash_attn_with_state(q, k, k, backend=backend).acc == wanted).all()
""", n_threads).split()  # fmt: skip
    assert "OutOfMemoryError" in found and "4" in found


def test_memory_ends_to_the_last_page() -> None:
    """A thread's first exception needs memory of the C++ runtime; where it found none the process ended."""
    found = run("""
import gc
gc.disable()
rng = np.random.default_rng(0)
q, k = rng.standard_normal((4, 256, 1024), np.float32), rng.standard_normal((64, 1, 1024), np.float32)
for kib in [*range(0, 1000, 4)] * 2:
    backend = open_backend(8)  # threads, and arrays to be had again, but no memory for what a task needs
    mixkv.flash_attn_with_state(q[..., :8].copy(), k[..., :8].copy(), k, backend=backend)
    with Limit(kib << 10):
        try: mixkv.flash_attn_with_state(q, k, k, backend=backend)
        except MemoryError as error: print(type(error).__name__)
""").split()
    assert len(found) == 500 and found.count("OutOfMemoryError") > 400


@pytest.mark.parametrize(("extra_mib", "least"), [(40, 10), (0.4, 1)])
def test_threads_that_cannot_be_started_are_done_without(extra_mib: float, least: int) -> None:
    """A stack that could not be had ended the process. Now those that started compute, and there is one warning."""
    out = run("""
x = np.ones((2, 512), np.float32)
w = open_backend(1).pack(np.ones((4096, 512), np.float32).view(np.uint8), 0, 512)
wanted = open_backend(1).linear(x, w)
backend = open_backend(200)
backend.linear(x, open_backend(1).pack(np.ones((16, 512), np.float32).view(np.uint8), 0, 512))  # memory, but no threads
with warnings.catch_warnings(record=True) as caught, Limit(int(float(sys.argv[1]) * (1 << 20))):
    warnings.simplefilter("always")
    for _ in range(3): assert (backend.linear(x, w) == wanted).all()
assert (backend.linear(x, w) == wanted).all()
print([str(w.message) for w in caught], caught[0].category is mixkv.MixkvWarning)
""", extra_mib)  # fmt: skip
    words = out.split()
    assert words[-1] == "True" and out.count("could not be started; computing with") == 1
    computing = int(out.split("computing with ")[1].split("'")[0])
    assert least <= computing < 200


def test_packing_without_memory_is_one_error() -> None:
    found = run("""
raw = np.ones((4096, 4096), np.float32).view(np.uint8)
backend = open_backend(3)
for mib in (1, 30, 100):
    with Limit(mib << 20):
        try: print(backend.pack(raw, 0, 4096).nbytes >> 20)
        except MemoryError as error: print(type(error).__name__)
""").split()
    assert found == ["OutOfMemoryError", "OutOfMemoryError", "64"]


def wait_for(child: int, seconds: float = 60) -> int:
    """The exit status of a forked child; it is killed, and the test fails, if it hangs."""
    deadline = time.monotonic() + seconds
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the forked child hung")
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(done[1])


def jobs(backend: Any) -> list[Callable[[], F32]]:
    """A product with its norm and rotation, and a step of a cache: long enough to be met in the middle."""
    rng = np.random.default_rng(1)
    dim = 256
    w = backend.pack(rng.standard_normal((dim, dim), np.float32).view(np.uint8), 0, dim)
    norm, rotation = Norm(np.ones(dim, np.float32), 1e-5), Rotation(np.ones(16, np.float32), True)
    qkv = backend.NormQKV(norm=norm, wq=w, wk=w, wv=w, rotation=rotation, n_heads=8, n_kv_heads=8, head_dim=32)
    x = rng.standard_normal((200, dim), np.float32)
    k = rng.standard_normal((200, 8, 32), np.float32)
    store = backend.KVStore(
        [LayerFormat()], n_kv_heads=8, head_dim_k=32, head_dim_v=32, n_ctx=256, sink_tokens=0, hot_tiles=16
    )
    hot = np.zeros(200, np.int64)
    at = np.arange(200)
    return [lambda: qkv(x, at)[0], lambda: store.step(0, k, k, k, 0, hot, 0, 0, scale=0.1)]


@pytest.mark.parametrize("n_threads", [1, 3])
def test_a_child_forked_in_the_middle_of_calls_computes(n_threads: int) -> None:
    """It inherited locks that a thread held which it does not have: a store's, the table of angles', the arrays'."""
    backend, other = native_backend(n_threads), native_backend(2)
    mine = [*jobs(backend), *jobs(other)]
    wanted = [job() for job in mine]
    stop = threading.Event()

    def work(job: Callable[[], F32]) -> None:
        while not stop.is_set():
            job()

    threads = [threading.Thread(target=work, args=(job,)) for job in mine]
    for t in threads:
        t.start()
    try:
        for _ in range(15):
            time.sleep(0.002)
            child = os.fork()
            if child == 0:
                try:
                    ok = all(np.array_equal(job(), want) for job, want in zip(mine, wanted, strict=True))
                    ok &= np.array_equal(jobs(native_backend(2))[0](), wanted[0])
                finally:
                    os._exit(0 if ok else 1)
            assert wait_for(child) == 0
    finally:
        stop.set()
        for t in threads:
            t.join()
    for job, want in zip(mine, wanted, strict=True):
        np.testing.assert_array_equal(job(), want)
