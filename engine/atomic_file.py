"""Files that are written whole: at any moment the old one or the new one is there, never a torn one.

The new one is written under a temporary name in the same folder, synced, renamed, and then the folder is synced, so
that the name survives a power cut as well. Otherwise it is as if the file had been written in place: a new one has the
mode that the umask leaves, an old one keeps its own, and where the path is a symbolic link its target is replaced.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from mixkv.kernels.errors import MixkvError


@contextmanager
def writing(path: Path, what: str, error: type[MixkvError]) -> Iterator[IO[bytes]]:
    """A binary file to write to; it stands at `path` when the block ends, and if the block raises, nothing changed.

    Whatever the operating system refuses, in the block as well, is raised as `error`: "cannot write the {what} ...",
    with what is true of the file then. A path to anything but a regular file is refused: a rename would put a file in
    the place of a device or a pipe.
    """
    temporary = None
    try:
        target, mode = _target_of(path)
        # a short name of its own: that of the target may be as long as names can be
        temporary = target.with_name(f".mixkv-{os.urandom(8).hex()}.tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o666 if mode is None else mode)  # less what the umask takes
        with open(descriptor, "wb") as file:  # noqa: PTH123
            if mode is not None:
                with suppress(OSError):  # some file systems have no modes
                    os.fchmod(descriptor, mode)
            yield file
            file.flush()
            os.fsync(descriptor)
        temporary.replace(target)
        temporary = None
    except OSError as failure:
        reason = failure.strerror or failure
        raise error(f"cannot write the {what} {path}: {reason}; nothing was changed there") from failure
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    try:
        _sync_folder(target.parent)
    except OSError as failure:
        raise error(
            f"the {what} {path} was written and is in place, but its folder cannot be synced "
            f"({failure.strerror or failure}): it may not survive a power cut; write it again, or to another folder"
        ) from failure


def _target_of(path: Path) -> tuple[Path, int | None]:
    """Where symbolic links lead, and the permissions of the regular file there, None where there is none.

    OSError for anything else.
    """
    try:
        target = Path(os.path.realpath(path))
        status = target.stat()
    except FileNotFoundError:
        return target, None
    except ValueError as problem:  # a NUL byte in the path
        raise OSError(str(problem)) from None
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is not a regular file; give the path of one")
    return target, stat.S_IMODE(status.st_mode)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
