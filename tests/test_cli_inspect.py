"""`mixkv inspect`: the model file, the memory plan, the kernels, the families; for people and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_process import DEMO, run
from gguf_tools import tiny_llama, write_gguf

from mixkv.engine.cache_config import KVCacheConfig
from mixkv.engine.kv_plan import plan_cache, plan_layers
from mixkv.engine.memory import plan_memory
from mixkv.kernels import default_backend
from mixkv.models.gguf import open_gguf
from mixkv.models.key_sample import HeadStatistics
from mixkv.models.registry import read_config, supported_families


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """What is said of the demo model, which is what is meant without a model."""
    result = run("inspect", "--json")
    assert (result.status, result.err) == (0, b"")
    found = json.loads(result.out)
    assert isinstance(found, dict)
    return found


def test_metadata_hyper_parameters_and_types(report: dict[str, Any]) -> None:
    assert report["path"] == DEMO
    assert report["problem"] is None
    assert report["metadata"]["general.architecture"] == "llama"
    tokens = report["metadata"]["tokenizer.ggml.tokens"]
    assert (tokens["length"], len(tokens["first"])) == (report["config"]["n_vocab"], 6)
    with open_gguf(DEMO) as gguf:
        assert sum(n["tensors"] for n in report["types"].values()) == len(gguf.tensors)
        assert sum(n["bytes"] for n in report["types"].values()) == sum(i.n_bytes for i in gguf.tensors.values())


def test_the_memory_plan_is_the_one_that_loading_checks(report: dict[str, Any]) -> None:
    with open_gguf(DEMO) as gguf:
        config = read_config(gguf)
        assert [row["n_ctx"] for row in report["memory"]] == [512, 1024, config.n_ctx_train]
        for row in report["memory"]:
            for name, cache in (("f16", KVCacheConfig()), ("mixed", KVCacheConfig(mixed_kv_cache=True))):
                plan = plan_cache(HeadStatistics(gguf, default_backend()), cache)
                memory = plan_memory(
                    gguf, config, plan, default_backend(), n_ctx=row["n_ctx"], n_batch=512, dense=False
                )
                assert (row[f"cache_{name}"], row[f"total_{name}"]) == (memory.cache, memory.total)


def test_for_people_there_are_tables_and_every_tensor_on_request() -> None:
    result = run("inspect", DEMO, "--tensors")
    text = result.out.decode()
    assert (result.status, result.err) == (0, b"")
    assert all(title in text for title in ("Metadata", "Model", "Weights", "Tensors", "Memory in MiB"))
    with open_gguf(DEMO) as gguf:
        assert all(f" {name} " in text for name in gguf.tensors)


def test_how_a_model_writes_its_replies_is_shown(tmp_path: Path) -> None:
    """A template whose format of calls is not recognised would only show when a call is taken for text."""
    metadata, tensors = tiny_llama()
    path = tmp_path / "chat.gguf"
    for template, said in (
        ("<tool_call>{{ x }}</tool_call> <think>", {"tool_calls": "hermes", "thinking": "<think> ... </think>"}),
        ("{{ x }}", {"tool_calls": "plain", "thinking": None}),
        (7, {"tool_calls": "plain", "thinking": None}),
    ):
        write_gguf(path, metadata | {"tokenizer.chat_template": template}, tensors)
        assert json.loads(run("inspect", str(path), "--json").out)["chat"] == said
        lines = [line.split() for line in run("inspect", str(path)).out.decode().splitlines()]
        assert ["tool_calls", said["tool_calls"]] in lines
        assert ["thinking", *(said["thinking"] or "none").split()] in lines


def test_a_file_that_mixkv_cannot_run_is_shown_with_the_reason_and_cannot_steer_the_terminal(tmp_path: Path) -> None:
    metadata, tensors = tiny_llama()
    metadata |= {"general.architecture": "mamba", "general.name": "\x1b[31mred [bold]name", "x.nan": np.float32("nan")}
    path = tmp_path / "strange.gguf"
    write_gguf(path, metadata, tensors)
    shown = run("inspect", str(path))
    assert shown.status == 0
    assert b"\x1b" not in shown.out
    assert "red [bold]name" in shown.out.decode()
    assert "architecture 'mamba' is not supported" in shown.out.decode()
    found = json.loads(run("inspect", str(path), "--json").out)
    assert "mamba" in found["problem"]
    assert (found["config"], found["memory"], found["metadata"]["x.nan"]) == (None, [], "nan")


def test_the_plan_of_the_mixed_cache_for_people_and_programs() -> None:
    shown = run("inspect", "--kv-plan").out.decode()
    assert "Plan of the mixed cache" in shown and "scores lose 0.0" in shown
    found = json.loads(run("inspect", DEMO, "--kv-plan", "--json").out)["kv_plan"]
    with open_gguf(DEMO) as gguf:
        plan = plan_layers(HeadStatistics(gguf, default_backend()), KVCacheConfig(mixed_kv_cache=True))
    assert [(p["layer"], p["type_k"], p["rotate_k"], p["losses"], p["why"]) for p in found] == [
        (p.layer, p.format.type_k, p.format.rotate_k, p.losses, p.why) for p in plan
    ]


def test_a_plan_that_changes_something_is_shown_and_told_of(tmp_path: Path) -> None:
    metadata, tensors = tiny_llama()
    bias = np.random.default_rng(0).standard_normal(16).astype(np.float32)
    bias[3] = 200
    tensors["blk.1.attn_k.bias"] = bias
    path = str(write_gguf(tmp_path / "loud.gguf", metadata, tensors))
    plan = json.loads(run("inspect", path, "--kv-plan", "--json").out)["kv_plan"]
    assert [p["changed"] for p in plan] == [False, True]
    assert "changed: scores lose" in run("inspect", path, "--kv-plan").out.decode()
    words = ("generate", "-m", path, "-p", "the", "-n", "1", "-v", "--hot-window", "16", "--mixed-kv-cache")
    assert b"weights of 1 of 2 layers ask for more exact keys" in run(*words).err
    assert b"more exact keys" not in run(*words, "--kv-plan", "off").err


def test_a_file_that_is_no_model_is_one_line() -> None:
    result = run("inspect", __file__)
    assert (result.status, result.out) == (1, b"")
    assert "is not a GGUF file" in result.complaint


def test_the_supported_families() -> None:
    assert run("inspect", "--families").out.decode().strip() == supported_families()
    assert "llama" in json.loads(run("inspect", "--families", "--json").out)


def test_which_kernels_run_and_why() -> None:
    found = json.loads(run("inspect", "--cpu", "--json").out)
    assert found["usable_cores"] >= 1
    native = default_backend().name == "native"
    assert found["kernels"] == ("native" if native else "reference (NumPy)")
    assert found["why"]
    assert ("isa" in found) == native
