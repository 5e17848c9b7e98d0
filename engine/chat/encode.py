"""From a rendering to token ids: the template's control tokens become tokens, a message's stay text.

User-defined tokens (`<think>` in many vocabularies) are ordinary text to a tokenizer and are cut out wherever they
stand. Text on both sides of a template's seam is encoded as one, as models have learnt it.
"""

from __future__ import annotations

from mixkv.engine.chat.marks import Rendered, unmarked
from mixkv.engine.tokenizer.base import Tokenizer


def encode_rendered(rendered: Rendered, tokenizer: Tokenizer) -> list[int]:
    """Ids of a prompt, with exactly one BOS where the tokenizer or the template puts one, and no EOS behind."""
    parts: list[str | int] = []
    for part in tokenizer.split(rendered.marked, parse_special=True):
        if isinstance(part, int):
            parts.append(part)
        else:
            parts += tokenizer.split(unmarked(part, rendered.mark), parse_special=False)
    start = 0
    while start < len(parts) and parts[start] == tokenizer.bos_id:
        start += 1
    ids = [] if tokenizer.bos_id is None or not (start or tokenizer.add_bos) else [tokenizer.bos_id]
    return ids + tokenizer.encode_parts(parts[start:])


def control_ids(marked: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of the control tokens that the template wrote itself."""
    parts = tokenizer.split(marked, parse_special=True)
    return [part for part in parts if isinstance(part, int) and tokenizer.is_control(part)]
