"""`mixkv inspect`: what a model file holds and what it would take, this machine's kernels, the supported families."""

from __future__ import annotations

import json as json_format
import math
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from mixkv.cli.flags import flag, with_flags
from mixkv.cli.hub import HubFlags, model_path
from mixkv.cli.inspect_chat import chat_table
from mixkv.cli.inspect_layers import config_table
from mixkv.cli.terminal import DONE, Terminal, harmless
from mixkv.kernels.errors import ConfigError, MixkvError

if TYPE_CHECKING:
    from mixkv.models.config import ModelConfig
    from mixkv.models.gguf import GGUFFile

MIB = 1 << 20
SHOWN, SHOWN_TEXT = 6, 200
"""Elements of an array and characters of a string that are shown."""
WORDS = frozenset({"why", "mixer", "ffn", "norms", "keeps"})
"""Columns of words, which begin at the left."""
N_BATCH = 512
WHAT = "What to show"


@dataclass(frozen=True)
class InspectFlags:
    """What is shown, and how."""

    tensors: bool = flag("--tensors", panel=WHAT, value=False, help="Every tensor with its type and shape, too")
    kv_plan: bool = flag(
        "--kv-plan", panel=WHAT, value=False, help="How the mixed cache keeps each layer, and why, too"
    )
    families: bool = flag("--families", panel=WHAT, value=False, help="The architectures that mixkv runs; no model")
    cpu: bool = flag("--cpu", panel=WHAT, value=False, help="The kernels that run here, and why; no model")
    json: bool = flag("--json", panel=WHAT, value=False, help="One JSON object")


@with_flags
def inspect(
    show: InspectFlags,
    hub: HubFlags,
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="GGUF file; left out: the demo model")] = None,
) -> int:
    """Show what a model file holds and how much memory it takes, for each length of context."""
    of_a_model = model is not None or hub.hf_repo is not None or show.tensors or show.kv_plan
    if show.families + show.cpu + of_a_model > 1:
        raise ConfigError("give one of MODEL (with or without --tensors, --kv-plan), --families and --cpu")
    if show.families:
        return _show_families(show.json)
    if show.cpu:
        return _show_pairs(cpu_report(), show.json)
    from mixkv.engine.load import demo_model
    from mixkv.models.gguf import open_gguf

    path = model_path(model, hub, Terminal())
    with open_gguf(demo_model() if path is None else path) as gguf:
        report = describe(gguf, tensors=show.tensors, kv_plan=show.kv_plan)
    if show.json:
        return _print_json(report)
    _print_report(report)
    return DONE


def cpu_report() -> dict[str, Any]:
    """Which twin of the kernels runs and why, and what the native ones say about this CPU."""
    from mixkv.kernels import available_cores, open_backend

    forced = os.environ.get("MIXKV_KERNELS")
    backend = open_backend()
    native = backend.name == "native"
    if forced:
        why = f"MIXKV_KERNELS={forced} asks for it"
    elif native:
        why = "the extension is built and runs on this CPU"
    else:
        why = "the extension is not built, or does not run on this CPU"
    report = {"kernels": "native" if native else "reference (NumPy)", "why": why, "usable_cores": available_cores()}
    return {**report, **backend.cpu_report()}


