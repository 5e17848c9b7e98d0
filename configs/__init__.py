"""Presets: named TOML files with the settings of cache and sampling.

A preset is two tables of plain values: `[cache]` (fields of `KVCacheConfig`) and `[sampling]` (fields of
`SamplingParams`). What it leaves out keeps the default of those dataclasses, and they check the values. Here only the
names are checked, against the lists below; `tests/test_presets.py` compares these with the dataclasses.
To add a preset, put a `.toml` file into this folder.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from mixkv.kernels.errors import ConfigError

TABLES: dict[str, tuple[str, ...]] = {
    "cache": (
        *("mixed_kv_cache", "hot_window", "sink_tokens", "type_k", "type_v", "rotate", "q4_scale"),
        *("rollback_reserve", "kv_plan"),
    ),
    "sampling": (
        *("max_tokens", "temperature", "top_k", "top_p", "min_p", "typical_p", "top_n_sigma", "min_keep"),
        *("repeat_penalty", "repeat_last_n", "presence_penalty", "frequency_penalty"),
        *("dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
        *("xtc_probability", "xtc_threshold", "mirostat", "mirostat_lr", "mirostat_ent"),
        *("samplers", "logit_bias", "seed", "stop", "ignore_eos", "logprobs", "skip_special_tokens", "draft"),
        *("json_schema", "regex", "grammar"),
    ),
}
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Preset:
    """Settings by name: `cache` for KVCacheConfig, `sampling` for SamplingParams; only those the file gives."""

    name: str
    cache: dict[str, Any]
    sampling: dict[str, Any]


def preset_names() -> tuple[str, ...]:
    """The names of the presets that ship with mixkv, sorted."""
    names = (entry.name for entry in files(__name__).iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


def load_preset(name_or_path: str | Path) -> Preset:
    """The preset of that name, or the one in a `.toml` file of the user's.

    Raises ConfigError for a name that does not exist, an unreadable file, and unknown tables or keys.
    """
    name = str(name_or_path)
    if name in preset_names():
        return _parse(name, files(__name__).joinpath(f"{name}.toml").read_text(encoding="utf-8"))
    if not name.endswith(".toml"):
        known = ", ".join(preset_names())
        raise ConfigError(f"unknown preset {name!r}: choose one of {known}, or give the path of a .toml file")
    path = Path(name)
    try:
        if not path.is_file():
            raise ConfigError(f"preset {name}: no such file")
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"preset {name}: larger than 1 MiB, which is no preset")
        return _parse(name, path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"preset {name}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"preset {name}: cannot be read: {error}") from error


def _parse(name: str, text: str) -> Preset:
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"preset {name}: not valid TOML: {error}") from error
    _check_names(f"preset {name}: unknown table", tables, tuple(TABLES))
    for table, values in tables.items():
        if not isinstance(values, dict):
            raise ConfigError(f"preset {name}: {table} is a value: expected a table [{table}]")
        _check_names(f"preset {name}, [{table}]: unknown key", values, TABLES[table])
    sampling = dict(tables.get("sampling", {}))
    if "logit_bias" in sampling:
        sampling["logit_bias"] = _bias_with_ids(name, sampling["logit_bias"])
    return Preset(name=Path(name).stem, cache=dict(tables.get("cache", {})), sampling=sampling)


def _check_names(what: str, given: dict[str, Any], known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"{what} {name!r}: known are {', '.join(known)}")


def _bias_with_ids(name: str, bias: object) -> dict[int, Any]:
    """TOML's keys are strings; token ids are numbers."""
    if not isinstance(bias, dict) or not all(key.isascii() and key.isdigit() and len(key) <= 10 for key in bias):
        raise ConfigError(f'preset {name}, [sampling]: logit_bias must map token ids to numbers, {{ "42" = -1.5 }}')
    return {int(key): value for key, value in bias.items()}
