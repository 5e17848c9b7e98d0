"""The streaming detokenizer: whole characters only, and in the end the same text as `decode`."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_vocabs import bpe_metadata, spm_metadata, tokenizer_of

from mixkv.engine.tokenizer import StreamDetokenizer, Tokenizer
from mixkv.kernels.errors import InputError


@pytest.fixture(scope="module", params=["spm", "bpe"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    metadata = spm_metadata(add_space_prefix=False) if request.param == "spm" else bpe_metadata()
    folder: Path = tmp_path_factory.mktemp(request.param)
    return tokenizer_of(folder, metadata)


@given(text=st.text(st.sampled_from("a\u00e9\u20ac\U0001f600\u0e01 \nh")))
def test_never_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    stream = StreamDetokenizer(tokenizer)
    shown = ""
    for token_id in tokenizer.encode(text):
        shown += stream.push(token_id)
        assert text.startswith(shown)  # nothing that would have to be taken back
    assert shown == text and stream.flush() == ""


@given(ids=st.lists(st.integers(0, 271)), skip_special=st.booleans())
def test_all_pieces_together_are_decode(tokenizer: Tokenizer, ids: list[int], skip_special: bool) -> None:
    """Any ids, so also bytes that are not UTF-8 and characters that special tokens interrupt."""
    stream = StreamDetokenizer(tokenizer, skip_special=skip_special)
    pieces = [stream.push(i) for i in ids] + [stream.flush()]
    assert "".join(pieces) == tokenizer.decode(ids, skip_special=skip_special)


def test_a_character_appears_with_its_last_byte(tokenizer: Tokenizer) -> None:
    stream = StreamDetokenizer(tokenizer)
    ids = tokenizer.encode("\u20ac", add_special=False)
    assert len(ids) == 3
    assert [stream.push(i) for i in ids] == ["", "", "\u20ac"]


def test_unfinished_bytes_become_one_replacement_character(tokenizer: Tokenizer) -> None:
    stream = StreamDetokenizer(tokenizer)
    ids = tokenizer.encode("\u20ac", add_special=False)
    assert stream.push(ids[0]) + stream.push(ids[1]) == ""
    assert stream.flush() == "\ufffd"
    assert "".join(map(stream.push, ids)) == "\u20ac"  # a flushed stream begins anew


def test_bad_ids_are_refused_and_do_no_harm(tokenizer: Tokenizer) -> None:
    stream = StreamDetokenizer(tokenizer)
    ids = tokenizer.encode("\u20ac", add_special=False)
    stream.push(ids[0])
    with pytest.raises(InputError):
        stream.push(tokenizer.n_vocab)
    assert stream.push(ids[1]) + stream.push(ids[2]) == "\u20ac"
