"""Session files as files: written whole or not at all, and otherwise as if they had been written in place.

Resume files and pictures are written by the same hand (engine/atomic_file.py); what they share is tested on all three.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf_tools import tiny_llama, write_gguf

import mixkv
from mixkv.engine.evaluate.resume import Progress, ResumeFile, RunKey
from mixkv.kernels.errors import ConfigError, MixkvError, SessionError

ROOT = Path(__file__).resolve().parents[1]
Write = Callable[[Path], None]
Writer = tuple[Write, type[MixkvError], str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("model") / "llama.gguf", *tiny_llama())


@pytest.fixture
def llm(model: Path) -> mixkv.LLM:
    llm = mixkv.load(model, n_threads=1, n_ctx=128)
    llm.logits(list(range(5, 75)))
    return llm


def save_resume_file(path: Path) -> None:
    ResumeFile(path, RunKey("model", 64, "text", "kernels", ("f16",))).write(Progress.empty(1, 31))


def save_picture(path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib, an extra, is not installed")
    from mixkv.engine.evaluate.plot import plot_rows

    plot_rows(path, [], "a test")


@pytest.fixture(params=["session", "resume file", "picture"])
def writer(request: pytest.FixtureRequest, llm: mixkv.LLM) -> Writer:
    """Everything that writes a file: how, the error it raises, and what it calls the file."""
    kinds: dict[str, tuple[Write, type[MixkvError]]] = {
        "session": (llm.save_session, SessionError),
        "resume file": (save_resume_file, SessionError),
        "picture": (save_picture, ConfigError),
    }
    return *kinds[request.param], request.param


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    """To set it; it is put back afterwards."""
    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def fail_on_folders(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the sync of a folder fail, and that of a file work."""
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


class TestAsIfWrittenInPlace:
    """What `open(path, "wb")` would do, apart from the moment at which the file changes."""

    @pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
    def test_a_new_file_has_the_mode_that_the_umask_leaves(
        self, writer: Writer, tmp_path: Path, umask: Callable[[int], int], mask: int
    ) -> None:
        """Temporary files are 0600 where nobody says otherwise: a colleague in the same group could not read it."""
        umask(mask)
        writer[0](tmp_path / "new.png")
        assert mode(tmp_path / "new.png") == 0o666 & ~mask

    @pytest.mark.parametrize("kept", [0o644, 0o600, 0o664])
    def test_an_old_file_keeps_its_mode(
        self, writer: Writer, tmp_path: Path, umask: Callable[[int], int], kept: int
    ) -> None:
        """Neither narrowed by the umask nor, which would publish a private text, widened."""
        path = tmp_path / "old.png"
        path.write_bytes(b"old")
        path.chmod(kept)
        umask(0o026)
        writer[0](path)
        assert path.stat().st_size > 3 and mode(path) == kept

    def test_a_symbolic_link_stays_and_its_target_is_replaced(self, writer: Writer, tmp_path: Path) -> None:
        """Or a link to a large disk becomes a file on the small one, and the linked session grows old unnoticed."""
        far, near = tmp_path / "far", tmp_path / "near"
        far.mkdir()
        near.mkdir()
        (far / "real.png").write_bytes(b"old")
        (near / "again.png").symlink_to("link.png")
        (near / "link.png").symlink_to(far / "real.png")
        (near / "dangling.png").symlink_to("../far/new.png")
        for name in ("again.png", "dangling.png"):
            writer[0](near / name)
        assert all(path.is_symlink() for path in near.iterdir())
        assert sorted(path.name for path in far.iterdir()) == ["new.png", "real.png"]
        assert all(path.stat().st_size > 3 for path in far.iterdir())

    def test_names_as_long_as_names_may_be(self, writer: Writer, tmp_path: Path) -> None:
        """The temporary name must not be longer than the one that was asked for."""
        for name in ("x" * 251 + ".png", "\u00e4" * 125 + "x.png"):
            writer[0](tmp_path / name)
        assert len(list(tmp_path.iterdir())) == 2
        with pytest.raises(writer[1], match="File name too long; nothing was changed"):
            writer[0](tmp_path / ("x" * 252 + ".png"))

    def test_paths_that_cannot_be_written(self, writer: Writer, tmp_path: Path) -> None:
        """A rename over a device or a pipe would replace it: /dev/null is gone once root saves there."""
        pipe, link, loop, folder = (tmp_path / f"{name}.png" for name in ("pipe", "link", "loop", "folder"))
        os.mkfifo(pipe)
        link.symlink_to("pipe.png")
        loop.symlink_to("loop.png")
        folder.mkdir()
        for target in (tmp_path / "no" / "folder.png", folder, pipe, link, loop, tmp_path / "nul\0.png"):
            with pytest.raises(writer[1], match=f"cannot write the {writer[2]} .*; nothing was changed") as caught:
                writer[0](target)
            assert "\n" not in str(caught.value)
        assert pipe.is_fifo() and link.is_symlink() and loop.is_symlink()
        assert len(list(tmp_path.iterdir())) == 4, "a temporary file was left"


