"""Break the code on purpose, one small change at a time, and see which test notices.

    .venv-dev/bin/python tools/mutate.py [tools/mutations.toml] [--only WORD]

The list has one [[mutation]] for each change: `file`, `old` (must stand there once), `new`, `tests` (files of tests/),
and where NumPy's backend is meant `backend = "reference"`. Each is applied to a copy of the working tree in a temporary
folder, where no ../shared is in reach; the tests are run until one fails; a table of who caught what is printed. C++ is
built there (once whole, then what changed). Exit status: 0 if every change was caught and none was out of date.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("kernels", "models", "engine", "server", "cli", "configs")
NO_EDITABLE_INSTALL = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if not type(finder).__name__.startswith("ScikitBuild")]
"""


class Clone:
    """A copy of the working tree that can be imported, and tested, without touching the original."""

    def __init__(self, folder: Path) -> None:
        self.root, self.site, self._build = folder / "clone", folder / "site", folder / "build"
        names = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, check=True,
        ).stdout.decode().split("\0")  # fmt: skip
        for name in filter(None, names):
            if (ROOT / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.root / name)
        package = self.site / "mixkv"
        package.mkdir(parents=True)
        for name in ("__init__.py", "__main__.py"):
            (package / name).symlink_to(self.root / "mixkv" / name)
        for room in ROOMS:
            (package / room).symlink_to(self.root / room)
        (self.site / "sitecustomize.py").write_text(NO_EDITABLE_INSTALL)
        self._native = self.root / "kernels" / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
        shutil.copy2(self._installed_native(), self._native)

    def _installed_native(self) -> Path:
        code = "import mixkv.kernels._native as native; print(native.__file__)"
        return Path(subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True,
                                   cwd=self.site.parent).stdout.strip())  # fmt: skip

    def build(self) -> str:
        """Compile the extension; the compiler's message if that fails."""
        env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        for command in (
            ["cmake", "-S", self.root, "-B", self._build, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"],
            ["cmake", "--build", self._build],
        ):
            done = subprocess.run(command, env=env, capture_output=True, text=True)
            if done.returncode:
                return done.stdout[-300:] + done.stderr[-300:]
        shutil.copy2(self._build / self._native.name, self._native)
        return ""

    def failing_test(self, tests: list[str], backend: str | None) -> str:
        """The first test of these files that fails, "" if none does."""
        env = os.environ | {
            "PYTHONPATH": str(self.site), "PYTHONDONTWRITEBYTECODE": "1", "HYPOTHESIS_PROFILE": "mutate",
        }  # fmt: skip
        if backend:
            env["MIXKV_KERNELS"] = backend
        files = [str(self.root / "tests" / name) for name in tests]
        command = [sys.executable, "-P", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files]
        try:
            done = subprocess.run(
                command, env=env, cwd=self.root / "tests", capture_output=True, text=True, timeout=900
            )
        except subprocess.TimeoutExpired:
            return "did not end"
        if done.returncode == 0:
            return ""
        found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
        return (
            found[1].rpartition("/")[2]
            if found
            else f"crashed with {done.returncode}: {(done.stdout + done.stderr)[-200:]}"
        )


def try_one(clone: Clone, change: dict[str, str]) -> str:
    """Apply, run, take back; the test that noticed, or in capitals what is wrong."""
    path = clone.root / change["file"]
    original = path.read_text()
    if original.count(change["old"]) != 1:
        return "OUT OF DATE: the old text does not stand there once"
    native = path.suffix in (".cpp", ".h")
    try:
        path.write_text(original.replace(change["old"], change["new"]))
        if native and (problem := clone.build()):
            return f"DOES NOT COMPILE: {problem}"
        return clone.failing_test(change["tests"].split(), change.get("backend")) or "SURVIVED"
    finally:
        path.write_text(original)
        if native:
            clone.build()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("list", nargs="?", type=Path, default=ROOT / "tools" / "mutations.toml")
    parser.add_argument("--only", default="", help="changes whose file or text holds this")
    options = parser.parse_args()
    changes = [
        change
        for change in tomllib.loads(options.list.read_text())["mutation"]
        if any(options.only in change[key] for key in ("file", "old", "new"))
    ]
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        clone = Clone(Path(folder))
        if any(change["file"].endswith((".cpp", ".h")) for change in changes) and (problem := clone.build()):
            sys.exit(f"the extension does not build as it is: {problem}")
        for backend in {change.get("backend") for change in changes}:
            tests = sorted({t for c in changes if c.get("backend") == backend for t in c["tests"].split()})
            if problem := clone.failing_test(tests, backend):
                sys.exit(f"a test fails before anything is changed: {problem}")
        bad = 0
        print("| file | change | caught by |\n| --- | --- | --- |")
        for change in changes:
            start = time.perf_counter()
            verdict = try_one(clone, change)
            bad += verdict.split()[0].isupper()
            old, new = (" ".join(change[key].split())[:60] for key in ("old", "new"))
            seconds = time.perf_counter() - start
            print(f"| {change['file']} | `{old}` -> `{new}` | {verdict} ({seconds:.0f} s) |", flush=True)
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
