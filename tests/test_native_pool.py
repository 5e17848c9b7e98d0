"""Native backends: threads of their own, sleep, several callers, two at once, and ThreadSanitizer's opinion."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T
from gguf.quants import quantize
from native_tools import F32, native_backend

from mixkv.kernels import LayerFormat, available_cores, default_backend, open_backend
from mixkv.kernels.errors import ConfigError

native: Any = pytest.importorskip("mixkv.kernels._native", reason="the native extension is not built here")

CSRC = Path(__file__).resolve().parents[1] / "kernels" / "csrc"


def product(backend: Any, rows: int = 512, cols: int = 512) -> Callable[[], F32]:
    """A function that multiplies fixed random activations (5, cols) by a fixed weight, on the backend's threads."""
    rng = np.random.default_rng(3)
    w = backend.pack(quantize(rng.standard_normal((rows, cols), np.float32), T.Q8_0), int(T.Q8_0), cols)
    x = rng.standard_normal((5, cols), np.float32)
    return lambda: backend.linear(x, w)


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={**os.environ, **env}
    )


def in_threads(works: list[Callable[[], None]]) -> None:
    """All of them at once, to their ends; the first exception is raised here."""
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not any(t.is_alive() for t in threads)
    if errors:
        raise errors[0]


def test_every_thread_count_gives_the_same_bits() -> None:
    alone = product(native_backend(1))()
    for n in (2, 3, 8, 5):
        backend = native_backend(n)
        assert backend.n_threads == n
        multiply = product(backend)
        for _ in range(20):
            np.testing.assert_array_equal(multiply(), alone)


@pytest.mark.parametrize("n", [0, -1, 5000])
@pytest.mark.parametrize("kind", ["native", "reference"])
def test_impossible_thread_counts(n: int, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"not {n}"):
        open_backend(n, kind=kind)


def test_the_default_is_made_once_and_has_all_cores() -> None:
    assert default_backend() is default_backend()
    assert default_backend().n_threads == open_backend().n_threads == available_cores()


def test_one_thread_is_one_thread() -> None:
    """A load with n_threads=1 packed its weights on all cores, because the number was set with the first prompt."""
    code = (
        "import threading, numpy as np; from pathlib import Path; from mixkv.kernels import open_backend\n"
        "def count(): return len(list(Path('/proc/self/task').iterdir()))\n"
        "before = count(); b = open_backend({n}, kind='native'); after_open = count()\n"
        "b.pack(np.zeros((4096, 4096), np.uint8), 0, 1024); print(after_open - before, count() - before)"
    )
    assert run_python(code.format(n=1)).stdout.split() == ["0", "0"]
    assert run_python(code.format(n=3)).stdout.split() == ["0", "2"]


def test_a_backend_takes_its_threads_with_it() -> None:
    before = threads_alive()
    backend = native_backend(5)
    multiply = product(backend)
    multiply()
    assert threads_alive() == before + 4
    del backend
    multiply()  # what it made keeps it
    del multiply
    assert threads_alive() == before


def threads_alive() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_idle_workers_sleep() -> None:
    """The process burns next to no CPU time between calls."""
    multiply = product(native_backend(4))
    multiply()
    time.sleep(0.01)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.03


def test_several_python_threads_on_one_backend() -> None:
    """Their calls take turns, and do not mix their results: products, caches and packing share scratch memory."""
    backend = native_backend(2)
    jobs = [product(backend, 64 * (i + 1)) for i in range(3)]
    k = np.random.default_rng(0).standard_normal((40, 2, 64)).astype(np.float32)

    def attend() -> F32:
        store = backend.KVStore(
            [LayerFormat()], n_kv_heads=2, head_dim_k=64, head_dim_v=64, n_ctx=64, sink_tokens=0, hot_tiles=4
        )
        return store.step(0, k, k, k, 0, np.zeros(40, np.int64), 0, 0, scale=0.1)

    jobs.append(attend)
    wanted = [job() for job in jobs]

    def work(i: int) -> Callable[[], None]:
        return lambda: [np.testing.assert_array_equal(jobs[i](), wanted[i]) for _ in range(100)] and None

    in_threads([work(i) for i in range(len(jobs))])


