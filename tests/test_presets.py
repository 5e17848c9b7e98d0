"""Presets: those that ship are valid, and a user's file is checked by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mixkv.configs import TABLES, load_preset, preset_names
from mixkv.engine.cache_config import KVCacheConfig
from mixkv.engine.sampling import SamplingParams
from mixkv.kernels.errors import ConfigError


def test_the_four_presets_ship() -> None:
    assert preset_names() == ("default", "llama-cpp", "long-context", "low-memory")


@pytest.mark.parametrize("name", preset_names())
def test_a_shipped_preset_is_valid_and_complete_in_its_cache(name: str) -> None:
    preset = load_preset(name)
    assert preset.name == name
    assert {"mixed_kv_cache", "type_k", "type_v", "rotate"} <= set(preset.cache)
    assert KVCacheConfig.from_keywords(**preset.cache).mixed_kv_cache is (name != "llama-cpp")
    assert SamplingParams.from_options(preset.sampling).max_tokens is None


def test_default_is_the_mixed_cache_at_its_defaults() -> None:
    preset = load_preset("default")
    assert KVCacheConfig(**preset.cache) == KVCacheConfig(mixed_kv_cache=True, type_k="q4_0", type_v="q4_0")
    assert SamplingParams.from_options(preset.sampling) == SamplingParams()


def test_llama_cpp_is_a_uniform_f16_cache_with_llama_clis_sampling() -> None:
    preset = load_preset("llama-cpp")
    assert KVCacheConfig(**preset.cache) == KVCacheConfig(type_k="f16", type_v="f16", q4_scale="plain", kv_plan="off")
    assert SamplingParams.from_options(preset.sampling) == SamplingParams()


def test_the_known_sampling_keys_are_the_fields_of_the_dataclass() -> None:
    assert sorted(TABLES["sampling"]) == sorted(SamplingParams.names())


def test_the_known_cache_keys_are_the_fields_of_the_dataclass() -> None:
    """All but per_layer, which belongs to one model and not into a preset."""
    assert {*TABLES["cache"], "per_layer"} == {field.name for field in dataclasses.fields(KVCacheConfig)}


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_of_the_users_own(tmp_path: Path) -> None:
    path = write(tmp_path, '[cache]\nhot_window = 99\n[sampling]\nlogit_bias = { "42" = -1.5, "7" = -inf }\n')
    preset = load_preset(path)
    assert (preset.name, preset.cache) == ("mine", {"hot_window": 99})
    assert SamplingParams.from_options(preset.sampling).logit_bias == {42: -1.5, 7: float("-inf")}
    assert load_preset(str(path)) == preset


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[cash]\n", r"unknown table 'cash': known are cache, sampling"),
        ("[cache]\nwindow = 3\n", r"\[cache\]: unknown key 'window': known are mixed_kv_cache, hot_window"),
        ("[sampling]\ntemp = 3\n", r"\[sampling\]: unknown key 'temp': known are max_tokens, temperature"),
        ("cache = 3\n", "expected a table"),
        ("[sampling]\nlogit_bias = { a = 1 }\n", "must map token ids"),
        ("[sampling]\nlogit_bias = 3\n", "must map token ids"),
        ("[cache\n", "not valid TOML"),
        ("x = " + "[" * 5000, "not valid TOML"),
    ],
)
def test_a_bad_file_is_a_config_error_that_names_file_and_fault(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_preset(path)
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read_are_config_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown preset 'fast': choose one of default, llama-cpp, long-context"):
        load_preset("fast")
    with pytest.raises(ConfigError, match="no such file"):
        load_preset(tmp_path / "none.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ConfigError, match="no such file"):
        load_preset(tmp_path / "folder.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_preset(tmp_path / "bytes.toml")
    (tmp_path / "huge.toml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        load_preset(tmp_path / "huge.toml")
    with pytest.raises(ConfigError):
        load_preset("a\0b.toml")
