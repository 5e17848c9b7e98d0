"""Models of the hub on the command line and in `mixkv.load`, as processes, each with an environment of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_process import DEMO, OnTerminal, interrupt, run, start
from gguf_tools import split_model
from hub_server import LocalHub
from prose import PROSE

REPO = "some-one/demo-GGUF"
NAME = "demo-Q8_0.gguf"
HELLO = ("-p", "Hello", "-n", "3", "--temp", "0")
TEXT = PROSE * 2


@pytest.fixture(scope="module")
def demo() -> bytes:
    return Path(DEMO).read_bytes()


@pytest.fixture
def hub(demo: bytes) -> Iterator[LocalHub]:
    with LocalHub() as server:
        server.put(REPO, {NAME: demo, "other-F16.gguf": b"no model" * 200})
        yield server


def commands(folder: Path) -> list[tuple[str, ...]]:
    """Every command that takes a model, short."""
    text = folder / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    measured = ("-t", "1", "-f", str(text), "-c", "128", "--kv", "f16", "-o", "json")
    return [
        ("generate", *HELLO),
        ("chat", "-st", "-p", "Hello", "-n", "2"),
        ("inspect", "--json"),
        ("bench", "-t", "1", "-p", "8", "-n", "2", "-r", "1", "--kv", "f16"),
        ("perplexity", *measured, "--chunks", "1"),
        ("evaluate", *measured, "--prompts", "1", "-n", "4", "--depths", "50"),
    ]


def test_every_command_takes_a_model_of_the_hub(hub: LocalHub, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path)
    for words in commands(tmp_path):
        result = run(*words, "-hf", f"{REPO}:q8_0", env=environment)
        assert (result.status, result.err) == (0, b""), (words, result.err)
        assert result.out
    assert len(hub.ranges()) == 1, "downloaded once"


def test_the_text_is_that_of_the_same_file_without_the_hub(hub: LocalHub, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path)
    plain = run("generate", "-m", DEMO, *HELLO).out
    for words in (
        ("-hf", REPO),
        ("-m", f"hf://{REPO}"),
        ("--hf-repo", REPO, "--hf-file", NAME.upper()),
        ("-hfr", REPO),
    ):
        assert run("generate", *words, *HELLO, env=environment).out == plain
    assert run("-hf", REPO, "--offline", *HELLO, script="mixkv-cli", env=environment).out == plain
    report = json.loads(run("inspect", f"hf://{REPO}/{NAME}", "--json", env=environment).out)
    assert report["path"].endswith(NAME)


def test_a_split_model_of_the_hub_is_the_whole_model(hub: LocalHub, tmp_path: Path) -> None:
    """Links into the cache's blobs, whose names are checksums: parts must be found by the names in the repository."""
    parts = split_model(Path(DEMO), tmp_path, 30)
    hub.put(REPO, {f"q8/{path.name}": path.read_bytes() for path in parts})
    environment = hub.environment(tmp_path / "home")
    assert run("generate", "-hf", REPO, *HELLO, env=environment).out == run("generate", "-m", DEMO, *HELLO).out


def test_load_takes_names_of_the_hub(hub: LocalHub, tmp_path: Path) -> None:
    code = (
        "import mixkv, sys\nseen = []\n"
        "with mixkv.load(sys.argv[1], n_ctx=64, progress=lambda done, total: seen.append((done, total))) as llm:\n"
        "    print(llm.generate('Hello', max_tokens=3, temperature=0.0).text, end='')\n"
        "print(seen[0], file=sys.stderr)\n"
        "try:\n    mixkv.load('hf://a')\nexcept mixkv.ConfigError as error:\n    print(error, file=sys.stderr)\n"
    )
    line = [sys.executable, "-c", code, f"hf://{REPO}:Q8_0"]
    result = run(line=line, env=hub.environment(tmp_path))
    assert result.out.decode() == run("generate", "-m", DEMO, *HELLO).out.decode().removeprefix("Hello").rstrip("\n")
    assert result.err.decode().splitlines()[0] == f"(0, {Path(DEMO).stat().st_size})"
    assert "'hf://a' is no model of the hub" in result.err.decode()


