"""The house's rules, read off its source: imports go one way, files stay short, one room holds the errors.

Skipped where the source is not beside the tests (they can be run against an installed package alone).
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mixkv
from mixkv.kernels import LayerFormat, contract, errors, open_backend
from mixkv.models.registry import architectures, families, supported_families

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "kernels": {"kernels"},
    "models": {"kernels", "models"},
    "engine": {"kernels", "models", "engine"},
    "configs": {"kernels", "configs"},
    "server": {"kernels", "engine", "server"},
    "cli": {"kernels", "models", "engine", "server", "configs", "cli"},
}
ROOMS = ["mixkv", *MAY_IMPORT]
NEVER_LEAVE = {"NoMatch"}
"""Errors that are always caught within a room: not for callers."""
MAX_PYTHON, MAX_CPP = 300, 500
BACKENDS = ["reference", *["native"] * (importlib.util.find_spec("mixkv.kernels._native") is not None)]

pytestmark = pytest.mark.skipif(not (ROOT / "engine").is_dir(), reason="the source is not here")


def sources(*folders: str) -> list[Path]:
    return sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str, int]]:
    """(line, module, level) of every import, wherever it stands in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or "", node.level


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_go_one_way(room: str) -> None:
    """cli -> server -> engine -> models -> kernels; always by the full name: else a second copy is loaded."""
    files = sources(room)
    assert files
    for path in files:
        for line, module, level in imports(path):
            where = f"{path.relative_to(ROOT)}:{line} imports {module}"
            assert level == 0, f"{where} relatively: write mixkv.{room}..."
            top, *rest = module.split(".")
            assert top not in MAY_IMPORT, f"{where}: write mixkv.{module}"
            if top == "mixkv" and rest:
                assert rest[0] in MAY_IMPORT[room], f"{where}, which {room}/ must not know"


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every string in a file but docstrings."""
    tree = ast.parse(path.read_text())
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.lineno, node.value


def test_the_engine_knows_no_flags_and_no_tensors() -> None:
    """Flags are the command line's, names of tensors the families': a setting, or a name, stands in one place."""
    words = re.compile(
        r"(^|[ (])-(?!inf)[a-z]{1,3}\b|(^|[ (])--[a-z]|\.weight\b|\bblk\.|\b(attn|ffn)_[a-z]|\btoken_embd\b"
    )
    for path in sources("engine"):
        for line, text in strings(path):
            assert not words.search(text), f"{path.relative_to(ROOT)}:{line} says {text!r}"


@pytest.mark.parametrize(
    ("module", "unknown"),
    [
        ("kernels", ("models", "engine", "server", "cli")),
        ("models.registry", ("engine", "server", "cli")),
        ("engine.llm", ("server", "cli")),
    ],
)
def test_a_lower_floor_loads_nothing_of_the_upper_ones(module: str, unknown: tuple[str, ...]) -> None:
    """The same, as Python sees it."""
    code = f"import sys, mixkv.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert f"mixkv.{module}" in loaded
    assert [m for m in loaded if m.startswith(tuple(f"mixkv.{room}" for room in unknown))] == []


@pytest.mark.parametrize("folder", [*ROOMS, "tests", "tools", "examples", "benchmarks"])
def test_python_files_can_be_read_in_one_sitting(folder: str) -> None:
    for path in sources(folder):
        n = len(path.read_text().splitlines())
        assert n <= MAX_PYTHON, f"{path.relative_to(ROOT)} has {n} lines, more than {MAX_PYTHON}"


def test_cpp_files_are_not_much_longer() -> None:
    files = [p for suffix in ("cpp", "h") for p in (ROOT / "kernels" / "csrc").rglob(f"*.{suffix}")]
    assert files
    for path in files:
        n = len(path.read_text().splitlines())
        assert n <= MAX_CPP, f"{path.relative_to(ROOT)} has {n} lines, more than {MAX_CPP}"


def test_every_module_says_what_a_reader_must_know() -> None:
    for path in sources(*ROOMS):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree) or not tree.body, f"{path.relative_to(ROOT)} has no docstring"


def test_nothing_is_left_for_later() -> None:
    """Open ends belong into issues."""
    marks = re.compile("TO" + r"DO\b|FIX" + r"ME\b|Not" + "ImplementedError")
    csrc = [p for p in (ROOT / "kernels" / "csrc").rglob("*") if p.is_file()]
    for path in [*sources(*ROOMS, "tools", "examples", "benchmarks"), *csrc]:
        assert not marks.search(path.read_text()), path.relative_to(ROOT)


def test_all_errors_live_in_one_room() -> None:
    """kernels/errors.py, the ground floor; whoever raises ValueError by hand escapes the command line's one-liner."""
    names = {name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, Exception)}
    ours = {name for name, value in vars(errors).items() if isinstance(value, type)}
    for path in sources(*ROOMS):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and path.name != "errors.py":
                bases = {ast.unparse(base).split(".")[-1] for base in node.bases}
                assert not bases & (names | ours), f"{path.relative_to(ROOT)}: {node.name} is an exception"
    problems = [getattr(errors, name) for name in ours if name != "MixkvWarning"]
    assert all(issubclass(problem, errors.MixkvError) for problem in problems)
    assert all(getattr(mixkv, name) is getattr(errors, name) for name in ours - NEVER_LEAVE)


