"""Write what train_demo_model.py made as GGUF.

    python tools/convert_demo_model.py OUT FILE.gguf [F32|F16|Q8_0|Q4_0]

OUT holds model.pt and tokenizer.model. The embedding stays Q8_0 in quantized files. Needs the extra `train`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np
import sentencepiece
import torch
from gguf.quants import quantize
from train_demo_model import EPS, HEAD_DIM, HEADS, KV_HEADS, ROPE_BASE

N_CTX = 2048
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7}
NAMES = {
    "attn_norm": "attn_norm", "ffn_norm": "ffn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
    "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
}  # fmt: skip


def token_types(tokenizer: sentencepiece.SentencePieceProcessor) -> list[gguf.TokenType]:
    """GGUF's type of each piece; the newline was added by hand, so it always splits the text."""

    def kind(i: int) -> gguf.TokenType:
        if tokenizer.is_unknown(i):
            return gguf.TokenType.UNKNOWN
        if tokenizer.is_control(i):
            return gguf.TokenType.CONTROL
        if tokenizer.is_byte(i):
            return gguf.TokenType.BYTE
        return gguf.TokenType.USER_DEFINED if tokenizer.id_to_piece(i) == "\n" else gguf.TokenType.NORMAL

    return [kind(i) for i in range(tokenizer.get_piece_size())]


def add_metadata(
    out: gguf.GGUFWriter, weights: dict[str, np.ndarray], tokenizer: sentencepiece.SentencePieceProcessor, kind: str
) -> int:
    """Write hyper-parameters and vocabulary; returns the number of layers."""
    n = tokenizer.get_piece_size()
    n_layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    out.add_name("mixkv demo")
    out.add_file_type(FILE_TYPES[kind])
    out.add_vocab_size(n)
    out.add_context_length(N_CTX)
    out.add_embedding_length(weights["embed.weight"].shape[1])
    out.add_block_count(n_layers)
    out.add_feed_forward_length(weights["blocks.0.up.weight"].shape[0])
    out.add_head_count(HEADS)
    out.add_head_count_kv(KV_HEADS)
    out.add_key_length(HEAD_DIM)
    out.add_value_length(HEAD_DIM)
    out.add_layer_norm_rms_eps(EPS)
    out.add_rope_dimension_count(HEAD_DIM)
    out.add_rope_freq_base(ROPE_BASE)
    out.add_tokenizer_model("llama")
    out.add_token_list([tokenizer.id_to_piece(i).encode() for i in range(n)])
    out.add_token_scores([tokenizer.get_score(i) for i in range(n)])
    out.add_token_types(token_types(tokenizer))
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)
    out.add_add_bos_token(True)
    out.add_add_eos_token(False)
    out.add_add_space_prefix(False)  # a prompt starts like a paragraph
    return n_layers


def add_tensor(out: gguf.GGUFWriter, name: str, values: np.ndarray, kind: str) -> None:
    """Vectors stay float32."""
    if values.ndim == 1 or kind == "F32":
        out.add_tensor(name, values.astype(np.float32))
    elif kind == "F16":
        out.add_tensor(name, values.astype(np.float16))
    else:
        quant = gguf.GGMLQuantizationType["Q8_0" if name == "token_embd.weight" else kind]
        out.add_tensor(name, quantize(np.ascontiguousarray(values), quant), raw_dtype=quant)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("kind", nargs="?", choices=FILE_TYPES, default="Q8_0")
    args = parser.parse_args()
    state = torch.load(args.source / "model.pt", weights_only=True)
    weights = {name: tensor.float().numpy() for name, tensor in state.items()}
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(args.source / "tokenizer.model"))
    out = gguf.GGUFWriter(args.out, "llama")
    n_layers = add_metadata(out, weights, tokenizer, args.kind)
    add_tensor(out, "token_embd.weight", weights["embed.weight"], args.kind)
    add_tensor(out, "output_norm.weight", weights["norm.weight"], args.kind)
    for i in range(n_layers):
        for ours, theirs in NAMES.items():
            add_tensor(out, f"blk.{i}.{theirs}.weight", weights[f"blocks.{i}.{ours}.weight"], args.kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


if __name__ == "__main__":
    main()
