"""`mixkv models`: the models of the hub that are on this machine, their sizes, their removal."""

from __future__ import annotations

import json as json_format
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixkv.cli.flags import flag, with_flags
from mixkv.cli.terminal import DONE, harmless

WHAT = "What to do"


@dataclass(frozen=True)
class ModelsFlags:
    """What is done."""

    remove: str | None = flag(
        "--remove", "--rm", panel=WHAT, metavar="NAME", help="Remove a model: USER/REPO:QUANT, or all of USER/REPO"
    )
    json: bool = flag("--json", panel=WHAT, value=False, help="One JSON list: name, path, nbytes, complete")


@with_flags
def models(flags: ModelsFlags) -> int:
    """List the models of the hub in the cache (HF_HOME), as -hf takes their names, or remove one."""
    from mixkv.engine.hub.client import library
    from mixkv.engine.hub.inventory import cached_models, remove
    from mixkv.engine.hub.reference import Reference

    cache = Path(library().constants.HF_HUB_CACHE)
    if flags.remove is not None:
        reference = Reference.parse(flags.remove)
        print(f"{reference}: {size(remove(cache, reference))} are free again")
        return DONE
    found = list(cached_models(cache))
    if flags.json:
        rows: list[dict[str, Any]] = [{**vars(model), "path": str(model.path)} for model in found]
        print(json_format.dumps(rows, ensure_ascii=False))
        return DONE
    width = max((len(model.name) for model in found), default=0)
    for model in found:
        unfinished = "" if model.complete else "  not finished: get it again, or remove it"
        print(harmless(f"{model.name:<{width}}  {size(model.nbytes):>8}{unfinished}"))
    print(f"{sum(model.complete for model in found)} models, {size(sum(model.nbytes for model in found))}, in {cache}")
    return DONE


def size(n_bytes: int) -> str:
    """Bytes for people, in units of a thousand, as the hub counts."""
    value = float(n_bytes)
    for unit in ("B", "kB", "MB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"