def describe(gguf: GGUFFile, *, tensors: bool = False, kv_plan: bool = False) -> dict[str, Any]:
    """Everything about an open model file, fit for JSON. `problem` says why mixkv cannot run it, or is None."""
    from mixkv.models.registry import read_config

    report: dict[str, Any] = {"path": str(gguf.path), "problem": None, "config": None, "memory": []}
    report["metadata"] = {key: _shortened(gguf, key) for key in gguf.metadata}
    report["chat"] = chat_table(gguf)
    try:
        config = read_config(gguf)
        report["config"] = _jsonable(config_table(config))
        report["memory"] = memory_table(gguf, config)
        if kv_plan:
            report["kv_plan"] = plan_table(gguf)
    except MixkvError as error:
        report["problem"] = str(error)
    types: dict[str, dict[str, int]] = defaultdict(lambda: {"tensors": 0, "elements": 0, "bytes": 0})
    for info in gguf.tensors.values():
        counts = types[info.ggml_type.name]
        counts["tensors"] += 1
        counts["elements"] += math.prod(info.shape)
        counts["bytes"] += info.n_bytes
    report["types"] = dict(types)
    if tensors:
        report["tensors"] = [
            {"name": info.name, "type": info.ggml_type.name, "shape": list(info.shape), "bytes": info.n_bytes}
            for info in gguf.tensors.values()
        ]
    return report


def memory_table(gguf: GGUFFile, config: ModelConfig) -> list[dict[str, int]]:
    """Bytes for contexts up to the one that the model was made for: weights, work space, full caches (f16, mixed), and
    what each kind of layers has of those ("cache_mixed_sliding"), where a model has more than one."""
    from mixkv.engine.cache_config import KVCacheConfig
    from mixkv.engine.kv_plan import plan_cache
    from mixkv.engine.memory import plan_memory
    from mixkv.engine.state.stats import cache_bytes
    from mixkv.kernels import default_backend
    from mixkv.models.key_sample import HeadStatistics

    shorter = [1 << i for i in range(9, 32) if 1 << i < config.n_ctx_train]
    caches = {"f16": KVCacheConfig(), "mixed": KVCacheConfig(mixed_kv_cache=True)}
    rows, backend = [], default_backend()
    heads = HeadStatistics(gguf, backend)
    for n_ctx in (*shorter[-6:], config.n_ctx_train):
        row = {"n_ctx": n_ctx}
        for name, cache in caches.items():
            plan = plan_cache(heads, cache)
            memory = plan_memory(gguf, config, plan, backend, n_ctx=n_ctx, n_batch=N_BATCH)
            row |= {"weights": memory.weights, "scratch": memory.scratch}
            row |= {f"cache_{name}": memory.cache, f"total_{name}": memory.total}
            kinds = cache_bytes(config, plan, n_ctx, min(N_BATCH, n_ctx))
            row |= {f"cache_{name}_{kind}": n for kind, n in kinds.items() if len(kinds) > 1}
        rows.append(row)
    return rows


def plan_table(gguf: GGUFFile) -> list[dict[str, Any]]:
    """What the mixed cache, at its defaults, does with each layer."""
    from mixkv.engine.cache_config import KVCacheConfig
    from mixkv.engine.kv_plan import plan_layers
    from mixkv.kernels import default_backend
    from mixkv.models.key_sample import HeadStatistics

    return [
        {
            "layer": p.layer,
            **(asdict(p.format) if p.format else {}),
            "changed": p.changed,
            "losses": _jsonable(p.losses),
            "why": p.why,
        }
        for p in plan_layers(HeadStatistics(gguf, default_backend()), KVCacheConfig(mixed_kv_cache=True))
    ]


def _shortened(gguf: GGUFFile, key: str) -> Any:
    """A metadata value: long strings cut, arrays as their length and first elements."""
    length = gguf.metadata.length(key)
    value: Any = gguf.metadata[key]
    if length is None:
        return value[:SHOWN_TEXT] + "..." if isinstance(value, str) and len(value) > SHOWN_TEXT else _jsonable(value)
    first = [item.decode("utf-8", "replace") if isinstance(item, bytes) else _jsonable(item) for item in value[:SHOWN]]
    return {"length": length, "first": first}


def _jsonable(value: Any) -> Any:
    """NumPy's numbers as Python's, what is not finite or no plain value as text."""
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _print_json(report: Any) -> int:
    print(json_format.dumps(report, ensure_ascii=False, allow_nan=False))
    return DONE


