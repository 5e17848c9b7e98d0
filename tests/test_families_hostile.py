"""Damaged and hostile files of each family: one line that names the key or tensor, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf_tools import write_gguf
from tiny_families import families
from tiny_parts import DIM, VOCAB

from mixkv.kernels import default_backend
from mixkv.kernels.errors import GGUFError
from mixkv.models.gguf import open_gguf
from mixkv.models.registry import load_model

FILES = families()
NOTHING = object()
# family, key below the architecture, value (NOTHING: the key is not there), words of the error
KEYS = [
    ("mixtral", "expert_used_count", 0, "expert_used_count is 0"),
    ("mixtral", "expert_used_count", 7, "there are 6 experts"),
    ("mixtral", "expert_used_count", NOTHING, "expert_used_count"),
    ("mixtral", "expert_count", 100_000, "expert_count is 100000"),
    ("qwen3moe", "expert_count", 5, "'blk.0.ffn_gate_exps.weight' has shape"),
    ("qwen2moe", "expert_shared_feed_forward_length", 23, "ffn_gate_shexp.weight"),
    ("dots1", "expert_gating_func", 9, "expert_gating_func is 9"),
    ("dots1", "expert_gating_func", NOTHING, "expert_gating_func"),
    ("dots1", "leading_dense_block_count", 0, "ffn_gate_exps.weight' is missing"),
    ("dots1", "leading_dense_block_count", 2, "blk.1.ffn_gate.weight' is missing"),
    ("bailingmoe2", "expert_group_count", 5, "expert_group_count"),
    ("bailingmoe2", "expert_group_used_count", 9, "expert_group_count"),
    ("bailingmoe2", "expert_group_used_count", 0, ""),
    ("ernie4_5-moe", "interleave_moe_layer_step", 0, "interleave_moe_layer_step is 0"),
    ("glm4moe", "nextn_predict_layers", 3, "nextn_predict_layers is 3 of 3"),
    ("gemma2", "attention.sliding_window", 0, "sliding_window is 0"),
    ("gemma3", "attention.sliding_window", np.array([4, 4], np.int32), "sliding_window"),
    ("gemma3", "attention.sliding_window_pattern", 0, "sliding_window_pattern is 0"),
    ("gemma3", "attention.sliding_window_pattern", np.array([True, False]), "has 2 flags for 7 layers"),
    ("gemma3", "rope.freq_base_swa", 0.0, "freq_base_swa is 0"),
    ("cohere2", "attention.sliding_window", NOTHING, "sliding_window"),
    ("gemma4", "attention.sliding_window_pattern", NOTHING, "sliding_window_pattern"),
    ("gemma4", "attention.sliding_window_pattern", np.array([True]), "has 1 flags for 6 layers"),
    ("gemma4", "attention.shared_kv_layers", 5, "shared_kv_layers is 5 of 6"),
    ("gemma4", "attention.shared_kv_layers", 3, "shared_kv_layers"),
    ("gemma4", "feed_forward_length", np.array([48, 48], np.int32), "has 2 numbers for 6 layers"),
    ("gemma4", "feed_forward_length", np.array([48, 48, 48, -1, 64, 64], np.int32), "is -1 in one layer"),
    ("gemma4", "attention.key_length_swa", 0, "key_length_swa is 0"),
    ("gemma4, experts", "attention.head_count_kv", np.array([2, 2, 2, 3, 2, 1], np.int32), "head_count_kv 3"),
    ("gemma3n", "altup.num_inputs", 5, "altup.num_inputs is not 4"),
    ("gemma3n", "embedding_length_per_layer_input", 13, "per_layer_token_embd.weight"),
    ("phi3, long", "rope.scaling.type", "sideways", "'sideways' is not supported"),
    ("granite", "logit_scale", 0.0, "logit_scale is 0"),
    ("apertus", "feed_forward_length", 47, "ffn_up.weight"),
    ("qwen35", "ssm.group_count", 3, "ssm.group_count"),
    ("qwen35", "ssm.inner_size", 65, "ssm.inner_size"),
    ("qwen35", "ssm.conv_kernel", 1, "ssm.conv_kernel is 1"),
    ("qwen35", "ssm.state_size", 1 << 30, "ssm.state_size"),
    ("qwen35", "full_attention_interval", 0, "full_attention_interval is 0"),
    ("mamba2", "ssm.time_step_rank", 5, "ssm.inner_size"),
    ("mamba2", "ssm.time_step_rank", 0, "ssm.time_step_rank is 0"),
    ("mamba2", "ssm.group_count", 4, "ssm.group_count"),
    ("mamba2", "ssm.inner_size", NOTHING, "ssm.inner_size"),
    ("lfm2", "shortconv.l_cache", 0, "shortconv.l_cache is 0"),
    ("lfm2", "attention.head_count_kv", np.array([0, 3, 0], np.int32), "head_count_kv 3"),
    ("lfm2", "attention.head_count_kv", np.array([0, -2, 0], np.int32), "is -2 in one layer"),
    ("lfm2", "attention.head_count_kv", np.array([0, 2], np.int32), "has 2 numbers for 3 layers"),
    ("nemotron_h", "feed_forward_length", np.array([0, 48, 0], np.int32), "has 3 numbers for 4 layers"),
]  # fmt: skip


def load(path: Path) -> None:
    with open_gguf(path) as gguf:
        load_model(gguf, default_backend(), n_ctx=64)


@pytest.mark.parametrize(
    ("name", "key", "value", "words"), KEYS, ids=[f"{k[0]}-{k[1]}-{i}" for i, k in enumerate(KEYS)]
)
def test_a_wrong_key_is_one_line(tmp_path: Path, name: str, key: str, value: object, words: str) -> None:
    """Out of range, of the wrong length, contradictory, or not there: before anything is built on it."""
    tiny = FILES[name]
    metadata = tiny.metadata()
    full = f"{tiny.arch}.{key}"
    if value is NOTHING:
        del metadata[full]
    else:
        metadata[full] = value
    path = write_gguf(tmp_path / "bad.gguf", metadata, tiny.tensors())
    if not words:  # what files mean by it is the default
        load(path)
        return
    with pytest.raises(GGUFError) as caught:
        load(path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_every_tensor_is_needed_and_of_its_shape(tmp_path: Path, name: str) -> None:
    """A tensor that is missing or of another shape is named, or what it leaves over is: a model without it would run
    and be another one. Those that a family may or may not have change what it is, and load."""
    tiny = FILES[name]
    tensors = tiny.tensors()
    unused = ("attn_k.weight", "attn_v.weight", "attn_k_norm.weight") if name == "gemma3n" else ()
    optional = ("bias", "rope_freqs.weight", "layer_output_scale.weight", "exps.scale", "ssm_norm.weight")
    last = f"blk.{int(tiny.keys['block_count']) - 1}."  # type: ignore[call-overload]
    if "nextn_predict_layers" in tiny.keys:
        last = last[:-2] + "1."
    for missing in tensors:
        if missing.startswith("blk.") and not missing.startswith(last):
            continue
        rest = {key: tensor for key, tensor in tensors.items() if key != missing}
        path = write_gguf(tmp_path / "bad.gguf", tiny.metadata(), rest)
        if missing.endswith(optional) or missing == "output.weight":
            continue
        try:
            load(path)
        except GGUFError as error:
            assert "\n" not in str(error)
        else:
            assert may_be_missing(name, missing), f"{missing} was not missed"
    shapes = {key: shape for key, shape in tiny.shapes.items() if key.startswith(last) and not key.endswith(unused)}
    for changed, shape in shapes.items():
        wrong = np.zeros((*shape[:-1], shape[-1] + 1), np.float32)
        path = write_gguf(tmp_path / "bad.gguf", tiny.metadata(), tensors | {changed: wrong})
        with pytest.raises(GGUFError):
            load(path)


def may_be_missing(name: str, tensor: str) -> bool:
    """Norms by which a family tells its sizes apart; values that are then the keys; shared layers' keys, unused."""
    end = tensor.split(".", 2)[-1]
    return (
        (
            name in ("stablelm", "command-r+", "stablelm, parallel")
            and end.startswith(("attn_q_norm", "attn_k_norm", "ffn_norm"))
        )
        or (name.startswith("gemma4") and end == "attn_v.weight")
        or (name == "gemma3n" and end in ("attn_k.weight", "attn_v.weight", "attn_k_norm.weight"))
        or (name == "glm4moe" and end.startswith(("attn_q_norm", "attn_k_norm")))
    )


def test_tensors_of_another_family_are_noticed(tmp_path: Path) -> None:
    """A norm that a family has no place for would be left out, and the text would be fluent and wrong."""
    tiny = FILES["llama"]
    tensors = tiny.tensors() | {"blk.0.attn_q_norm.weight": np.ones(16, np.float32)}
    with pytest.raises(GGUFError, match="is not part of a model"):
        load(write_gguf(tmp_path / "bad.gguf", tiny.metadata(), tensors))


def test_experts_larger_than_the_file(tmp_path: Path) -> None:
    """Numbers that ask for more than there is end before memory is asked for."""
    tiny = FILES["qwen3moe"]
    more = replace(tiny, keys={**tiny.keys, "expert_feed_forward_length": 1 << 19, "expert_count": 4096})
    with pytest.raises(GGUFError, match="has shape"):
        load(write_gguf(tmp_path / "bad.gguf", more.metadata(), tiny.tensors()))
    assert DIM < VOCAB
