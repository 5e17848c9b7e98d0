"""docs/flags.md says what the code does with each flag, and the flags without effect really have none."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from cli_process import generate

from mixkv.cli.accepted import AcceptedFlags, RefusedFlags
from mixkv.cli.flag_table import flag_table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "flags.md"
WANTED = re.findall(
    r"\S+",
    """
-st --single-turn --no-context-shift --context-shift --log-disable --no-perf --perf --samplers --sampling-seq
--sampler-seq --rope-scaling --rope-scale --rope-freq-base --rope-freq-scale --yarn-orig-ctx --yarn-ext-factor
--yarn-attn-factor --yarn-beta-slow --yarn-beta-fast --override-kv --chat-template --jinja --grammar --grammar-file
--json-schema -kvu --no-kv-offload -nkvo -dt --mlock --numa --prio --poll -C --cpu-mask --cpu-range --cpu-strict
--cpu-mask-batch --cpu-range-batch --cpu-strict-batch --prio-batch --poll-batch -sm -ts -mg -dev -fit -sp --special
-hf -hfr --hf-repo -hff --hf-file -hft --hf-token --offline
""",
)


@pytest.mark.skipif(not PAGE.exists(), reason="the documents are not here")
def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == flag_table(), "python -m mixkv.cli.flag_table > docs/flags.md"


def test_flags_of_scripts_for_llama_cli_are_all_in_it() -> None:
    page = flag_table().replace(" / ", "` `")
    assert [name for name in WANTED if f"`{name}`" not in page] == []


def test_every_flag_without_effect_leaves_the_text_and_says_so_in_one_line() -> None:
    words: list[str] = []
    for field in dataclasses.fields(AcceptedFlags):
        name = field.metadata["names"][0].partition("/")[0]
        kind = str(field.type).partition(" ")[0]
        value = {"int": "3", "float": "0.5", "str": "1"}.get(kind)
        words += [name] if value is None else [name, value]
    plain, result = generate("-p", "Hello"), generate("-p", "Hello", *words)
    assert (result.status, result.out) == (0, plain.out)
    lines = result.err.decode().splitlines()
    assert all(line.startswith("mixkv: -") and " has no effect: " in line for line in lines)
    assert len(lines) > len(dataclasses.fields(AcceptedFlags)) / 2


@pytest.mark.parametrize("field", dataclasses.fields(RefusedFlags), ids=lambda field: field.name)
def test_what_would_change_the_text_is_refused(field: dataclasses.Field[str]) -> None:
    """Ignored, it would give text that looks as if the flag had worked."""
    for name in field.metadata["names"]:
        result = generate("-p", "Hello", name, "x")
        assert (result.status, result.out) == (2, b"")
        assert "is not supported yet" in result.complaint
    assert generate("-p", "Hello", name, "").status == 0, "empty is none"
