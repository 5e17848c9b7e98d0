"""What metadata means: the defaults and readings of docs/metadata.md, which follow llama.cpp for the families here.

Everything starts from a complete small llama, whose file is written with other keys and loaded.
"""

from __future__ import annotations

import ast
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_tools import refusal, tiny_llama, write_gguf
from tiny_families import families

import mixkv
from mixkv.engine.tokenizer import load_tokenizer
from mixkv.kernels.errors import GGUFError
from mixkv.models.config import ModelConfig
from mixkv.models.gguf import GGUFFile, open_gguf
from mixkv.models.registry import read_config

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "metadata.md").read_text(encoding="utf-8")
ROWS = [
    (re.findall(r"`([^`]+)`", row[1]), row[2])
    for row in re.finditer(r"^\| (`[^|]+) \| ([^|]+) \| [^|]*\|$", PAGE, re.MULTILINE)
]
DEFAULTS = {
    keys[0]: ast.literal_eval(default[1])
    for keys, text in ROWS
    if (default := re.fullmatch(r"`(\d[\d.]*|True|False|\"\w+\")`", text)) is not None
}


def written(folder: Path, keys: dict[str, Any], without: tuple[str, ...] = ()) -> Path:
    """A tiny llama with `keys` on top (`{arch}.` is llama's) and the keys of `without` left out."""
    meta, tensors = tiny_llama()
    meta = {key: value for key, value in meta.items() if key not in without}
    return write_gguf(folder / "m.gguf", meta | {k.replace("{arch}", "llama"): v for k, v in keys.items()}, tensors)


def config(folder: Path, **rope: object) -> ModelConfig:
    with open_gguf(written(folder, {f"llama.rope.{key.replace('__', '.')}": v for key, v in rope.items()})) as gguf:
        return read_config(gguf)


class Asked(dict[str, Any]):
    """The entries of a file, and which of them were asked for."""

    def __init__(self, entries: dict[str, Any]) -> None:
        super().__init__(entries)
        self.keys_asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.keys_asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.keys_asked.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.keys_asked.add(key)
        return super().get(key, default)


def meaning(gguf: GGUFFile) -> tuple[ModelConfig, dict[str, object]]:
    """All that is read of a file's metadata, as plain values."""
    tokenizer = load_tokenizer(gguf)
    names = ("bos_id", "eos_id", "eog_ids", "add_bos", "add_eos", "add_space_prefix")
    return read_config(gguf), {name: getattr(tokenizer, name) for name in names}


def test_the_page_names_the_keys_that_are_read_and_no_other(tmp_path: Path) -> None:
    """A key that is read and not written down, or the other way round: the table is what users and converters go by."""
    with open_gguf(written(tmp_path, {})) as gguf:
        asked = Asked(gguf.metadata._entries)
        gguf.metadata._entries = asked
        meaning(gguf)
    assert len(ROWS) > 30
    assert {key.replace("{arch}", "llama") for keys, _ in ROWS for key in keys} == asked.keys_asked


@pytest.mark.parametrize("name", families())
def test_the_page_names_the_keys_of_every_family(tmp_path: Path, name: str) -> None:
    """The same for what only some families read; what no family reads any more is not asked for here."""
    tiny = families()[name]
    with open_gguf(tiny.write(tmp_path / "m.gguf")) as gguf:
        asked = Asked(gguf.metadata._entries)
        gguf.metadata._entries = asked
        read_config(gguf)
    keys = {key.replace(f"{tiny.arch}.", "{arch}.") for key in asked.keys_asked}
    assert {key for key in keys if f"`{key}`" not in PAGE} == set()


@pytest.mark.parametrize("key", DEFAULTS)
def test_a_default_written_out_changes_nothing(tmp_path: Path, key: str) -> None:
    """The page and the code may not drift apart."""
    value = DEFAULTS[key]
    key = key.replace("{arch}", "llama")
    with open_gguf(written(tmp_path, {}, without=(key,))) as gguf:
        silent = meaning(gguf)
    with open_gguf(written(tmp_path, {key: value})) as gguf:
        assert meaning(gguf) == silent
    assert len(DEFAULTS) >= 10


