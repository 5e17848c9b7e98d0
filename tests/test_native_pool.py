"""The native thread pool: sizes, sleep, fork, several Python threads at once, and ThreadSanitizer's opinion."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T
from gguf.quants import quantize

from mixkv.kernels.errors import ConfigError

native: Any = pytest.importorskip("mixkv.kernels.native", reason="the native extension is not built here")

CSRC = Path(__file__).resolve().parents[1] / "kernels" / "csrc"


@pytest.fixture(autouse=True)
def default_threads() -> Iterator[None]:
    yield
    native.set_threads(native.available_cores())


def product(rows: int = 512, cols: int = 512) -> Any:
    """A function that multiplies fixed random activations (5, cols) by a fixed weight, on the pool."""
    rng = np.random.default_rng(3)
    w = native.Weight.pack(quantize(rng.standard_normal((rows, cols), np.float32), T.Q8_0), int(T.Q8_0), cols)
    x = rng.standard_normal((5, cols), np.float32)
    return lambda: native.linear(x, w)


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={**os.environ, **env}
    )


def test_every_thread_count_gives_the_same_bits() -> None:
    multiply = product()
    native.set_threads(1)
    alone = multiply()
    for n in (2, 3, 8, 2, 1, 5):
        native.set_threads(n)
        assert native.threads() == n
        for _ in range(20):
            np.testing.assert_array_equal(multiply(), alone)


@pytest.mark.parametrize("n", [0, -1, 5000])
def test_impossible_thread_counts(n: int) -> None:
    with pytest.raises(ConfigError, match=f"not {n}"):
        native.set_threads(n)


def test_idle_workers_sleep() -> None:
    """The process burns next to no CPU time between calls."""
    native.set_threads(4)
    multiply = product()
    multiply()
    time.sleep(0.01)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.03


def test_forked_child_makes_its_own_workers() -> None:
    """The child's pool works, and so does the parent's afterwards."""
    native.set_threads(3)
    multiply = product()
    want = multiply()
    child = os.fork()
    if child == 0:
        ok = all(np.array_equal(multiply(), want) for _ in range(50))
        os._exit(0 if ok else 1)
    deadline = time.monotonic() + 20
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the forked child hung in its first parallel call")
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(done[1]) == 0
    np.testing.assert_array_equal(multiply(), want)


def test_several_python_threads() -> None:
    """Calls from Python threads take turns on the pool and do not mix their results."""
    native.set_threads(2)
    jobs = [product(64 * (i + 1)) for i in range(4)]
    want = [job() for job in jobs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(100):
            if not np.array_equal(jobs[i](), want[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(30)
    assert not any(t.is_alive() for t in threads)
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_default_size_respects_affinity() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from mixkv.kernels import native; print(native.available_cores(), native.threads())"
    )
    assert run_python(code).stdout.split() == ["1", "1"]


def test_instruction_set_from_the_environment() -> None:
    code = "from mixkv.kernels import native; print(native.isa())"
    for name in native.supported_isas():
        assert run_python(code, MIXKV_ISA=name).stdout.strip() == name
    failed = run_python(code, MIXKV_ISA="pentium")
    assert failed.returncode != 0
    assert failed.stderr.strip().splitlines()[-1].count("MIXKV_ISA=pentium") == 1


TSAN_MAIN = """
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>
#include "pool.h"
static void sums(int rounds, int n) {
    std::vector<long> out(n);
    for (int r = 0; r < rounds; ++r) {
        for (long& v : out) v = 0;
        mixkv::parallel_for(n, [&](int task, int) { for (int i = 0; i < 50; ++i) out[task] += task + i; });
        for (int t = 0; t < n; ++t)
            if (out[t] != 50L * t + 1225) { std::puts("wrong sum"); std::exit(1); }
    }
}
int main() {
    for (int threads : {1, 2, 4, 3}) {
        mixkv::set_threads(threads);
        sums(300, 1); sums(300, 2); sums(300, 40);
    }
    std::thread a([] { sums(300, 17); }), b([] { sums(300, 9); });
    a.join(); b.join();
    std::puts("done");
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ with ThreadSanitizer")
def test_thread_sanitizer_finds_nothing(tmp_path: Path) -> None:
    """The pool alone, hammered with short jobs, sizes that change, and two callers."""
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
