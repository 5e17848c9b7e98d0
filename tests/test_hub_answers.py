"""What the hub answers: names that are wrong or hostile, refusals, tokens; and a cache that cannot be used."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import LocalHub
from hub_tools import DATA, FILES, PARTS, Q4, Q8, REPO, get, refused

from mixkv.engine.hub.client import Hub
from mixkv.engine.hub.reference import Reference
from mixkv.kernels.errors import HubError, MixkvWarning


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with LocalHub() as server:
        server.put(REPO, FILES)
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (f"{REPO}:Q9", f"the hub has no 'Q9' of {REPO}; there is F16, Q2_K, Q4_K_M, Q8_0"),
        (f"{REPO}/tiny.gguf", f"the hub has no file 'tiny.gguf' of {REPO}; there is big/tiny-F16-00001-of-00003.gguf,"),
        (
            "some-one/Tiny.Model",
            f"no model some-one/Tiny.Model that this user may see (its user has {REPO}",
        ),
    ],
)
def test_a_wrong_name_is_answered_with_the_names_there_are(hub: LocalHub, cache: Path, name: str, words: str) -> None:
    assert words in refused(hub, cache, name)


def test_a_repository_without_models_says_so(hub: LocalHub, cache: Path) -> None:
    hub.put(REPO, {"model.safetensors": DATA})
    assert "there is no GGUF file at all" in refused(hub, cache)


def test_a_split_model_that_lacks_a_part_is_not_begun(hub: LocalHub, cache: Path) -> None:
    hub.put(REPO, {name: data for name, data in FILES.items() if name != PARTS.format(2)})
    message = refused(hub, cache, f"{REPO}:F16")
    assert "the hub has 2 of 3 parts" in message and ": 2 missing" in message
    assert hub.ranges() == []


def test_names_that_lead_out_of_the_cache_are_no_names(hub: LocalHub, cache: Path) -> None:
    """A repository is a stranger's: its names must not write to the user's files."""
    bad = ["../../../evil-Q4_K_M.gguf", "/tmp/evil-Q4_K_M.gguf", "a/../../../b-Q4_K_M.gguf", "a\\b-Q4_K_M.gguf"]
    bad += ["a//b-Q4_K_M.gguf", "a\x00-Q4_K_M.gguf", "a\x1b[2J-Q4_K_M.gguf", "x" * 300 + "-Q4_K_M.gguf", "\ud800.gguf"]
    hub.put(REPO, dict.fromkeys(bad, DATA))
    assert "there is no GGUF file at all" in refused(hub, cache)
    hub.put(REPO, dict.fromkeys([*bad, Q8], DATA))
    assert get(hub, cache).name == Q8
    outside = {path for path in cache.parent.rglob("*") if cache not in (path, *path.parents)}
    assert outside == set()


@pytest.mark.parametrize("sha", ["../../../../evil", "main", "A" * 40])
def test_a_commit_that_is_none_is_no_folder(hub: LocalHub, cache: Path, sha: str) -> None:
    hub.faults.sha = sha
    assert "is no hub" in refused(hub, cache)
    assert not cache.exists()


@pytest.mark.parametrize("digest", ["../../../evil", "", "z" * 64])
def test_a_checksum_that_is_none_is_no_file(hub: LocalHub, cache: Path, digest: str) -> None:
    hub.faults.digests = {Q4: digest}
    assert "no checksum of tiny-Q4_K_M.gguf" in refused(hub, cache)
    assert not cache.exists()


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'"x"', b'{"id": 1, "siblings": 3, "sha": null}'])
def test_what_is_no_hub_gets_one_line(hub: LocalHub, cache: Path, body: bytes) -> None:
    hub.faults.api_body = body
    assert "is no hub; HF_ENDPOINT says where the hub is" in refused(hub, cache)


def test_answers_of_the_hub_get_one_line(hub: LocalHub, cache: Path) -> None:
    hub.faults.gated = True
    assert f"{hub.url}/{REPO} is open to those alone who accepted its terms" in refused(hub, cache)
    hub.faults = type(hub.faults)(api_status=503)
    assert "the hub answered 503" in refused(hub, cache)
    hub.faults = type(hub.faults)(status=503)
    assert "broke off after 0 of" in (message := refused(hub, cache)) and "the hub answered 503" in message
    assert len(hub.ranges()) == 5
    hub.faults = type(hub.faults)(status=403)
    assert f"{Q4} cannot be downloaded: " in refused(hub, cache)
    assert len(hub.ranges()) == 6, "no is no, it is not asked again"


def test_a_token_is_sent_to_the_hub_and_to_nobody_else(hub: LocalHub, cache: Path) -> None:
    """Contents lie on other servers, which must not learn it."""
    hub.faults.token = "hf_secret"
    assert "a private one needs HF_TOKEN" in refused(hub, cache, token="hf_wrong")
    with LocalHub() as other:
        other.put(REPO, FILES)
        hub.faults.elsewhere = other.url
        assert get(hub, cache, token="hf_secret").read_bytes() == DATA
        assert [headers.get("authorization") for _, _, headers in other.asked] == [None]


@pytest.mark.parametrize("token", ["hf_sec\nret", "hf_sécret", "hf_sec ret"])
def test_a_token_that_cannot_be_sent_is_not_shown(hub: LocalHub, cache: Path, token: str) -> None:
    """The HTTP library would print it with the header that it refuses."""
    assert "cret" not in (message := refused(hub, cache, token=token)) and "HF_TOKEN" in message
    assert hub.asked == []


@pytest.mark.parametrize("endpoint", ["nonsense", "http://[x", "ftp://127.0.0.1", "http://127.0.0.1:9/a b"])
def test_an_address_that_is_none_is_one_line(cache: Path, endpoint: str) -> None:
    with pytest.raises(HubError, match=r"cannot be reached|is no hub") as caught:
        Hub(endpoint=endpoint, cache=cache).get(Reference.parse(REPO))
    assert endpoint in str(caught.value) and "\n" not in str(caught.value)


def test_two_at_once_download_it_once(hub: LocalHub, cache: Path) -> None:
    """Two that append to one part would spoil it for each other."""
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(get(hub, cache))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and found[0].read_bytes() == DATA and len(hub.ranges()) == 1


def test_a_cache_that_cannot_be_written_serves_what_it_has(hub: LocalHub, cache: Path) -> None:
    """Models that an administrator got for all; a file where a folder is to be stands for what may not be written."""
    path = get(hub, cache)
    assert get(hub, cache) == path
    hub.put(REPO, {**FILES, "README.md": b"new"})
    (cache / path.parts[-4] / "snapshots" / hub.commit(REPO)).write_bytes(b"in the way")
    with pytest.warns(MixkvWarning, match=r"the cache cannot be used: .*; the model is taken from the cache"):
        assert get(hub, cache) == path
    assert "the cache cannot be used" in refused(hub, cache, f"{REPO}:Q8_0")


def test_a_cache_that_is_no_folder_is_one_line(hub: LocalHub, cache: Path) -> None:
    cache.write_text("a file")
    assert "the cache cannot be used" in refused(hub, cache)
