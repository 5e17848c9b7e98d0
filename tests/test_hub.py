"""Getting a model of the hub: what is downloaded, where it lies, what is kept of it where something breaks off."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import LocalHub
from hub_tools import DATA, FILES, PARTS, Q4, REPO, blobs, digest, get, refused

from mixkv.engine.hub.client import Hub
from mixkv.engine.hub.inventory import remove
from mixkv.engine.hub.reference import Reference
from mixkv.kernels.errors import MixkvWarning


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with LocalHub() as server:
        server.put(REPO, FILES)
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_a_model_is_downloaded_once_and_lies_where_other_programs_find_it(hub: LocalHub, cache: Path) -> None:
    """A cache of one's own would download everything a second time; another layout would break the shared one."""
    from huggingface_hub import scan_cache_dir, try_to_load_from_cache

    seen: list[tuple[int, int]] = []
    mine = Hub(endpoint=hub.url, cache=cache)
    path = mine.get(Reference.parse(REPO), lambda done, total: seen.append((done, total)))
    assert path.name == Q4 and path.read_bytes() == DATA
    assert seen[0] == (0, len(DATA)) and seen[-1] == (len(DATA), len(DATA)) and seen == sorted(seen)
    assert get(hub, cache) == path and len(hub.ranges()) == 1
    assert try_to_load_from_cache(REPO, Q4, cache_dir=cache) == str(path)
    found = scan_cache_dir(cache)
    assert not found.warnings and [repo.repo_id for repo in found.repos] == [REPO]
    assert blobs(cache) == {digest(Q4): len(DATA)}


def test_what_another_program_downloaded_is_not_downloaded_again(hub: LocalHub, cache: Path) -> None:
    path = get(hub, cache)
    path.unlink()  # its contents are there, under another commit's name
    assert get(hub, cache) == path and path.read_bytes() == DATA
    assert len(hub.ranges()) == 1


def test_a_small_file_is_checked_by_the_checksum_of_git(hub: LocalHub, cache: Path) -> None:
    assert get(hub, cache, f"{REPO}:Q2_K").read_bytes() == b"small"


def test_a_split_model_comes_whole_whichever_part_is_named(hub: LocalHub, cache: Path) -> None:
    """One part alone could not be loaded; parts put elsewhere than side by side neither."""
    path = get(hub, cache, f"{REPO}/{PARTS.format(2)}")
    assert path.name == PARTS.format(1).removeprefix("big/")
    for i in (1, 2, 3):
        assert (path.parent / Path(PARTS.format(i)).name).read_bytes() == FILES[PARTS.format(i)]
    assert get(hub, cache, f"{REPO}:f16") == path


@pytest.mark.parametrize("breaks", [1, 4])
def test_a_download_that_breaks_off_goes_on_where_it_ended(hub: LocalHub, cache: Path, breaks: int) -> None:
    hub.faults.break_after, hub.faults.breaks = 70_000, breaks
    assert get(hub, cache).read_bytes() == DATA
    begins = [int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0 for asked in hub.ranges()]
    assert len(begins) == breaks + 1 and begins == sorted(set(begins)), "each begins further on"
    assert blobs(cache) == {digest(Q4): len(DATA)}