def test_a_factor_without_a_type_is_a_linear_one(tmp_path: Path) -> None:
    """`rope.scaling.factor` alone was ignored: a long-context file answered as if it were not scaled."""
    ids = [1, *range(3, 100)]

    def logits(**keys: object) -> np.ndarray:
        path = written(tmp_path, {f"llama.rope.{name.replace('__', '.')}": value for name, value in keys.items()})
        return mixkv.load(path, n_ctx=128, n_threads=1).logits(ids)

    linear, unscaled = logits(scaling__type="linear", scaling__factor=4.0), logits()
    assert not np.allclose(linear, unscaled, atol=0.1)
    np.testing.assert_array_equal(logits(scaling__factor=4.0), linear)
    np.testing.assert_array_equal(logits(scale_linear=4.0), linear)
    np.testing.assert_array_equal(logits(scaling__factor=4.0, scale_linear=2.0), linear)
    np.testing.assert_array_equal(logits(scaling__type="none", scaling__factor=4.0), unscaled)


@pytest.mark.parametrize("kind", ["linear", "yarn", "none"])
def test_a_factor_of_0_is_none(tmp_path: Path, kind: str) -> None:
    """Converters write 0 for "no scaling"; the file was refused."""
    rope = config(tmp_path, scaling__type=kind, scaling__factor=0.0).attentions[0].rope
    assert rope.factor == 1.0 and rope.magnitude == 1.0
    np.testing.assert_array_equal(rope.inv_freq(), config(tmp_path).attentions[0].rope.inv_freq())


def test_what_yarn_does_to_magnitudes(tmp_path: Path) -> None:
    """The temperature is for longer contexts and kept frequencies: a factor below 1 made it less than 1, and an
    ext_factor of 0 (all frequencies interpolated) or -1 (unset) was refused."""
    yarn = {"scaling__type": "yarn", "scaling__original_context_length": 32}
    full = config(tmp_path, **yarn, scaling__factor=4.0).attentions[0].rope
    assert full.magnitude == pytest.approx(1 + 0.1 * np.log(4))
    assert config(tmp_path, **yarn, scaling__factor=0.5, scaling__attn_factor=1.5).attentions[0].rope.magnitude == 1.5
    unset = config(tmp_path, **yarn, scaling__factor=4.0, scaling__yarn_ext_factor=-1.0).attentions[0].rope
    assert unset == full
    flat = config(tmp_path, **yarn, scaling__factor=4.0, scaling__yarn_ext_factor=0.0).attentions[0].rope
    linear = config(tmp_path, scaling__factor=4.0).attentions[0].rope
    assert flat.magnitude == 1.0
    np.testing.assert_array_equal(flat.inv_freq(), linear.inv_freq())


PER_LAYER = {"feed_forward_length": 64, "attention.head_count": 4, "attention.head_count_kv": 2}


@pytest.mark.parametrize("key", PER_LAYER)
@pytest.mark.parametrize("dtype", [np.uint32, np.int32])
def test_one_number_for_each_layer_counts_if_all_are_equal(tmp_path: Path, key: str, dtype: type) -> None:
    """`feed_forward_length` as an array was refused: converters of pruned models write arrays always."""
    with open_gguf(written(tmp_path, {})) as gguf:
        plain = read_config(gguf)
    with open_gguf(written(tmp_path, {f"llama.{key}": np.full(2, PER_LAYER[key], dtype)})) as gguf:
        assert read_config(gguf) == plain


BAD_ARRAYS: dict[str, tuple[object, str]] = {
    "unequal": (np.array([64, 32], np.uint32), r"differs from layer to layer \(\[32, 64\]\)"),
    "too-short": (np.array([64], np.uint32), "has 1 numbers for 2 layers"),
    "too-long": (np.full(1000, 64, np.uint32), "has 1000 numbers for 2 layers"),
    "empty": (np.array([], np.uint32), "has 0 numbers for 2 layers"),
    "zero": (np.zeros(2, np.uint32), "is 0 in one layer, but must lie in"),
    "negative": (np.full(2, -64, np.int32), "is -64 in one layer, but must lie in"),
    "huge": (np.full(2, 2**32 - 1, np.uint32), "is 4294967295 in one layer, but must lie in"),
    "floats": (np.full(2, 64.0, np.float32), "should be an array of uint32 or int32"),
    "nan": (np.full(2, np.nan, np.float32), "should be an array of uint32 or int32"),
    "bytes": (np.full(2, 64, np.uint8), "should be an array of uint32 or int32"),
    "texts": (["64", "64"], "should be an array of uint32 or int32"),
    "text": ("64", "should be an integer"),
    "float": (64.0, "should be an integer"),
}


@pytest.mark.parametrize("key", PER_LAYER)
@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_other_arrays_are_one_clear_error(tmp_path: Path, key: str, case: str) -> None:
    value, words = BAD_ARRAYS[case]
    path = written(tmp_path, {f"llama.{key}": value})
    message = refusal(GGUFError, lambda: mixkv.load(path))
    assert re.search(words, message) and f"llama.{key}" in message, message