def test_two_backends_do_not_know_of_each_other(isa: str) -> None:
    """Thread counts were set for the whole process: while one model computed, another's call resized its memory."""
    first, second = native_backend(1, isa=native.supported_isas()[0]), native_backend(8, isa=isa)
    jobs = [product(first, 640), product(second, 1280)]
    wanted = [job() for job in jobs]

    def work(i: int) -> Callable[[], None]:
        return lambda: [np.testing.assert_array_equal(jobs[i](), wanted[i]) for _ in range(200)] and None

    in_threads([work(0), work(1)])
    assert (first.n_threads, second.n_threads, second.isa) == (1, 8, isa)


def test_native_beside_numpy() -> None:
    rng = np.random.default_rng(5)
    raw, x = rng.standard_normal((70, 64), np.float32).view(np.uint8), rng.standard_normal((3, 64), np.float32)
    results = []
    for kind in ("native", "reference"):
        backend = open_backend(2, kind=kind)
        assert backend.name == kind
        results.append(backend.linear(x, backend.pack(raw, int(T.F32), 64)))
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="NumPy chooses"):
        open_backend(2, kind="reference", isa="base")
    with pytest.raises(ConfigError, match="kind 'gpu': use native, reference"):
        open_backend(2, kind="gpu")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_default_size_respects_affinity() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from mixkv.kernels import available_cores, open_backend; print(available_cores(), open_backend().n_threads)"
    )
    assert run_python(code).stdout.split() == ["1", "1"]


def test_instruction_set_from_the_environment() -> None:
    code = "from mixkv.kernels import open_backend; print(open_backend(kind='native').isa)"
    for name in native.supported_isas():
        assert run_python(code, MIXKV_ISA=name).stdout.strip() == name
    failed = run_python(code, MIXKV_ISA="pentium")
    assert failed.returncode != 0
    assert failed.stderr.strip().splitlines()[-1].count("MIXKV_ISA=pentium") == 1


TSAN_MAIN = """
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <thread>
#include <vector>
#include "pool.h"
using mixkv::Pool;
static void check(bool ok, const char* what) {
    if (!ok) { std::puts(what); std::exit(1); }
}
static void sums(Pool& pool, int rounds, int n) {
    std::vector<long> out(n);
    for (int r = 0; r < rounds; ++r) {
        Pool::Turn turn(pool);
        for (long& v : out) v = 0;
        pool.parallel_for(n, [&](int task, int) { for (int i = 0; i < 50; ++i) out[task] += task + i; });
        for (int t = 0; t < n; ++t) check(out[t] == 50L * t + 1225, "wrong sum");
    }
}
static void faults(Pool& pool, int rounds, int n) {
    for (int r = 0; r < rounds; ++r) {
        int caught = -1;
        try {
            Pool::Turn turn(pool);
            pool.parallel_for(n, [&](int task, int) { if (task % 3 == r % 3) throw task; });
        } catch (int task) { caught = task; }
        check(caught >= 0 && caught % 3 == r % 3, "no exception");
        sums(pool, 1, n);
    }
}
int main() {
    for (int threads : {1, 2, 4, 3}) {
        Pool pool(threads);
        sums(pool, 300, 1); sums(pool, 300, 2); sums(pool, 300, 40);
        faults(pool, 100, 40);
    }
    Pool one(3), two(2);
    std::thread a([&] { sums(one, 300, 17); }), b([&] { sums(one, 300, 9); faults(one, 100, 9); });
    std::thread c([&] { sums(two, 300, 17); }), d([&] { for (int i = 0; i < 50; ++i) { Pool p(2); sums(p, 3, 5); } });
    a.join(); b.join(); c.join(); d.join();
    std::puts("done");
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ with ThreadSanitizer")
def test_thread_sanitizer_finds_nothing(tmp_path: Path) -> None:
    """Pools alone, hammered with short jobs, jobs that throw, two callers on one, and pools that come and go."""
    (tmp_path / "main.cpp").write_text(TSAN_MAIN)
    program = tmp_path / "pool"
    build = subprocess.run(
        ["g++", "-std=c++20", "-O1", "-g", "-fsanitize=thread", f"-I{CSRC}", str(tmp_path / "main.cpp"),
         str(CSRC / "pool.cpp"), "-o", str(program), "-pthread"],
        capture_output=True, text=True,
    )  # fmt: skip
    if build.returncode != 0:
        pytest.skip(f"ThreadSanitizer is not installed: {build.stderr.strip().splitlines()[-1]}")
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []  # older runtimes cannot take random addresses
    result = subprocess.run([*fixed, str(program)], capture_output=True, text=True, timeout=120)
    if "unexpected memory mapping" in result.stderr:
        pytest.skip("ThreadSanitizer cannot run under this kernel's address layout")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "done"
