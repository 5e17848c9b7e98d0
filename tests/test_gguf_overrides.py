"""Metadata in place of the file's own: types are checked, texts are texts, the rest of the file stays as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf_tools import tiny_llama, write_gguf

import mixkv
from mixkv.kernels.errors import ConfigError
from mixkv.models.gguf import open_gguf
from mixkv.models.registry import read_config


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    metadata, tensors = tiny_llama()
    return write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", metadata, tensors)


def test_the_model_is_read_as_if_the_file_said_so(path: Path) -> None:
    changes = {"{arch}.rope.freq_base": 5e5, "llama.context_length": 77, "general.name": "Ünïcode", "new.flag": True}
    with open_gguf(path, changes) as gguf:
        config = read_config(gguf)
        assert (config.attentions[0].rope.freq_base, config.n_ctx_train, config.name) == (5e5, 77, "Ünïcode")
        assert gguf.bool("new.flag")
        assert (gguf.metadata["general.name"], gguf.get("general.name")) == ("Ünïcode", "Ünïcode")
        assert set(gguf.metadata) == set(open_gguf(path).metadata) | {"new.flag"}
        assert gguf.uint("llama.block_count") == 2
    with open_gguf(path) as gguf:
        assert (read_config(gguf).n_ctx_train, "new.flag" in gguf.metadata) == (128, False)


def test_the_architecture_itself_can_be_another(path: Path) -> None:
    with open_gguf(path, {"{arch}.block_count": 9, "general.architecture": "qwen2"}) as gguf:
        assert (gguf.uint("qwen2.block_count"), gguf.uint("llama.block_count")) == (9, 2)


def test_whole_numbers_do_where_the_file_has_others(path: Path) -> None:
    with open_gguf(path, {"llama.rope.freq_base": 500_000}) as gguf:
        assert gguf.float("llama.rope.freq_base") == 500_000.0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.block_count", "two"), ("llama.block_count", 2.0), ("llama.block_count", True), ("general.name", 3),
        ("llama.rope.freq_base", "x"), ("llama.rope.freq_base", 10**400), ("tokenizer.ggml.tokens", "x"),
        ("new", None), ("new", [1]),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_by_name(path: Path, key: str, value: object) -> None:
    """A silent override of the wrong type would leave the file's value in force, and nobody would know."""
    with pytest.raises(ConfigError, match=f"override of '{key}'"):
        mixkv.load(path, overrides={key: value})


@pytest.mark.parametrize(
    ("key", "value"), [("llama.rope.scaling.type", 3), ("llama.expert_count", "4"), ("llama.block_count", -1)]
)
def test_a_value_that_cannot_be_used_is_the_overrides_mistake_not_the_files(
    path: Path, key: str, value: object
) -> None:
    with pytest.raises(ConfigError, match=f"override of '{key}'"):
        mixkv.load(path, overrides={key: value})


def test_bos_can_be_left_out(path: Path) -> None:
    llm = mixkv.load(path, overrides={"tokenizer.ggml.add_bos_token": False})
    assert llm.tokenize("the")[0] != 1 == mixkv.load(path).tokenize("the")[0]


def test_yarn_without_extrapolation_is_interpolation_alone(path: Path) -> None:
    """As in llama.cpp, where an extrapolation mix of 0 takes YaRN's temperature away as well."""
    factor, kind = "llama.rope.scaling.factor", "llama.rope.scaling.type"
    yarn = mixkv.load(path, overrides={kind: "yarn", factor: 4.0, "llama.rope.scaling.yarn_ext_factor": 0.0})
    linear = mixkv.load(path, overrides={kind: "linear", factor: 4.0})
    ids = list(range(3, 60))
    np.testing.assert_array_equal(yarn.logits(ids), linear.logits(ids))
