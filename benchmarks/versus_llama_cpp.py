"""mixkv beside llama.cpp, in turn within one run: prompts, generation at depth, bytes, time to the first token.

    pip install '.[bench]'
    python benchmarks/versus_llama_cpp.py [--model FILE.gguf] [--depths 0,8192,16384] [--rounds 3]

Without --model a random model of the Llama 3.2 1B shape is made first (Q4_0, 0.8 GB, in .bench/). Every engine and
cache is a process of its own that waits while others work; a round asks each for the same thing, so all see the same
machine. Reported are medians over rounds and ratios to llama.cpp's best. llama.cpp's f16 cache runs with flash
attention on and off, its q8_0 cache with it on (it needs it). --llama-python names another interpreter that has
llama_cpp, where one environment cannot hold both.

llama-cpp-python builds llama.cpp for the CPU that it finds. Where that build crashes (0.3.36 does, in its AMX code, on
some machines that have AMX), build it without:
CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON" pip install ...
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LLAMA_TYPES = {"f16": (1, 2.0), "q8_0": (8, 34 / 32)}
"""ggml's number of a type, and its bytes per number."""
GEN = 32
FIRST_TOKEN_RUNS = 5


class LlamaEngine:
    """llama.cpp through its C interface; `kv` is f16+fa, f16 or q8_0+fa."""

    def __init__(self, model: str, kv: str, n_ctx: int, threads: int) -> None:
        import ctypes

        import llama_cpp

        self.api, kind = llama_cpp, kv.split("+")[0]
        self._silent = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(model.encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, 512, 512
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = int(kv.endswith("+fa"))
        params.type_k = params.type_v = LLAMA_TYPES[kind][0]
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        n_layers, n_kv = llama_cpp.llama_model_n_layer(self.model), llama_cpp.llama_model_n_head_kv(self.model)
        head_dim = llama_cpp.llama_model_n_embd(self.model) // llama_cpp.llama_model_n_head(self.model)
        self._token_bytes = 2 * n_layers * n_kv * head_dim * LLAMA_TYPES[kind][1]
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.n = 0

    def reset(self) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        self.n = 0

    def feed(self, ids: list[int]) -> None:
        for start in range(0, len(ids), 512):
            chunk = ids[start : start + 512]
            array = (self.api.llama_token * len(chunk))(*chunk)
            if self.api.llama_decode(self.context, self.api.llama_batch_get_one(array, len(chunk))):
                raise SystemExit("llama_decode failed")
        self.api.llama_synchronize(self.context)
        self.n += len(ids)

    def kv_bytes(self) -> int:
        return int(self.n * self._token_bytes)


class OurEngine:
    """mixkv; `kv` is f16 or mixed."""

    def __init__(self, model: str, kv: str, n_ctx: int, threads: int) -> None:
        from mixkv.engine.bench import cache_config
        from mixkv.engine.load import load

        self.llm = load(model, n_ctx=n_ctx, n_threads=threads, cache_config=cache_config(kv))
        self.sequence, self.n_vocab = self.llm.sequence, self.llm.config.n_vocab

    def reset(self) -> None:
        self.llm.reset()

    def feed(self, ids: list[int]) -> None:
        self.sequence.feed(ids)

    def kv_bytes(self) -> int:
        return self.llm.cache.nbytes


def work(engine: str, kv: str, model: str, n_ctx: int, threads: int) -> None:
    """The worker: one JSON request a line, one JSON answer a line."""
    import random

    runner = (LlamaEngine if engine == "llama.cpp" else OurEngine)(model, kv, n_ctx, threads)
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print("{}", file=answer, flush=True)
    random.seed(0)
    ids = [random.randrange(runner.n_vocab) for _ in range(n_ctx)]
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "reset":
            runner.reset()
        start = time.perf_counter()
        if request["do"] == "fill":
            runner.feed(ids[request["from"] : request["to"]])
        elif request["do"] == "gen":
            for token in ids[: request["n"]]:
                runner.feed([token])
        seconds = time.perf_counter() - start
        peak = next(int(x.split()[1]) for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
        print(json.dumps({"s": seconds, "kv": runner.kv_bytes(), "peak": peak * 1024}), file=answer, flush=True)


class Worker:
    """One engine with one cache in a process of its own."""

    def __init__(self, args: argparse.Namespace, engine: str, kv: str, n_ctx: int) -> None:
        self.name = f"{engine} {kv}"
        python = args.llama_python if engine == "llama.cpp" else sys.executable
        command = [python, __file__, "--worker", f"{engine}:{kv}", "--model", str(args.model), "--n-ctx", str(n_ctx)]
        self._process = subprocess.Popen(
            [*command, "--threads", str(args.threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read()

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self._process.wait()}; see the head of this file")
        return json.loads(line)

    def close(self) -> None:
        self._process.communicate()


def first_token_seconds(args: argparse.Namespace, engine: str, kv: str) -> float:
    """A whole process: start, load, a prompt of five tokens, one token."""
    python = args.llama_python if engine == "llama.cpp" else sys.executable
    command = [python, __file__, "--worker", f"{engine}:{kv}", "--model", str(args.model), "--n-ctx", "512"]
    request = json.dumps({"do": "fill", "from": 0, "to": 5}) + "\n"
    start = time.perf_counter()
    command += ["--threads", str(args.threads)]
    subprocess.run(command, input=request, text=True, check=True, capture_output=True)
    return time.perf_counter() - start


def measure(args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """{test: {engine and cache: values of each round}}; speeds are tokens a second."""
    names = [("llama.cpp", kv) for kv in args.llama_kv] + [("mixkv", "f16"), ("mixkv", "mixed")]
    n_ctx = max([*args.depths, 512]) + args.rounds * GEN + 64
    results: dict[str, dict[str, list[float]]] = {}

    def note(test: str, worker: Worker, value: float) -> None:
        results.setdefault(test, {}).setdefault(worker.name, []).append(value)
        print(f"  {test:<14}{worker.name:<20}{value:.2f}", flush=True)

    workers = [Worker(args, engine, kv, n_ctx) for engine, kv in names]
    for _ in range(args.rounds):
        for worker in workers:
            worker.ask(do="reset")
            note("pp512", worker, 512 / worker.ask(**{"do": "fill", "from": 0, "to": 512})["s"])
    filled = 0
    for worker in workers:
        worker.ask(do="reset")
    for depth in sorted(args.depths):
        if depth:
            for worker in workers:
                answer = worker.ask(**{"do": "fill", "from": filled, "to": depth})
                if not filled:
                    note(f"pp{depth}", worker, depth / answer["s"])
                note(f"KV MiB@{depth}", worker, answer["kv"] / (1 << 20))
                note(f"peak MiB@{depth}", worker, answer["peak"] / (1 << 20))
        for _ in range(args.rounds):
            for worker in workers:
                note(f"tg@{depth}", worker, GEN / worker.ask(do="gen", n=GEN)["s"])
        filled = depth + args.rounds * GEN if depth else 0
        if not depth:
            for worker in workers:
                worker.ask(do="reset")
    for worker in workers:
        worker.close()
    for _ in range(FIRST_TOKEN_RUNS):
        for engine, kv in (names[0], names[-1]):
            seconds = first_token_seconds(args, engine, kv)
            results.setdefault("first token s", {}).setdefault(f"{engine} {kv}", []).append(seconds)
    return results


def report(results: dict[str, dict[str, list[float]]]) -> None:
    """A table of medians, each of ours beside llama.cpp's best; for bytes and seconds the least is best."""
    print(f"\n{'test':<16}" + "".join(f"{n:>18}" for n in results["pp512"]) + "   f16: ratio   mixed: ratio")
    for test, by_name in results.items():
        medians = {name: statistics.median(values) for name, values in by_name.items()}
        pick = max if test[:2] in ("pp", "tg") else min
        f16 = [v for n, v in medians.items() if n.startswith("llama.cpp f16")]
        best = pick(v for n, v in medians.items() if n.startswith("llama.cpp"))
        cells = "".join(f"{medians[n]:>18.2f}" if n in medians else f"{'':>18}" for n in results["pp512"])
        ratios = [f"{medians[n] / best:>8.2f}x" for n in ("mixkv f16", "mixkv mixed") if n in medians]
        note = f"   mixed to its best f16 {medians['mixkv mixed'] / pick(f16):.2f}x" if len(f16) > 1 else ""
        print(f"{test:<16}{cells}" + "".join(ratios) + note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--depths", type=lambda text: [int(n) for n in text.split(",")], default=[0, 8192, 16384])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--llama-kv", type=lambda text: text.split(","), default=["f16+fa", "f16", "q8_0+fa"], help="its caches"
    )
    parser.add_argument("--llama-python", default=sys.executable)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--n-ctx", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        engine, kv = args.worker.split(":")
        work(engine, kv, str(args.model), args.n_ctx, args.threads)
        return
    if args.model is None:
        args.model = HERE.parent / ".bench" / "llama1b-Q4_0.gguf"
        if not args.model.exists():
            args.model.parent.mkdir(exist_ok=True)
            recipe = HERE.parent / "tools" / "make_synthetic_gguf.py"
            subprocess.run([sys.executable, recipe, "llama1b", args.model], check=True)
    report(measure(args))


if __name__ == "__main__":
    main()
