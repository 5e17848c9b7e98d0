"""Models of the hub on the command line: the flags of every command that takes a model, and the file that they name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mixkv.cli.flags import flag
from mixkv.cli.options import MODEL
from mixkv.cli.terminal import Terminal
from mixkv.kernels.errors import ConfigError


@dataclass(frozen=True)
class HubFlags:
    """Which model of the hub, and how it is got."""

    hf_repo: str | None = flag(
        "-hf", "-hfr", "--hf-repo", panel=MODEL, metavar="USER/REPO[:QUANT]",
        help="Model of the hub instead of -m, downloaded once; without QUANT Q4_K_M, else Q8_0, else the nearest",
    )  # fmt: skip
    hf_file: str | None = flag("-hff", "--hf-file", panel=MODEL, metavar="FILE", help="With -hf: this file of it")
    hf_token: str | None = flag(
        "-hft",
        "--hf-token",
        panel=MODEL,
        metavar="TOKEN",
        help="Token for the hub",
        default="HF_TOKEN, or as logged in",
    )
    offline: bool = flag("--offline", panel=MODEL, value=False, help="Of the hub only what is in the cache")


def model_path(model: str | None, hub: HubFlags, terminal: Terminal) -> Path | str | None:
    """The file to open: that of -m, or the hub's, downloaded with a bar; None is the demo model.

    Raises ConfigError, HubError.
    """
    from mixkv.engine.hub.reference import SCHEME, Reference

    if model is not None and hub.hf_repo is not None:
        raise ConfigError("-hf contradicts -m (or MODEL): give one of them")
    if hub.hf_repo is None and (model is None or not model.startswith(SCHEME)):
        if hub.hf_file is not None:
            raise ConfigError(f"-hff {hub.hf_file!r} needs -hf USER/REPO")
        return model
    from mixkv.engine.hub.client import Hub

    reference = Reference.parse(hub.hf_repo or model or "")
    if hub.hf_file is not None:
        if reference.file is not None or (reference.quant and reference.quant.lower() not in hub.hf_file.lower()):
            raise ConfigError(f"-hff {hub.hf_file!r} contradicts {reference}: give one of them")
        reference = Reference.parse(f"{reference.repo}/{hub.hf_file}")
    with terminal.progress(f"downloading {reference}") as report:
        return Hub(token=hub.hf_token, offline=hub.offline).get(reference, report)