class TestWhole:
    """The old file or the new one, never a torn one."""

    def test_the_order_of_things(self, writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Renamed before its bytes are on the disk, a power cut leaves an empty file; without a sync of the folder
        afterwards it may leave the old one, long after saving was said to be done."""
        sync, rename, path = os.fsync, Path.replace, tmp_path / "x.png"
        seen: list[str] = []

        def fsync(descriptor: int) -> None:
            status = os.fstat(descriptor)
            if stat.S_ISDIR(status.st_mode):
                assert os.path.samestat(status, tmp_path.stat())
                assert path.stat().st_size > 3
                seen.append("folder")
            else:
                assert path.read_bytes() == b"old" and status.st_size > 3
                seen.append("file")
            sync(descriptor)

        def replace(self: Path, target: Path) -> Path:
            seen.append("rename")
            return rename(self, target)

        path.write_bytes(b"old")
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(Path, "replace", replace)
        writer[0](path)
        assert seen == ["file", "rename", "folder"]

    @pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL])
    def test_a_folder_that_cannot_be_synced(
        self, writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        """By then the file has been replaced: "nothing was changed" sends people to a file that is gone."""
        path = tmp_path / "x.png"
        path.write_bytes(b"old")
        with monkeypatch.context() as patch:
            fail_on_folders(patch, number)
            with pytest.raises(writer[1], match=r"is in place, but .* may not survive a power cut") as caught:
                writer[0](path)
        assert "nothing was changed" not in str(caught.value) and os.strerror(number) in str(caught.value)
        assert path.stat().st_size > 3 and len(list(tmp_path.iterdir())) == 1

    def test_a_session_in_an_unsynced_folder_is_whole(
        self, llm: mixkv.LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            fail_on_folders(patch, errno.EIO)
            with pytest.raises(SessionError, match="in place"):
                llm.save_session(tmp_path / "s")
        llm.reset()
        assert llm.load_session(tmp_path / "s") == 70

    def test_no_space(self, llm: mixkv.LLM, tmp_path: Path) -> None:
        """The file grows to a limit that the operating system sets, as on a full disk."""
        resource = pytest.importorskip("resource")
        soft = resource.getrlimit(resource.RLIMIT_FSIZE)
        session = tmp_path / "s"
        session.write_bytes(b"old")
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, soft[1]))
        try:
            with pytest.raises(SessionError, match="File too large; nothing was changed"):
                llm.save_session(session)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, soft)
        assert session.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1

    @pytest.mark.parametrize("call", ["fsync", "replace"])
    def test_a_disk_that_fails_late(
        self, writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        def fail(*_: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        path = tmp_path / "x.png"
        path.write_bytes(b"old")
        with monkeypatch.context() as patch:
            patch.setattr(*((os, "fsync", fail) if call == "fsync" else (Path, "replace", fail)))
            with pytest.raises(writer[1], match="Input/output error; nothing was changed"):
                writer[0](path)
        assert path.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["x.png"], "a temporary file was left"
        writer[0](path)
        assert path.stat().st_size > 3

    def test_interrupted(self, writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(_: int) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(KeyboardInterrupt):
            writer[0](tmp_path / "x.png")
        assert list(tmp_path.iterdir()) == []

    def test_saving_again_replaces_the_file(self, llm: mixkv.LLM, tmp_path: Path) -> None:
        llm.save_session(tmp_path / "s")
        llm.truncate(30)
        llm.save_session(tmp_path / "s")
        llm.reset()
        assert llm.load_session(tmp_path / "s") == 30
        assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_resume_file_is_read_back(tmp_path: Path) -> None:
    save_resume_file(tmp_path / "x")
    found = ResumeFile(tmp_path / "x", RunKey("model", 64, "text", "kernels", ("f16",))).read()
    assert found is not None and np.array_equal(found.nll, np.empty((1, 0, 31)))


def test_there_is_one_writer_of_whole_files() -> None:
    """Of two, one was mended and the other not."""
    careful = re.compile(r"fsync|tempfile|mkstemp|os\.rename|os\.replace|savefig\(path")
    rooms = [path for room in ("engine", "cli", "models") for path in (ROOT / room).rglob("*.py")]
    found = {str(p.relative_to(ROOT)) for p in rooms if careful.search(p.read_text())}
    # a download is a part first, which a later run goes on with; an editor's file is gone when the editor is
    assert found == {"engine/atomic_file.py", "engine/hub/download.py", "cli/chat_files.py"}
