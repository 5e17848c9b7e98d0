"""Flags about the process on this machine: which cores it runs on, how urgent it is, whether its memory is locked."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from mixkv.cli.flags import flag
from mixkv.cli.terminal import Terminal
from mixkv.kernels.errors import ConfigError

MACHINE = "Cores, priority, memory"
NICENESS = {-1: 5, 0: 0, 1: -5, 2: -10, 3: -20}
"""What llama-cli's priorities (low, normal, medium, high, realtime) are to the system."""
_MCL_CURRENT, _MCL_ONFAULT = 1, 4  # Linux, asm-generic/mman.h


@dataclass(frozen=True)
class MachineFlags:
    """How the process runs; None where a flag was not given."""

    cpu_mask: str | None = flag("-C", "--cpu-mask", panel=MACHINE, metavar="HEX", help="Run on the cores of this mask")
    cpu_range: str | None = flag("-Cr", "--cpu-range", panel=MACHINE, metavar="LO-HI", help="... and on these")
    prio: int | None = flag("--prio", panel=MACHINE, help="Priority: -1 low, 0 normal, 1, 2, 3 highest", default="0")
    mlock: bool = flag("--mlock", panel=MACHINE, value=False, help="Keep the model in memory, never swapped out")


def chosen_cpus(flags: MachineFlags) -> set[int] | None:
    """The cores that mask and range name together; None if neither was given. ConfigError for senseless ones."""
    if flags.cpu_mask is None and flags.cpu_range is None:
        return None
    cpus: set[int] = set()
    if flags.cpu_mask is not None:
        digits = flags.cpu_mask.lower().removeprefix("0x")
        if re.fullmatch("[0-9a-f]+", digits) is None:
            raise ConfigError(
                f"-C {flags.cpu_mask!r}: give a mask in hexadecimal, such as 0xF for the first four cores"
            )
        mask = int(digits, 16)
        cpus |= {i for i in range(mask.bit_length()) if mask >> i & 1}
    if flags.cpu_range is not None:
        match = re.fullmatch("([0-9]*)-([0-9]*)", flags.cpu_range)
        if match is None:
            raise ConfigError(f"-Cr {flags.cpu_range!r}: give the first and the last core, such as 0-3")
        last = max(os.sched_getaffinity(0))
        cpus |= set(range(int(match[1] or 0), min(last, int(match[2] or last)) + 1))
    return cpus


def prepare(flags: MachineFlags, terminal: Terminal) -> None:
    """Move the process to its cores and give it its priority: before threads are started, which inherit both."""
    cpus = chosen_cpus(flags)
    if cpus is not None:
        usable = os.sched_getaffinity(0)
        if not cpus & usable:
            raise ConfigError(f"-C, -Cr: none of these cores may be used: this process has {sorted(usable)}")
        os.sched_setaffinity(0, cpus & usable)
    if flags.prio is None:
        return
    if flags.prio not in NICENESS:
        raise ConfigError(f"--prio {flags.prio}: give -1 (low), 0 (normal), 1, 2 or 3 (highest)")
    try:
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS[flags.prio])
    except OSError as error:
        terminal.note(f"--prio {flags.prio} has no effect: {error.strerror} (raising it takes the right to do so)")


def lock_memory(terminal: Terminal) -> None:
    """Lock all that the process has in memory now; a note if the system does not allow that."""
    import ctypes  # for this flag alone

    # With ONFAULT what the cache has merely reserved is not filled: it is locked page by page, as it is used.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_ONFAULT):
        reason = os.strerror(ctypes.get_errno())
        terminal.note(f"--mlock has no effect: {reason} (`ulimit -l` shows how much may be locked)")
