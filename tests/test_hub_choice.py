"""What a model's name means, and which files of a repository it is; no network, no disk."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixkv.engine.hub.choice import candidates, choose
from mixkv.engine.hub.reference import Reference, is_safe
from mixkv.kernels.errors import ConfigError, HubError

FULL = ["m-BF16.gguf", "m-F16.gguf", "m-IQ4_XS.gguf", "m-Q2_K.gguf", "m-Q4_0.gguf", "m-Q4_K_M.gguf", "m-Q4_K_S.gguf",
        "m-Q8_0.gguf", "m-UD-Q4_K_XL.gguf", "mmproj-Q4_K_M.gguf", "mtp-m-Q4_K_M.gguf", "imatrix.gguf"]  # fmt: skip


def chosen(names: list[str], quant: str | None = None, file: str | None = None) -> str:
    return choose(names, Reference("a/b", quant, file), "the hub").name


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("hf://a/b", Reference("a/b")),
        ("a/b", Reference("a/b")),
        ("hf://Qwen/Qwen2.5-0.5B-Instruct-GGUF:q4_k_m", Reference("Qwen/Qwen2.5-0.5B-Instruct-GGUF", "q4_k_m")),
        ("a/b:latest", Reference("a/b")),
        ("a/b:UD-Q4_K_XL", Reference("a/b", "UD-Q4_K_XL")),
        ("hf://a/b/c.gguf", Reference("a/b", file="c.gguf")),
        ("a/b/sub folder/c-00001-of-00002.GGUF", Reference("a/b", file="sub folder/c-00001-of-00002.GGUF")),
    ],
)
def test_the_ways_to_name_a_model(text: str, reference: Reference) -> None:
    assert Reference.parse(text) == reference
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    "text",
    ["", "a", "hf://", "/b", "a/", "a/b:", "a/b:x/y", "a/b:Q4/c.gguf", "a/b/c.bin", "a/b/../c.gguf", "a/b//c.gguf",
     "../b", "a/..", "a--b/c", "a/b--c", "a/.b", "a b/c", "https://x.y/a/b", "a/b/c\x00.gguf", "hf://hf://a/b",
     "a/b:Q4 K", "a/" + "b" * 300, "a/b\n", "ä/b"],
)  # fmt: skip
def test_what_is_no_name_is_said_to_be_none(text: str) -> None:
    """A name becomes a folder of the cache: two dashes would make it another model's, dots would lead out."""
    with pytest.raises(ConfigError, match=r"write USER/REPO, USER/REPO:QUANT or USER/REPO/FILE.gguf"):
        Reference.parse(text)


@given(st.text(max_size=40))
def test_a_safe_name_stays_within_its_folder(name: str) -> None:
    parts = name.split("/")
    if is_safe(name):
        assert not name.startswith("/") and ".." not in parts and "" not in parts and "\0" not in name
        name.encode()


@pytest.mark.parametrize(
    ("quant", "name"),
    [
        (None, "m-Q4_K_M.gguf"), ("Q4_K_M", "m-Q4_K_M.gguf"), ("q8_0", "m-Q8_0.gguf"), ("F16", "m-F16.gguf"),
        ("bf16", "m-BF16.gguf"), ("Q4_K_S", "m-Q4_K_S.gguf"), ("IQ4_XS", "m-IQ4_XS.gguf"), ("UD-Q4_K_XL", FULL[8]),
        ("Q4_K_XL", FULL[8]),
    ],
)  # fmt: skip
def test_a_quantization_is_found_by_its_whole_name(quant: str | None, name: str) -> None:
    """F16 within BF16, Q4_K within Q4_K_M: another file than asked for, and nobody would notice."""
    assert chosen(FULL, quant) == name
    assert chosen(FULL[::-1], quant) == name, "whatever the order of the listing"


@pytest.mark.parametrize("quant", ["Q4_K", "4_0", "0", "XS", "K_M", "Q3_K_M", ".*", "gguf"])
def test_half_a_name_of_a_quantization_is_none(quant: str) -> None:
    with pytest.raises(HubError, match=r"there is BF16, F16, IQ4_XS, Q2_K, Q4_0, Q4_K_M, Q4_K_S, Q8_0, UD-Q4_K_XL$"):
        chosen(FULL, quant)


@pytest.mark.parametrize(
    ("names", "name"),
    [
        (["m-BF16.gguf", "m-Q4_0.gguf", "m-Q8_0.gguf"], "m-Q8_0.gguf"),
        (["m-BF16.gguf", "m-IQ4_XS.gguf", "m-Q4_K_S.gguf", "m-Q5_K_M.gguf"], "m-Q4_K_S.gguf"),
        (["m-BF16.gguf", "m-Q2_K.gguf", "m-Q3_K_M.gguf", "m-Q5_K_M.gguf"], "m-Q5_K_M.gguf"),
        (["m-BF16.gguf", "m-Q2_K.gguf"], "m-Q2_K.gguf"),
        (["m-f16.gguf", "m.gguf"], "m-f16.gguf"),
        (["any name.gguf", "mmproj-any-Q4_K_M.gguf"], "any name.gguf"),
        (["a.Q4_K_M.gguf", "b.Q4_K_M.gguf"], "a.Q4_K_M.gguf"),
        (["Q4_K_M/m-00001-of-00002.gguf", "Q4_K_M/m-00002-of-00002.gguf", "Q8_0.gguf"], "Q4_K_M/m-00001-of-00002.gguf"),
    ],
)  # fmt: skip
def test_without_a_word_it_is_the_usual_one_or_the_nearest(names: list[str], name: str) -> None:
    """The first by name would often be BF16: four times the download, and slower."""
    assert chosen(names) == name


def test_another_word_of_a_name_serves_as_well() -> None:
    """As in llama.cpp: of a repository with several models one can be named."""
    names = ["coder-instruct_q4_0.gguf", "coder-base_q4_0.gguf", "x-special.gguf"]
    assert chosen(names, "special") == names[2]
    assert chosen(names, "q4_0") == names[1]


def test_files_beside_a_model_are_taken_only_by_name() -> None:
    with pytest.raises(HubError, match=r"no GGUF model of a/b; there is mmproj-x-F16.gguf"):
        chosen(["mmproj-x-F16.gguf"])
    assert chosen(["mmproj-x-F16.gguf"], file="MMPROJ-x-f16.gguf") == "mmproj-x-F16.gguf"


def test_parts_are_one_model_in_their_order() -> None:
    names = [f"m-Q8_0-{i:05d}-of-00011.gguf" for i in range(1, 12)]
    names += ["m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf", "n-Q8_0-00001-of-00011.gguf"]
    found = {model.name: len(model.files) for model in candidates(names[::-1])}
    assert found == {"m-Q8_0-00001-of-00011.gguf": 11, "m-Q8_0-00001-of-00002.gguf": 2, names[-1]: 1}
    by_part = choose(names, Reference("a/b", file=names[6]), "the hub")
    assert by_part.files == tuple(names[:11])


def test_a_message_does_not_grow_with_the_repository() -> None:
    names = [f"{i:04d}-F32.x{i}.gguf" for i in range(5000)]
    with pytest.raises(HubError) as caught:
        chosen(names, file="nothing.gguf")
    assert len(str(caught.value)) < 2000 and "and 4960 more" in str(caught.value)
