"""`mixkv get`: download a model of the hub, or see that it is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from mixkv.cli.flags import flag, with_flags
from mixkv.cli.hub import HubFlags, model_path
from mixkv.cli.terminal import DONE, Terminal
from mixkv.kernels.errors import ConfigError


@dataclass(frozen=True)
class GetFlags:
    """What is shown."""

    quiet: bool = flag("-q", "--quiet", panel="Output", value=False, help="No progress bar, no warnings")


@with_flags
def get(
    hub: HubFlags,
    flags: GetFlags,
    model: Annotated[str | None, typer.Argument(metavar="USER/REPO[:QUANT]", help="Or USER/REPO/FILE.gguf")] = None,
) -> int:
    """Download a model of the hub and print the path of its file, the first one where it is split.

    A download that was broken off goes on where it ended. HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE mean what
    they mean to other programs, with which the cache is shared.
    """
    from mixkv.engine.hub.reference import SCHEME

    if model is None and hub.hf_repo is None:
        raise ConfigError("there is no model to get: name one, as USER/REPO[:QUANT]")
    named = model if model is None or model.startswith(SCHEME) else SCHEME + model
    print(model_path(named, hub, Terminal(quiet=flags.quiet)))
    return DONE