def test_get_prints_the_path_that_m_takes(hub: LocalHub, tmp_path: Path) -> None:
    result = run("get", f"{REPO}:Q8_0", env=hub.environment(tmp_path))
    path = Path(result.out.decode().rstrip("\n"))
    assert (result.status, result.err) == (0, b"")
    assert path.read_bytes() == Path(DEMO).read_bytes() and path.is_relative_to(tmp_path / "hub")
    for words in ((f"{REPO}/{NAME}",), (f"hf://{REPO}",), ("-hf", REPO), (REPO, "-hff", NAME)):
        assert run("get", *words, env=hub.environment(tmp_path)).out.decode().rstrip("\n") == str(path)


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (("generate", "-hf", REPO, "-m", "x.gguf", "-p", "x"), 2, "-hf contradicts -m"),
        (("generate", "-hff", "x.gguf", "-p", "x"), 2, "-hff 'x.gguf' needs -hf USER/REPO"),
        (("generate", "-hf", "demo", "-p", "x"), 2, "'demo' is no model of the hub: write USER/REPO"),
        (("generate", "-hf", f"{REPO}:F16", "-hff", NAME, "-p", "x"), 2, f"contradicts {REPO}:F16"),
        (("generate", "-hf", REPO, "-hff", "../x.gguf", "-p", "x"), 2, "is no model of the hub"),
        (("generate", "-hf", f"{REPO}:Q2_K", "-p", "x"), 1, f"no 'Q2_K' of {REPO}; there is Q8_0, F16"),
        (("generate", "-hf", f"{REPO}:F16", "-p", "x"), 1, "GGUF"),
        (("generate", "-hf", "no/such", "-p", "x"), 1, f"its user has {REPO}"),
        (("generate", "-hf", REPO, "--offline", "-p", "x"), 1, "has nothing of"),
        (("bench", "-hf", REPO, "-m", "x.gguf"), 2, "-hf contradicts -m"),
        (("inspect", "x.gguf", "-hf", REPO), 2, "-hf contradicts -m (or MODEL)"),
        (("inspect", "-hf", REPO, "--cpu"), 2, "give one of MODEL"),
        (("get",), 2, "there is no model to get"),
        (("get", REPO, "-hf", REPO), 2, "-hf contradicts"),
        (("models", "--remove", REPO), 1, f"has nothing of {REPO}"),
        (("models", "--remove", "../.."), 2, "is no model of the hub"),
    ],
)
def test_mistakes_are_one_line(
    hub: LocalHub, tmp_path: Path, words: tuple[str, ...], status: int, complaint: str
) -> None:
    result = run(*words, env=hub.environment(tmp_path))
    assert (result.status, result.out) == (status, b"")
    assert complaint in result.complaint