def _show_families(json: bool) -> int:
    from mixkv.models.registry import families, supported_families

    if json:
        return _print_json({f.architecture: {"models": f.models, "brings": f.features} for f in families().values()})
    print(supported_families())
    return DONE


def _show_pairs(pairs: dict[str, Any], json: bool) -> int:
    if json:
        return _print_json(_jsonable(pairs))
    _print_table("", ("", ""), ((key, _text(value)) for key, value in pairs.items()))
    return DONE


def _print_report(report: dict[str, Any]) -> None:
    print(report["path"])
    if report["problem"]:
        print(f"mixkv cannot run this model: {harmless(report['problem'])}")
    _print_table("Metadata", ("key", "value"), ((key, _text(value)) for key, value in report["metadata"].items()))
    _print_table("Replies", ("", ""), ((key, value or "none") for key, value in report["chat"].items()))
    if report["config"]:
        common = ((key, _text(value)) for key, value in report["config"].items() if key != "layers")
        _print_table("Model", ("", ""), common)
        parts = ("mixer", "ffn", "norms", "keeps")
        runs = ((run["layers"], {"norms": run["norms"], **run["words"]}) for run in report["config"]["layers"])
        _print_table("Layers", ("layers", *parts), ((at, *(words[part] for part in parts)) for at, words in runs))
    _print_table(
        "Weights",
        ("type", "tensors", "elements", "MiB"),
        ((kind, f"{n['tensors']}", f"{n['elements']:,}", _mib(n["bytes"])) for kind, n in report["types"].items()),
    )
    if "tensors" in report:
        _print_table(
            "Tensors",
            ("name", "type", "shape", "bytes"),
            ((t["name"], t["type"], " x ".join(map(str, t["shape"])), f"{t['bytes']:,}") for t in report["tensors"]),
        )
    if report["memory"]:
        first = ("weights", "scratch", "cache_f16", "cache_mixed", "total_f16", "total_mixed")
        columns = (*first, *(name for name in report["memory"][0] if name not in ("n_ctx", *first)))
        rows = ((f"{row['n_ctx']}", *(_mib(row[name]) for name in columns)) for row in report["memory"])
        _print_table("Memory in MiB, the cache full", ("n_ctx", *columns), rows)
    if "kv_plan" in report:
        _print_plan(report["kv_plan"])


def _print_plan(layers: list[dict[str, Any]]) -> None:
    from mixkv.engine.kv_plan import MOST_LOSS

    rotated = {(False, False): "off", (True, True): "on", (True, False): "K", (False, True): "V", (None, None): ""}
    rows = (
        (str(p["layer"]), p.get("type_k", ""), p.get("type_v", ""), rotated[p.get("rotate_k"), p.get("rotate_v")],
         ("changed: " if p["changed"] else "") + p["why"])
        for p in layers
    )  # fmt: skip
    _print_table(
        f"Plan of the mixed cache: keys change where scores would lose more than {MOST_LOSS}",
        ("layer", "K", "V", "rotated", "why"),
        rows,
    )


def _text(value: Any) -> str:
    if isinstance(value, dict) and set(value) == {"length", "first"}:
        more = ", ..." if value["length"] > len(value["first"]) else ""
        return f"[{', '.join(map(repr, value['first']))}{more}] ({value['length']})"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_text(item)}" for key, item in value.items() if item not in (None, "", []))
    if isinstance(value, float):
        return f"{value:.7g}"
    if isinstance(value, list):
        return " ".join(map(_text, value))
    return str(value).replace("\n", "\\n")


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / MIB:,.1f}"


def _print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table as wide as the terminal, or as its content where stdout is no terminal. Cells are text, no markup."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, show_header=any(columns))
    for i, name in enumerate(columns):
        table.add_column(
            name, overflow="fold", justify="left" if name in WORDS or len(columns) < 3 or not i else "right"
        )
    for row in rows:
        table.add_row(*(Text(harmless(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else 240).print(table)
