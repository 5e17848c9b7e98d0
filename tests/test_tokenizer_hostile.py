"""Vocabularies from strangers: one typed error or a sane result, never another exception or a silent change."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_vocabs import BPE_MERGES, bpe_metadata, spm_metadata, tokenizer_of

from mixkv.engine.tokenizer import StreamDetokenizer
from mixkv.kernels.errors import GGUFError, MixkvError, MixkvWarning, TokenizerError

SPM_TOKENS: list[str] = spm_metadata()["tokenizer.ggml.tokens"]  # type: ignore[assignment]
SPM_TYPES: np.ndarray = spm_metadata()["tokenizer.ggml.token_type"]  # type: ignore[assignment]
SPM_SCORES: np.ndarray = spm_metadata()["tokenizer.ggml.scores"]  # type: ignore[assignment]
BPE_TOKENS: list[str] = bpe_metadata()["tokenizer.ggml.tokens"]  # type: ignore[assignment]
BPE_TYPES: np.ndarray = bpe_metadata()["tokenizer.ggml.token_type"]  # type: ignore[assignment]


def refusal(folder: Path, metadata: dict[str, object], error: type[MixkvError] = TokenizerError) -> str:
    with pytest.raises(MixkvError) as caught:
        tokenizer_of(folder, metadata)
    assert type(caught.value) is error
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


def changed(values: np.ndarray, at: int, value: float) -> np.ndarray:
    copy = values.copy()
    copy[at] = value
    return copy


def test_unknown_kind_of_tokenizer(tmp_path: Path) -> None:
    assert "unknown tokenizer 'bert'" in refusal(tmp_path, spm_metadata(model="bert"))


def test_missing_keys(tmp_path: Path) -> None:
    refusal(tmp_path, spm_metadata(model=None), GGUFError)
    refusal(tmp_path, spm_metadata(tokens=None), GGUFError)
    assert "scores is missing" in refusal(tmp_path, spm_metadata(scores=None))
    assert "merges is missing" in refusal(tmp_path, bpe_metadata(merges=None))


def test_keys_of_the_wrong_type(tmp_path: Path) -> None:
    refusal(tmp_path, spm_metadata(tokens=np.arange(291)), GGUFError)
    refusal(tmp_path, spm_metadata(scores=SPM_SCORES.astype(np.int8)), GGUFError)
    refusal(tmp_path, spm_metadata(token_type=SPM_TYPES.astype(np.int8)), GGUFError)
    refusal(tmp_path, spm_metadata(bos_token_id="<s>"), GGUFError)
    refusal(tmp_path, spm_metadata(add_bos_token=1), GGUFError)
    refusal(tmp_path, bpe_metadata(merges=np.arange(5)), GGUFError)
    refusal(tmp_path, bpe_metadata(pre=7), GGUFError)


def test_lists_that_contradict_each_other(tmp_path: Path) -> None:
    assert "empty" in refusal(tmp_path, spm_metadata(tokens=[]))
    assert "scores has 290 entries for 291 tokens" in refusal(tmp_path, spm_metadata(scores=SPM_SCORES[:-1]))
    assert "token_type has 290" in refusal(tmp_path, spm_metadata(token_type=SPM_TYPES[:-1]))


def test_duplicate_tokens(tmp_path: Path) -> None:
    message = refusal(tmp_path, spm_metadata(tokens=[*SPM_TOKENS[:-1], "he"]))
    assert "b'he' twice (ids 280 and 290)" in message
    assert "twice (ids 104 and 271)" in refusal(tmp_path, bpe_metadata(tokens=[*BPE_TOKENS[:-1], "h"]))


@pytest.mark.parametrize(
    "key", ["bos_token_id", "eos_token_id", "unknown_token_id", "eot_token_id", "fim_pad_token_id"]
)
@pytest.mark.parametrize("number", [291, 32000, 0xFFFFFFFE])
def test_special_ids_outside_the_vocabulary(tmp_path: Path, key: str, number: int) -> None:
    """Vocabularies that were cut keep such ids: the file was refused, llama.cpp warns and takes the default."""
    with pytest.warns(MixkvWarning, match=f"{key} is {number}, but the vocabulary has 291 tokens; using") as caught:
        spm = tokenizer_of(tmp_path, spm_metadata(**{key: number}))
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert (spm.bos_id, spm.eos_id, spm.eog_ids) == (1, 2, {2, 262})


@pytest.mark.parametrize("key", ["bos_token_id", "fim_rep_token_id", "prefix_token_id"])
@pytest.mark.parametrize("value", ["<s>", 1.0, True, np.int32(-1), np.uint64(2**63), np.array([1], np.uint32)])
def test_special_ids_that_are_none(tmp_path: Path, key: str, value: object) -> None:
    assert key in refusal(tmp_path, spm_metadata(**{key: value}), GGUFError)


def test_scores_that_are_not_numbers(tmp_path: Path) -> None:
    assert "NaN" in refusal(tmp_path, spm_metadata(scores=changed(SPM_SCORES, 288, np.nan)))


def test_infinite_scores_are_extreme_scores(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, spm_metadata(scores=changed(SPM_SCORES, 281, np.inf)))
    assert tokenizer.decode(tokenizer.encode("hello")) == " hello"


@pytest.mark.parametrize("text", ["<0x-1>", "<0x100>", "<0x1>", "<0xG0>", "hello", "", "<0x 1>"])
def test_byte_tokens_that_name_no_byte(tmp_path: Path, text: str) -> None:
    tokens = [*SPM_TOKENS[:100], text, *SPM_TOKENS[101:]]
    assert "token 100 is marked as a byte" in refusal(tmp_path, spm_metadata(tokens=tokens))


def test_two_tokens_for_one_byte(tmp_path: Path) -> None:
    tokens = [*SPM_TOKENS[:3], "<0xfF>", *SPM_TOKENS[4:]]
    assert "two tokens for byte 0xFF" in refusal(tmp_path, spm_metadata(tokens=tokens))


def test_tokens_that_are_not_utf8_are_printed_but_never_found(tmp_path: Path) -> None:
    tokens = [token.encode() for token in SPM_TOKENS]
    tokens[290], tokens[260] = b"\xff\xfe", b"\xc3"  # an ordinary and a user-defined token
    spm = tokenizer_of(tmp_path, spm_metadata(tokens=tokens))
    assert spm.piece(290) == b"\xff\xfe" and spm.decode([290]) == "\ufffd\ufffd"
    assert spm.encode("<tool>\u00e9", add_special=False)[:2] == [263, 276]
    tokens = [token.encode() for token in BPE_TOKENS]
    tokens[263] = b"\xff"
    bpe = tokenizer_of(tmp_path, bpe_metadata(tokens=tokens, merges=BPE_MERGES[:7]))
    assert bpe.piece(263) == b"\xff" and bpe.decode(bpe.encode("\u00ff")) == "\u00ff"


def test_empty_tokens_stand_in_no_text(tmp_path: Path) -> None:
    tokens = [*SPM_TOKENS]
    tokens[260] = tokens[262] = tokens[290] = ""
    spm = tokenizer_of(tmp_path, spm_metadata(tokens=tokens))
    assert spm.decode(spm.encode("<tool> hello", parse_special=True)) == " <tool> hello"
    assert spm.piece(290) == b"" and spm.token_to_id("") is None


@pytest.mark.parametrize("kind", [1, 5])
def test_bytes_marked_as_ordinary_tokens_are_bytes(tmp_path: Path, kind: int) -> None:
    types = np.where(SPM_TYPES == 6, kind, SPM_TYPES).astype(np.int32)
    spm = tokenizer_of(tmp_path, spm_metadata(token_type=types))
    assert spm.encode("\u00e9") == [1, 263, 198, 172]
    assert spm.decode([198, 172]) == "\u00e9"


def test_missing_types_are_guessed(tmp_path: Path) -> None:
    spm = tokenizer_of(tmp_path, spm_metadata(token_type=None))
    assert spm.encode("\u00e9") == [1, 263, 198, 172] and spm.decode([1, 287, 2, 0]) == " hello"
    bpe = tokenizer_of(tmp_path, bpe_metadata(token_type=None))
    assert bpe.is_control(268) and bpe.eog_ids == {268, 269}


def test_merges_that_name_unknown_tokens(tmp_path: Path) -> None:
    for merge, missing in [("h zz", "zz"), ("zz h", "zz"), ("h h", "hh"), ("he l lo", "l lo")]:
        message = refusal(tmp_path, bpe_metadata(merges=[*BPE_MERGES, merge]))
        assert f"merge {len(BPE_MERGES)} " in message and f"names the token '{missing}'" in message


@pytest.mark.parametrize("merge", ["", " ", "he", "he ", " he"])
def test_merges_that_are_no_pairs(tmp_path: Path, merge: str) -> None:
    assert "instead of two tokens" in refusal(tmp_path, bpe_metadata(merges=[*BPE_MERGES, merge]))


def test_merges_of_halves_that_no_text_reaches_do_no_harm(tmp_path: Path) -> None:
    """What they build exists, so nothing is missing: such a merge never comes to its turn."""
    tokens, types = [*BPE_TOKENS, "h\u0120zz", "<tool>rx"], np.append(BPE_TYPES, [1, 1]).astype(np.int32)
    merges = ["h \u0120zz", "<tool>r x", *BPE_MERGES]
    bpe = tokenizer_of(tmp_path, bpe_metadata(tokens=tokens, token_type=types, merges=merges))
    plain = tokenizer_of(tmp_path, bpe_metadata())
    for text in ("hello", "h zz", "<tool>rx"):
        assert bpe.encode(text) == plain.encode(text)


def test_merges_never_build_a_control_token(tmp_path: Path) -> None:
    """A file whose merges make `hello` and whose types call it a control token would let users write it."""
    types = changed(BPE_TYPES, 259, 3)
    for pre in ("gpt-2", "llama-bpe"):
        bpe = tokenizer_of(tmp_path, bpe_metadata(token_type=types, pre=pre, merges=BPE_MERGES[:4]))
        assert bpe.encode("hello", add_special=False) == [258, ord("o")]
        assert bpe.encode("hello", add_special=False, parse_special=True) == [259]


def test_spm_never_builds_a_control_token(tmp_path: Path) -> None:
    spm = tokenizer_of(tmp_path, spm_metadata(token_type=changed(SPM_TYPES, 287, 3)))
    assert 287 not in spm.encode("hello")
    assert spm.encode("\u2581hello", parse_special=True) == [1, 287]


@pytest.mark.parametrize("pre", ["no-such-rule", None])
def test_unknown_pre_tokenizer_warns_and_uses_the_default(tmp_path: Path, pre: str | None) -> None:
    with pytest.warns(MixkvWarning, match="using 'default'") as caught:
        bpe = tokenizer_of(tmp_path, bpe_metadata(pre=pre))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        default = tokenizer_of(tmp_path, bpe_metadata(pre="default"))
    text = "hello 1234 wor<=>ld"
    assert bpe.encode(text) == default.encode(text)


@pytest.mark.parametrize("char", [" ", "a", "7", "\n", "!", "\u00e9", "\0"])
@pytest.mark.parametrize("kind", ["spm", "bpe"])
def test_long_runs_take_no_time(tmp_path: Path, kind: str, char: str) -> None:
    """Neither the expressions nor the merging may be quadratic: 100,000 characters take milliseconds."""
    metadata = spm_metadata(add_space_prefix=False) if kind == "spm" else bpe_metadata(pre="qwen2")
    tokenizer = tokenizer_of(tmp_path, metadata)
    text = char * 100_000
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data(), kind=st.sampled_from(["spm", "bpe"]))
@pytest.mark.filterwarnings("ignore::mixkv.kernels.errors.MixkvWarning")
def test_random_damage_gives_a_typed_error_or_a_working_tokenizer(
    tmp_path: Path, data: st.DataObject, kind: str
) -> None:
    metadata = spm_metadata() if kind == "spm" else bpe_metadata(merges=BPE_MERGES[:2])
    tokens = [token.encode() for token in metadata["tokenizer.ggml.tokens"]]  # type: ignore[attr-defined]
    at = st.integers(0, len(tokens) - 1)
    text = st.sampled_from([b"", b"\xff", b"<0x41>", b"<0x-1>", b"he", b"\0", b" ", b"<", "\u2581".encode(), b"</s>"])
    for i, token in data.draw(st.lists(st.tuples(at, text), max_size=4)):
        tokens[i] = token
    metadata["tokenizer.ggml.tokens"] = tokens
    types = metadata["tokenizer.ggml.token_type"].copy()  # type: ignore[attr-defined]
    for i, value in data.draw(st.lists(st.tuples(at, st.integers(-1, 7)), max_size=4)):
        types[i] = value
    metadata["tokenizer.ggml.token_type"] = types
    if kind == "spm":
        scores = SPM_SCORES.copy()
        for i, bits in data.draw(st.lists(st.tuples(at, st.integers(0, 2**32 - 1)), max_size=4)):
            scores[i] = struct.unpack("<f", struct.pack("<I", bits))[0]
        metadata["tokenizer.ggml.scores"] = scores
    try:
        tokenizer = tokenizer_of(tmp_path, metadata)
        ids = tokenizer.encode("hello <tool>wor\nld\u00e9 <|im_end|>", parse_special=data.draw(st.booleans()))
    except MixkvError:
        return
    assert all(0 <= i < tokenizer.n_vocab for i in ids)
    stream = StreamDetokenizer(tokenizer)
    assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids)
