"""Flags of llama-cli that change nothing here, and those that are refused because they would change the text.

Know before you change this room: scripts written for llama-cli run unchanged where that is honest. `idle` declares a
flag that this engine has no use for: it is accepted, and one line on stderr says why, except for values that ask for
what happens anyway (`quiet`). `refused` declares one that would change what is generated: it ends with status 2.
docs/flags.md is made from these declarations.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from mixkv.cli.flags import flag, spelled
from mixkv.cli.options import ModelFlags
from mixkv.kernels.errors import ConfigError

ACCEPTED, REFUSED = "Accepted for llama-cli's sake, without effect", "Of llama-cli, not supported yet"
SWITCH = r"on|off|auto|1|0|true|false|enabled|disabled"
NO_GPU = "all runs on the CPU"


def idle(
    *names: str, because: str, quiet: tuple[Any, ...] = (), pattern: str = ".*", metavar: str | None = None
) -> Any:
    """A flag without effect. quiet: values that nobody is told about. pattern: what a value must look like."""
    help = because[0].upper() + because[1:]
    return flag(*names, panel=ACCEPTED, metavar=metavar, help=help, because=because, quiet=quiet, pattern=pattern)


def refused(*names: str, because: str, metavar: str) -> Any:
    """A flag that cannot be obeyed, and must not be ignored."""
    return flag(*names, panel=REFUSED, metavar=metavar, help=f"Refused: {because}", because=because)


@dataclass(frozen=True)
class AcceptedFlags:
    """Flags without effect; None where one was not given."""

    flash_attn: str | None = idle(
        "-fa", "--flash-attn", because="attention is always flash attention here", metavar="[on|off|auto]",
        quiet=("on", "auto", "1", "true", "enabled"), pattern=SWITCH,
    )  # fmt: skip
    gpu_layers: str | None = idle(
        "-ngl", "--gpu-layers", "--n-gpu-layers", because="all layers run on the CPU", metavar="N|auto|all",
        quiet=("auto", "0"), pattern=r"-?[0-9]+|auto|all",
    )  # fmt: skip
    device: str | None = idle("-dev", "--device", because=NO_GPU, metavar="LIST", quiet=("none",))
    split_mode: str | None = idle("-sm", "--split-mode", because=NO_GPU, metavar="MODE", quiet=("none",))
    tensor_split: str | None = idle("-ts", "--tensor-split", because=NO_GPU, metavar="LIST")
    main_gpu: int | None = idle("-mg", "--main-gpu", because=NO_GPU)
    kv_offload: bool | None = idle(
        "-kvo/-nkvo", "--kv-offload/--no-kv-offload", because="the cache is in the CPU's memory", quiet=(False,)
    )
    op_offload: bool | None = idle("--op-offload/--no-op-offload", because=NO_GPU, quiet=(False,))
    fit: str | None = idle(
        "-fit", "--fit", because="without -c the context is halved until it fits", metavar="[on|off]", quiet=("on",),
        pattern=SWITCH,
    )  # fmt: skip
    threads_batch: int | None = idle("-tb", "--threads-batch", because="the prompt takes the threads of -t")
    ubatch: int | None = idle("-ub", "--ubatch-size", because="-b says how many prompt tokens are computed at a time")
    cpu_strict: str | None = idle(
        "--cpu-strict", because="threads are not pinned one by one", metavar="0|1", quiet=("0",), pattern="0|1"
    )
    cpu_mask_batch: str | None = idle(
        "-Cb", "--cpu-mask-batch", because="the prompt takes the cores of -C", metavar="M"
    )
    cpu_range_batch: str | None = idle(
        "-Crb", "--cpu-range-batch", because="the prompt takes the cores of -Cr", metavar="LO-HI"
    )
    cpu_strict_batch: str | None = idle(
        "--cpu-strict-batch", because="threads are not pinned one by one", metavar="0|1", quiet=("0",), pattern="0|1"
    )
    prio_batch: int | None = idle("--prio-batch", because="the prompt has the priority of --prio", quiet=(0,))
    poll: int | None = idle("--poll", because="how threads wait is not a setting")
    poll_batch: int | None = idle("--poll-batch", because="how threads wait is not a setting")
    numa: str | None = idle("--numa", because="memory is placed by the system", metavar="TYPE")
    mmap: bool | None = idle("--mmap/--no-mmap", because="model files are mapped, packed and let go", quiet=(True,))
    repack: bool | None = idle(
        "--repack/-nr", "--repack/--no-repack", because="weights are always packed", quiet=(True,)
    )
    warmup: bool | None = idle("--warmup/--no-warmup", because="there is none", quiet=(False,))
    keep: int | None = idle("--keep", because="a full context ends the text, nothing is dropped from it", quiet=(0,))
    context_shift: bool | None = idle(
        "--context-shift/--no-context-shift", because="a full context ends the text, nothing is dropped from it",
        quiet=(False,),
    )  # fmt: skip
    defrag: float | None = idle("-dt", "--defrag-thold", because="the cache has no holes")
    kv_unified: bool | None = idle("-kvu", "--kv-unified", because="there is one sequence")
    parallel: int | None = idle("-np", "--parallel", because="there is one sequence", quiet=(1,))
    swa_full: bool | None = idle("--swa-full", because="the cache keeps every token")
    jinja: bool | None = idle("--jinja/--no-jinja", because="chat templates are always Jinja's", quiet=(True,))


@dataclass(frozen=True)
class RefusedFlags:
    """Flags that cannot be obeyed. An empty value is none."""

    lora: str | None = refused("--lora", because="the model would be another one", metavar="FILE")
    control_vector: str | None = refused("--control-vector", because="the model would be another one", metavar="FILE")


def notes(flags: Any, model: ModelFlags) -> list[str]:
    """One line for each flag of a group of idle ones that asks for something this engine has no use for. ConfigError
    for senseless values."""
    as_anyway = {"threads_batch": model.n_threads, "ubatch": model.n_batch}
    found = []
    for field in dataclasses.fields(flags):
        value = getattr(flags, field.name)
        if value is None:
            continue
        shown = spelled(field, value)
        if isinstance(value, str):
            value = value.lower()
            if re.fullmatch(field.metadata["pattern"], value, re.DOTALL) is None:
                raise ConfigError(f"{shown}: use {field.metadata['option'].metavar.strip('[]').replace('|', ', ')}")
        if value not in field.metadata["quiet"] and value != as_anyway.get(field.name):
            found.append(f"{shown} has no effect: {field.metadata['because']}")
    return found


def refuse(flags: RefusedFlags) -> None:
    """ConfigError for the first flag that cannot be obeyed."""
    for field in dataclasses.fields(flags):
        if getattr(flags, field.name):
            name = field.metadata["names"][0]
            raise ConfigError(f"{name} is not supported yet, and without it {field.metadata['because']}: leave it out")