def test_what_a_broken_download_left_is_used_by_the_next_run(hub: LocalHub, cache: Path) -> None:
    """Four gigabytes again for the last megabyte; the library's own download would throw the part away."""
    hub.faults.break_after = 100_000
    mine = Hub(endpoint=hub.url, cache=cache, pause=0.0)
    part = f"{digest(Q4)}.incomplete"

    def leave(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mine.get(Reference.parse(REPO), leave)
    kept = blobs(cache)[part]
    assert 0 < kept < len(DATA)
    hub.faults.break_after = 1  # not a byte comes
    message = refused(hub, cache)
    assert f"broke off after {kept} of {len(DATA)} bytes" in message and "goes on from there" in message
    assert blobs(cache) == {part: kept}
    hub.faults.break_after, hub.asked = 0, []
    assert get(hub, cache).read_bytes() == DATA
    assert hub.ranges() == [f"bytes={kept}-"]


def test_a_server_that_knows_no_ranges_begins_again(hub: LocalHub, cache: Path) -> None:
    """Appended to what there was, the file would be damaged each time."""
    hub.faults.break_after, hub.faults.breaks, hub.faults.no_ranges = 70_000, 1, True
    assert get(hub, cache).read_bytes() == DATA


@pytest.mark.parametrize("no_ranges", [False, True])
def test_a_file_that_is_shorter_than_its_listing_is_given_up(hub: LocalHub, cache: Path, no_ranges: bool) -> None:
    """Asked for what it does not have, the hub says so; begun again each time, the download would never end."""
    hub.faults.sizes, hub.faults.no_ranges = {Q4: len(DATA) + 1}, no_ranges
    assert "broke off after" in refused(hub, cache)
    assert len(hub.ranges()) < 10


@pytest.mark.parametrize("left", [b"x" * 400_000, b""])
def test_a_part_that_cannot_be_of_this_file_is_begun_again(hub: LocalHub, cache: Path, left: bytes) -> None:
    path = cache / f"models--{REPO.replace('/', '--')}" / "blobs" / f"{digest(Q4)}.incomplete"
    path.parent.mkdir(parents=True)
    path.write_bytes(left)
    assert get(hub, cache).read_bytes() == DATA


@pytest.mark.parametrize("trouble", ["another checksum", "more bytes", "a false beginning", "fewer bytes announced"])
def test_damaged_contents_are_removed_and_never_get_a_name(hub: LocalHub, cache: Path, trouble: str) -> None:
    """Half a model, or somebody else's, would be loaded and give nonsense."""
    if trouble == "another checksum":
        hub.faults.digests = {Q4: "0" * 64}
    elif trouble == "more bytes":
        hub.faults.surplus = b"more"
    elif trouble == "fewer bytes announced":
        hub.faults.sizes = {Q4: len(DATA) - 1000}
    else:
        path = cache / f"models--{REPO.replace('/', '--')}" / "blobs" / f"{digest(Q4)}.incomplete"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" * 1000)
    message = refused(hub, cache)
    assert Q4 in message and "arrived damaged" in message
    assert blobs(cache) == {} and not [*cache.glob("**/*.gguf")]
    hub.faults = type(hub.faults)()
    assert get(hub, cache).read_bytes() == DATA, "and a second try is not spoilt by the first"


def test_contents_without_an_end_do_not_fill_the_disk(hub: LocalHub, cache: Path) -> None:
    """All that a server sends would be written before its size is seen to be wrong."""
    hub.faults.surplus = bytes(30_000_000)
    found = re.search(r"its (\d+) bytes", refused(hub, cache))
    assert found is not None and len(DATA) < int(found[1]) < len(DATA) + 1_000_000


def test_a_file_of_the_wrong_size_in_the_cache_is_replaced(hub: LocalHub, cache: Path) -> None:
    """A copy that was cut off on the way would stay the model for ever."""
    path = get(hub, cache)
    path.resolve().write_bytes(DATA[:1000])
    assert get(hub, cache) == path and path.read_bytes() == DATA


def test_room_is_asked_for_before_the_first_byte(hub: LocalHub, cache: Path) -> None:
    hub.faults.sizes = {Q4: 1 << 60}
    message = refused(hub, cache)
    assert "1152921504.61 GB more" in message and str(cache) in message and "HF_HOME" in message
    assert hub.ranges() == [] and blobs(cache) == {}


def test_a_disk_that_is_full_in_the_middle_keeps_what_there_is(hub: LocalHub, cache: Path) -> None:
    """The limit of a process on the size of its files stands for the disk: the same call fails in the same place."""
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from mixkv.engine.hub.client import Hub\n"
        "from mixkv.engine.hub.reference import Reference\n"
        "from mixkv.kernels.errors import HubError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    Hub(endpoint=sys.argv[1], cache=Path(sys.argv[2])).get(Reference.parse(sys.argv[3]))\n"
        "except HubError as error:\n    print(error)\n"
    )
    line = [sys.executable, "-c", code, hub.url, str(cache), REPO]
    done = subprocess.run(line, capture_output=True, text=True, check=True, env=hub.environment(cache))
    assert "cannot write" in done.stdout and f"100000 of {len(DATA)} bytes of {Q4} were kept" in done.stdout
    assert done.stdout.count("\n") == 1 and not done.stderr
    hub.asked = []
    assert get(hub, cache).read_bytes() == DATA and hub.ranges() == ["bytes=100000-"]


def test_without_a_network_it_is_what_the_cache_has(hub: LocalHub, cache: Path) -> None:
    """On a train, a model that is on the disk must load; one that is not must be answered with those that are."""
    path = get(hub, cache, f"{REPO}:Q8_0")
    with LocalHub() as gone:
        pass
    with pytest.warns(MixkvWarning, match="cannot be reached: .*; the model is taken from the cache"):
        assert get(gone, cache) == path, "Q4_K_M is not there, the nearest is"
    hub.asked = []
    assert get(hub, cache, f"{REPO}:q8_0", offline=True) == path
    assert f"has no 'Q4_K_M' of {REPO}; there is Q8_0" in refused(hub, cache, f"{REPO}:Q4_K_M", offline=True)
    message = refused(hub, cache, "no/such", offline=True)
    assert "has nothing of no/such" in message and REPO in message
    assert hub.asked == [], "offline is offline"
    message = refused(gone, cache, "no/such")
    assert "cannot be reached" in message and "has nothing of no/such" in message


def test_an_older_commit_in_the_cache_serves_where_the_newest_lacks_the_file(hub: LocalHub, cache: Path) -> None:
    path = get(hub, cache, f"{REPO}:Q8_0")
    hub.put(REPO, {**FILES, Q4: DATA[:2000]})
    assert get(hub, cache, f"{REPO}:Q4_K_M").read_bytes() == DATA[:2000]
    assert get(hub, cache, f"{REPO}:Q8_0", offline=True) == path


def test_what_was_the_newest_when_last_asked_is_what_the_cache_gives(hub: LocalHub, cache: Path) -> None:
    """A model that its maker took back would return as soon as the network is gone."""
    first = get(hub, cache)
    hub.put(REPO, {**FILES, Q4: DATA[:2000]})
    assert get(hub, cache) != first
    hub.put(REPO, FILES)
    assert get(hub, cache) == first
    os.utime(first.parent, (0, 0))
    assert get(hub, cache, offline=True) == first


def test_a_removal_leaves_what_another_name_needs(hub: LocalHub, cache: Path) -> None:
    """The same contents under two names are there once."""
    hub.put(REPO, {Q4: DATA, "copy-Q4_0.gguf": DATA})
    path, other = get(hub, cache), get(hub, cache, f"{REPO}:Q4_0")
    assert len(hub.ranges()) == 1
    assert remove(cache, Reference.parse(f"{REPO}:q4_0")) == 0
    assert path.read_bytes() == DATA and not other.is_symlink()
    assert remove(cache, Reference.parse(f"{REPO}:q4_k_m")) == len(DATA)
    assert blobs(cache) == {}


def test_a_new_commit_with_the_same_contents_costs_no_download(hub: LocalHub, cache: Path) -> None:
    first = get(hub, cache)
    hub.put(REPO, {**FILES, "README.md": b"new"})
    second = get(hub, cache)
    assert second != first and second.read_bytes() == DATA and len(hub.ranges()) == 1