def test_the_environment_is_that_of_other_programs(hub: LocalHub, tmp_path: Path) -> None:
    """HF_TOKEN, HF_HUB_OFFLINE, HF_HUB_CACHE; no network at all."""
    hub.faults.token = "hf_secret"
    assert "HF_TOKEN" in run("get", REPO, env=hub.environment(tmp_path)).complaint
    token = tmp_path / "token"
    token.write_bytes(b"\xff\xfe")
    assert f"{token}: the token for the hub cannot be read" in run("get", REPO, env=hub.environment(tmp_path)).complaint
    token.write_text("hf_secret\n")
    assert run("get", REPO, env=hub.environment(tmp_path)).status == 0
    token.unlink()
    first = run("get", REPO, env=hub.environment(tmp_path, HF_TOKEN="hf_secret"))
    assert first.status == 0
    assert run("get", REPO, "-hft", "hf_secret", env=hub.environment(tmp_path)).out == first.out
    hub.asked = []
    assert run("get", REPO, env=hub.environment(tmp_path, HF_HUB_OFFLINE="1")).out == first.out
    assert hub.asked == []
    gone = hub.environment(tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert run("get", REPO, env=gone).out == first.out
    elsewhere = run("get", REPO, env={**gone, "HF_HUB_CACHE": str(tmp_path / "other")})
    assert elsewhere.status == 1 and "cannot be reached" in elsewhere.complaint


def test_models_lists_and_removes(hub: LocalHub, tmp_path: Path, demo: bytes) -> None:
    """Gigabytes whose names nobody knows any more; and a removal that leaves the contents frees nothing."""
    environment = hub.environment(tmp_path)
    blobs = tmp_path / "hub" / "models--some-one--demo-GGUF" / "blobs"

    def listed() -> dict[str, int]:
        found = json.loads(run("models", "--json", env=environment).out)
        return {model["name"]: model["nbytes"] for model in found}

    def removed(name: str) -> bytes:
        result = run("models", "--remove", name, env=environment)
        assert (result.status, result.err) == (0, b"")
        return result.out

    assert run("models", env=environment).out.startswith(b"0 models, 0 B, in ")
    hub.put(REPO, {NAME: demo, "demo-F16.gguf": b"f" * 5000, "b/demo-F16.gguf": b"g" * 2000})
    for name in (f"{REPO}:Q8_0", f"{REPO}/demo-F16.gguf", f"{REPO}/b/demo-F16.gguf"):
        assert run("get", name, env=environment).status == 0
    hub.put(REPO, {NAME: demo, "demo-F16.gguf": b"n" * 6000})  # a new commit: the old contents stay
    for name in (f"{REPO}:Q8_0", f"{REPO}:F16"):
        assert run("get", name, env=environment).status == 0
    (blobs / "00.incomplete").write_bytes(b"x" * 4000)
    here = {f"{REPO}:Q8_0": len(demo), f"{REPO}:F16": 11000, f"{REPO}/b/demo-F16.gguf": 2000, REPO: 4000}
    assert listed() == here
    lines = run("models", env=environment).out.decode().splitlines()
    assert [f"{REPO}:Q8_0", "7.9", "MB"] in [line.split() for line in lines]
    assert any("not finished" in line for line in lines)
    assert lines[-1].startswith("3 models, 7.9 MB, in ")
    assert removed(f"{REPO}:f16") == f"{REPO}:f16: 11.0 kB are free again\n".encode()
    del here[f"{REPO}:F16"]
    here[f"{REPO}:F16"] = here.pop(f"{REPO}/b/demo-F16.gguf")  # the one that is left has the name to itself
    assert listed() == here
    assert (
        f"has no 'Q2_K' of {REPO}; there is F16, Q8_0"
        in run("models", "--rm", f"{REPO}:Q2_K", env=environment).complaint
    )
    removed(f"hf://{REPO}")
    assert listed() == {} and not blobs.exists()


def test_without_the_package_one_line_says_what_to_install(tmp_path: Path) -> None:
    for lacking in ("sys.modules['huggingface_hub'] = None", "import huggingface_hub as h; h.__version__ = '0.30.2'"):
        code = f"import sys\n{lacking}\nfrom mixkv.cli.main import main\nsys.exit(main(sys.argv[1:]))"
        result = run(line=[sys.executable, "-c", code, "generate", "-hf", REPO, "-p", "x"])
        assert result.status == 1 and "pip install 'mixkv[hub]'" in result.complaint
        assert run(line=[sys.executable, "-c", code, "generate", "-m", DEMO, *HELLO]).status == 0


def test_the_package_is_imported_for_models_of_the_hub_alone() -> None:
    """Its import takes a tenth of a second and more."""
    code = "import sys, mixkv\nmixkv.load(n_ctx=32)\nprint('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"


def test_ctrl_c_leaves_a_part_that_the_next_run_goes_on_from(hub: LocalHub, tmp_path: Path, demo: bytes) -> None:
    hub.faults.stall_after = 3_000_000
    process = start("get", REPO, env=hub.environment(tmp_path))
    blobs = tmp_path / "hub" / "models--some-one--demo-GGUF" / "blobs"
    assert hub.stalled.wait(30)
    while not (parts := [*blobs.glob("*.incomplete")]) or parts[0].stat().st_size < 3_000_000:
        assert process.poll() is None
    result = interrupt(process)
    assert (result.status, result.out, result.err) == (130, b"", b"")
    hub.faults.stall_after = 0
    hub.asked = []
    assert run("get", REPO, env=hub.environment(tmp_path)).status == 0
    assert hub.ranges() == ["bytes=3000000-"]


def test_a_bar_is_for_terminals(hub: LocalHub, tmp_path: Path) -> None:
    hub.faults.stall_after, hub.faults.stall_seconds = 3_000_000, 1.0
    line = ["env", *(f"{name}={value}" for name, value in hub.environment(tmp_path).items() if name.startswith("HF_"))]
    seen = OnTerminal(line=[*line, sys.executable, "-m", "mixkv", "get", REPO]).end()
    assert seen.status == 0 and f"downloading {REPO}".encode() in seen.err
    assert run("models", "--remove", REPO, env=hub.environment(tmp_path)).status == 0
    quiet = run("get", REPO, env=hub.environment(tmp_path))
    assert (quiet.status, quiet.err) == (0, b"")
