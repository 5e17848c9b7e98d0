"""What a prompt becomes, and what is said about a prompt or a context that the model was not made for."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from cli_process import generate
from gguf_tools import tiny_llama, write_gguf

import mixkv
from mixkv.kernels import available_cores


def model(folder: Path, **changes: object) -> Path:
    """A tiny model, metadata changed; None leaves a key out."""
    metadata, tensors = tiny_llama()
    merged = metadata | {name.replace("__", "."): value for name, value in changes.items()}
    return write_gguf(folder / "tiny.gguf", {k: v for k, v in merged.items() if v is not None}, tensors)


def test_an_empty_prompt_is_bos_alone(tmp_path: Path) -> None:
    """llama-cli starts from there; "" was refused."""
    llm = mixkv.load(model(tmp_path))
    assert llm.tokenize("") == [1]
    assert llm.generate("", max_tokens=3, temperature=0).tokens == llm.generate([1], max_tokens=3, temperature=0).tokens


def test_without_a_bos_an_empty_prompt_is_an_error(tmp_path: Path) -> None:
    from mixkv.engine.prompt import encode_prompt

    tokenizer = mixkv.load(model(tmp_path)).tokenizer
    tokenizer.bos_id = None
    assert encode_prompt("", tokenizer, parse_special=False) == []


def test_two_bos_are_warned_of_where_the_model_adds_its_own(tmp_path: Path) -> None:
    llm = mixkv.load(model(tmp_path))
    with pytest.warns(mixkv.MixkvWarning, match="begins with two BOS"):
        assert llm.tokenize("<s>the", parse_special=True)[:2] == [1, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llm.tokenize("<s>the")
        llm.tokenize("the <s>", parse_special=True)
        llm.tokenize([1, 1, 5])
        mixkv.load(model(tmp_path, tokenizer__ggml__add_bos_token=False)).tokenize("<s>the", parse_special=True)


def test_a_context_beyond_the_training_is_warned_of(tmp_path: Path) -> None:
    path = model(tmp_path)
    with pytest.warns(mixkv.MixkvWarning, match="129 tokens is more than the 128"):
        mixkv.load(path, n_ctx=129)
    stretched = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    with pytest.warns(mixkv.MixkvWarning, match="513 tokens is more than the 512"):
        mixkv.load(path, n_ctx=513, overrides=stretched)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mixkv.load(path, n_ctx=128)
        mixkv.load(path, n_ctx=512, overrides=stretched)


@pytest.mark.parametrize("n_threads", [None, 0, -1])
def test_zero_and_minus_one_are_the_usable_cores(tmp_path: Path, n_threads: int | None) -> None:
    assert mixkv.load(model(tmp_path), n_threads=n_threads).n_threads == available_cores()


def seen_by(*words: str) -> str:
    """What /proc says about a process while it generates with these flags, and how nice it is."""
    code = (
        "import os, sys\nfrom mixkv.engine.llm import LLM\nstream = LLM.stream\n"
        "def watched(self, *a, **k):\n"
        "    print(open('/proc/self/status').read(), 'nice', os.getpriority(os.PRIO_PROCESS, 0), "
        "'threads', self.n_threads)\n    return stream(self, *a, **k)\n"
        "LLM.stream = watched\nfrom mixkv.cli.main import main_generate\nsys.exit(main_generate(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "-p", "Hello", "-n", "1", *words], capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")
def test_cores_priority_and_locked_memory_are_what_the_flags_say() -> None:
    core = min(os.sched_getaffinity(0))
    seen = seen_by("-C", f"{1 << core:x}", "--prio", "-1")
    assert f"Cpus_allowed_list:\t{core}\n" in seen
    assert "nice 5 " in seen or "--prio -1 has no effect" in seen
    assert "threads 1\n" in seen
    assert f"Cpus_allowed_list:\t{core}\n" in seen_by("-Cr", f"{core}-{core}")
    assert "VmLck:\t       0 kB" in seen
    locked = seen_by("--mlock")
    assert "VmLck:\t       0 kB" not in locked or "--mlock has no effect: " in locked


def test_a_priority_that_may_not_be_had_is_a_note_not_the_end() -> None:
    result = generate("-p", "Hello", "--prio", "3")
    assert result.status == 0
    assert result.err == b"" or "--prio 3 has no effect" in result.complaint
