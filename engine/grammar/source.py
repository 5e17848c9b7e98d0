"""From the settings of a generation to llguidance's grammar."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

from mixkv.engine.grammar.gbnf import gbnf_to_lark, is_gbnf
from mixkv.engine.sampling.params import CONSTRAINTS, SamplingParams
from mixkv.kernels.errors import ConfigError

SPACE = r"[ ]|\n[ \t]{0,20}"
"""Between two parts of JSON, at most, once: a model that is free to write blanks for ever sometimes does."""


def llguidance() -> ModuleType:
    """The package that parses grammars; ConfigError where it is not installed."""
    try:
        import llguidance
    except ImportError:
        raise ConfigError(
            f"{', '.join(CONSTRAINTS[:-1])} and {CONSTRAINTS[-1]} need llguidance: pip install 'mixkv[grammar]'"
        ) from None
    return llguidance


def grammar_of(params: SamplingParams) -> tuple[str, str]:
    """(the setting, its grammar as llguidance takes it) of params that have a constraint.

    ConfigError for GBNF that cannot be read; everything else shows when a matcher is made (vocabulary.py).
    """
    assert params.constraint is not None
    matcher: Any = llguidance().LLMatcher
    name, value = params.constraint, getattr(params, params.constraint)
    if name == "json_schema":
        _refuse_old_bounds(value)
        own = {} if "whitespace_flexible" in str(value.get("x-guidance")) else {"whitespace_pattern": SPACE}
        return name, matcher.grammar_from_json_schema(json.dumps(value), defaults=own)
    if name == "regex":
        return name, matcher.grammar_from_regex(value)
    return name, matcher.grammar_from_lark(gbnf_to_lark(value) if is_gbnf(value) else value)


def _refuse_old_bounds(schema: Any, path: str = "#") -> None:
    """Draft 4 wrote exclusive bounds as true beside the bound; the parser reads past them."""
    if isinstance(schema, list):
        for i, part in enumerate(schema):
            _refuse_old_bounds(part, f"{path}/{i}")
    elif isinstance(schema, dict):
        for key, part in schema.items():
            if key in ("exclusiveMinimum", "exclusiveMaximum") and isinstance(part, bool):
                raise ConfigError(
                    f"json_schema: {path}/{key} is {json.dumps(part)}: give it the bound itself, in place of "
                    f"{key.replace('exclusiveM', 'm')}"
                )
            if key not in ("const", "enum", "default", "examples"):
                _refuse_old_bounds(part, f"{path}/{key}")