def test_the_public_face_is_complete_and_only_re_exports() -> None:
    assert all(hasattr(mixkv, name) for name in mixkv.__all__)
    tree = ast.parse((ROOT / "mixkv" / "__init__.py").read_text())
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert set(defined) <= {"__getattr__", "__dir__"}
    stub = (ROOT / "mixkv" / "__init__.pyi").read_text()
    missing = [name for name in mixkv.__all__ if not re.search(rf"\b{name}\b", stub)]
    assert missing == [], "type checkers do not see these names"


def test_both_backends_offer_the_contract() -> None:
    """The page, the protocol and the twins have the same names; models and engine call nothing else."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    names = set(re.findall(r"^([A-Za-z_]\w*)\(", text.split("```python")[1].split("```")[0], re.M))
    assert names == {name for name in vars(contract.Backend) if not name.startswith("_")} - {
        "name",
        "isa",
        "n_threads",
    }
    methods = set(re.findall(r"^([a-z]\w*)\(", text.split("```python")[2].split("```")[0], re.M))
    assert methods | {"set_hot", "set_cold"} == {m for m in vars(contract.KVStore) if not m.startswith("_")}
    for kind in BACKENDS:
        backend = open_backend(1, kind=kind)
        store = backend.KVStore(
            [LayerFormat()], n_kv_heads=1, head_dim_k=8, head_dim_v=8, n_ctx=16, sink_tokens=0, hot_tiles=1
        )
        assert [name for name in [*names, "name", "isa", "n_threads"] if not hasattr(backend, name)] == []
        assert [name for name in [*methods, "set_hot", "set_cold"] if not hasattr(store, name)] == []


def test_nobody_above_the_kernels_knows_a_backend() -> None:
    """A backend is passed in. Who imports a twin, or asks for its name to decide by it, ties models to one of them."""
    hidden = {f"mixkv.kernels.{m}" for m in ("_native", "native", "reference", "reference_attention", "store",
                                             "store_batch", "store_checks", "store_layer", "store_pages")}  # fmt: skip
    for path in sources("models", "engine", "server", "configs", "cli", "benchmarks", "examples", "tools"):
        for line, module, _ in imports(path):
            assert module not in hidden, f"{path.relative_to(ROOT)}:{line} imports {module}"
        if path.parts[-2] == "cli":
            continue  # `inspect --cpu` reports the name
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                asked = any(".name" in (side := ast.unparse(x)) and "backend" in side for x in ast.walk(node)
                            if isinstance(x, ast.Attribute))  # fmt: skip
                assert not asked, f"{path.relative_to(ROOT)}:{node.lineno} asks which backend it has"


def test_the_readme_lists_the_families_that_run() -> None:
    """The table is generated from the code; `mixkv inspect --families` prints it."""
    readme = (ROOT / "README.md").read_text()
    found = re.search(r"<!-- families -->\n(.*?)\n<!-- /families -->", readme, re.S)
    assert found is not None
    assert found.group(1) == supported_families()
    assert list(families()) == architectures()