BAD_NUMBERS: dict[str, tuple[object, str]] = {
    "rope.scaling.factor": (-2.0, "is -2.0, but must not be negative"),
    "rope.scale_linear": (-2.0, "is -2.0, but must not be negative"),
    "rope.scaling.attn_factor": (0.0, "is 0.0, but must be a positive number"),
    "rope.scaling.yarn_ext_factor": (np.float32(np.nan), "is nan, not a finite number"),
    "rope.scaling.yarn_beta_slow": (np.array([1.0], np.float32), "should be a floating-point number"),
    "rope.scaling.type": (1, "should be a string"),
    "attention.causal": (False, "is false: the model embeds text"),
    "expert_count": (np.array([0, 0], np.uint32), "should be an integer"),
}


@pytest.mark.parametrize("key", BAD_NUMBERS)
def test_other_values_are_one_clear_error(tmp_path: Path, key: str) -> None:
    """Also an embedding model, whose attention looks both ways: it generated nonsense."""
    value, words = BAD_NUMBERS[key]
    path = written(tmp_path, {f"llama.{key}": value})
    message = refusal(GGUFError, lambda: mixkv.load(path))
    assert words in message and f"llama.{key}" in message


@pytest.mark.parametrize("kind", ["", "YARN", "dynamic"])
def test_other_scalings_are_one_clear_error(tmp_path: Path, kind: str) -> None:
    """Never another scaling in silence: frequencies that the model was not trained with."""
    path = written(tmp_path, {"llama.rope.scaling.type": kind})
    assert "is not supported: none, linear, yarn and longrope are" in refusal(GGUFError, lambda: mixkv.load(path))


@pytest.mark.parametrize("biases", [("gate", "up", "down"), ("gate",), ("up",), ("down",)])
def test_biases_of_the_mlp_are_used(tmp_path: Path, biases: tuple[str, ...]) -> None:
    """Granite Code is stored as `llama` with biases on gate, up and down, and was refused.

    With attention switched off the model is a formula, computed here in float64.
    """
    meta, tensors = tiny_llama(n_layers=1)
    rng = np.random.default_rng(7)
    tensors["blk.0.attn_output.weight"] = np.zeros((32, 32), np.float32)
    for name in biases:
        tensors[f"blk.0.ffn_{name}.bias"] = rng.standard_normal(32 if name == "down" else 64, np.float32)
    w = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items() if isinstance(tensor, np.ndarray)}

    def affine(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"blk.0.ffn_{name}.weight"].T + w.get(f"blk.0.ffn_{name}.bias", 0.0)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-5) * w[name]

    ids = [1, *range(3, 60)]
    x = w["token_embd.weight"][ids]
    h = norm(x, "blk.0.ffn_norm.weight")
    gate = affine(h, "gate")
    x = x + affine(gate / (1 + np.exp(-gate)) * affine(h, "up"), "down")
    expected = norm(x, "output_norm.weight") @ w["output.weight"].T
    ours = mixkv.load(write_gguf(tmp_path / "bias.gguf", meta, tensors), n_threads=1).logits(ids)
    assert np.square(ours - expected).mean() <= 1e-6 * np.square(expected).mean()


def test_a_bias_of_the_wrong_length_is_one_clear_error(tmp_path: Path) -> None:
    meta, tensors = tiny_llama()
    tensors["blk.1.ffn_down.bias"] = np.zeros(64, np.float32)
    path = write_gguf(tmp_path / "bias.gguf", meta, tensors)
    assert "'blk.1.ffn_down.bias' has shape (64,)" in refusal(GGUFError, lambda: mixkv.load(path))


def test_a_prompt_that_is_to_be_continued_ends_without_eos(tmp_path: Path) -> None:
    """`add_eos_token = true` put EOS behind every prompt, and the model went on after the end of the text."""
    llm = mixkv.load(written(tmp_path, {"tokenizer.ggml.add_eos_token": True}), n_ctx=128, n_threads=1)
    assert llm.tokenizer.encode("the") == [1, 260, 2]
    assert llm.tokenizer.encode("the", add_eos=False) == llm.tokenize("the") == [1, 260]
    assert llm.stream("the", max_tokens=1).prompt == [1, 260]
    llm.generate("the", max_tokens=1, ignore_eos=True, temperature=0.0)
    assert llm.tokens[:2] == [1, 260] and 2 not in llm.tokens[:3]
    messages: list[Any] = [{"role": "user", "content": "the"}]
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has no chat template
            assert 2 not in llm.apply_chat_template(messages, tokenize=True)
            reply = llm.chat(messages, max_tokens=1, temperature=0.0)
        messages += [reply.message, {"role": "user", "content": "and the"}]
