"""Which tokens begin, end and steer a text: those that a file names, llama.cpp's defaults, and those known by text.

Know before you change this room: files often name only one of the tokens that end a generation, so llama.cpp knows the
others by their text, and so do we. A token that a file names (`tokenizer.ggml.fim_pad_token_id`) takes the place of
those with one of its texts. docs/metadata.md has the table of keys.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Set

from mixkv.kernels.errors import MixkvWarning
from mixkv.models.gguf import GGUFFile

NO_ID = 0xFFFF_FFFF  # how files write "there is no such token"

KEYS: dict[str, tuple[str, ...]] = {
    "bos": ("bos_token_id",),
    "eos": ("eos_token_id",),
    "eot": ("eot_token_id",),
    "eom": ("eom_token_id",),
    "unknown": ("unknown_token_id",),
    "fim_pre": ("fim_pre_token_id", "prefix_token_id"),
    "fim_suf": ("fim_suf_token_id", "suffix_token_id"),
    "fim_mid": ("fim_mid_token_id", "middle_token_id"),
    "fim_pad": ("fim_pad_token_id",),
    "fim_rep": ("fim_rep_token_id",),
    "fim_sep": ("fim_sep_token_id",),
}
"""What a token is for, and the keys below `tokenizer.ggml.` that name it; where there are several the last counts."""

DEFAULT_IDS: dict[str, dict[str, int]] = {"llama": {"bos": 1, "eos": 2, "unknown": 0}, "gpt2": {"bos": 11, "eos": 11}}
"""For each kind of vocabulary the ids where the file is silent."""
WITHOUT_BOS = frozenset({"glm4", "glm5", "chatglm-bpe"})  # pre-tokenizers whose vocabularies have no BOS by default

ENDING = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
"""Tokens that end a generation; in code models padding, the next repository and the next file are among them."""


def _texts(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Texts of tokens that end a generation, whatever the metadata says.
END_TEXTS = _texts(
    """
    <|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|calls|> <|flush|> <end_of_turn> <|endoftext|> </s> <|eom_id|>
    <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> [e~[
    <\uff5cend\u2581of\u2581sentence\uff5c>
    """
)
# Texts of tokens that steer the model although files sometimes mark them as ordinary ones.
FIM_TEXTS: dict[str, frozenset[str]] = {
    "fim_pre": _texts(
        "<|fim_prefix|> <fim-prefix> <fim_prefix> <PRE> \u2581<PRE> <\uff5cfim\u2581begin\uff5c> <|code_prefix|> "
        "<|prefix|>"
    ),
    "fim_suf": _texts(
        "<|fim_suffix|> <fim-suffix> <fim_suffix> <SUF> \u2581<SUF> <\uff5cfim\u2581hole\uff5c> <|code_suffix|> "
        "<|suffix|>"
    ),
    "fim_mid": _texts(
        "<|fim_middle|> <fim-middle> <fim_middle> <MID> \u2581<MID> <\uff5cfim\u2581end\uff5c> <|code_middle|> "
        "<|middle|>"
    ),
    "fim_pad": _texts("<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]"),
    "fim_rep": _texts("<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>"),
    "fim_sep": frozenset({"<|file_sep|>"}),
}


def read_special_ids(gguf: GGUFFile, model: str, pre: str | None, n_vocab: int) -> dict[str, int]:
    """What each special token is for -> its id, as the file says or by default.

    An id outside the vocabulary is left out with a MixkvWarning. Raises GGUFError for what is no id at all.
    """
    ids = {role: i for role, i in DEFAULT_IDS.get(model, {}).items() if i < n_vocab}
    if pre in WITHOUT_BOS:
        ids.pop("bos", None)
    for role, names in KEYS.items():
        for key in (f"tokenizer.ggml.{name}" for name in names):
            number = gguf.uint(key, NO_ID)
            if number < n_vocab:
                ids[role] = number
            elif number != NO_ID:
                instead = f"{ids[role]} instead" if role in ids else "none"
                warnings.warn(
                    f"{gguf.path}: {key} is {number}, but the vocabulary has {n_vocab} tokens; using {instead}",
                    MixkvWarning,
                    stacklevel=2,
                )
    return ids


def steering_ids(
    ids: Mapping[bytes, int], special: Mapping[str, int], user_defined: Set[int]
) -> tuple[set[int], frozenset[int]]:
    """The ids that are control tokens because of their text, and all that end a generation.

    ids: text of a token -> its id. special: what a token is for -> its id. user_defined: ids that the file marks so.
    """

    def found(texts: frozenset[str]) -> set[int]:
        return {ids[raw] for raw in map(str.encode, texts) if raw in ids}

    control, ending = found(END_TEXTS), found(END_TEXTS)
    for role, texts in FIM_TEXTS.items():
        if role not in special:
            control |= found(texts)
            ending |= found(texts) if role in ENDING else set()
    ending |= {special[role] for role in ENDING if role in special}
    call, flush, answer = (
        found(frozenset(texts)) for texts in (("<|call|>", "<|calls|>"), ("<|flush|>",), ("<|return|>",))
    )
    if call and (flush or answer):
        ending -= found(frozenset({"<|end|>"}))  # there it closes one message of an answer, not the answer
    struck_out = found(frozenset({"</s>"})) - set(special.values())
    if struck_out & user_defined or found(frozenset({"<|tool_response>"})):
        control, ending = control - struck_out, ending - struck_out  # the Gemmas: a tag of HTML beside all others
    return control, frozenset(ending)
