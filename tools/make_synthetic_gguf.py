"""Write a llama (or qwen3moe, or gemma3) GGUF of a real model's shape with random weights, for measuring speed.

    python tools/make_synthetic_gguf.py SHAPE OUT.gguf [--type Q4_0|Q8_0|F16] [--vocab FILE.gguf]

Without --vocab the file gets a byte-level vocabulary of the shape's size that no text needs (prompts are ids). Tied
embeddings of quantized files are Q8_0. The 1B shape takes about a minute.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize


class Shape(NamedTuple):
    """A llama's hyper-parameters; with experts a qwen3moe's, and ffn is the width of one of them; with a window a
    gemma3's."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    rope_base: float
    n_ctx: int
    tied: bool
    experts: int = 0
    experts_used: int = 0
    window: int = 0

    @property
    def architecture(self) -> str:
        return "qwen3moe" if self.experts else "gemma3" if self.window else "llama"


SHAPES = {
    "llama1b": Shape(2048, 16, 32, 8, 64, 8192, 128_256, 500_000.0, 131_072, True),
    "llama8b": Shape(4096, 32, 32, 8, 128, 14_336, 128_256, 500_000.0, 131_072, False),
    "tinyllama": Shape(2048, 22, 32, 4, 64, 5632, 32_000, 10_000.0, 2048, False),
    "qwen3moe": Shape(
        2048, 8, 32, 4, 128, 768, 32_000, 1_000_000.0, 40_960, False, 16, 8
    ),  # an eighth of 30B-A3B's experts
    "gemma3-4b": Shape(2560, 34, 8, 4, 256, 10_240, 262_144, 1_000_000.0, 131_072, True, window=1024),
    "tinymoe": Shape(256, 2, 4, 2, 64, 256, 512, 10_000.0, 16_384, True, 4, 2),
    "tiny": Shape(256, 2, 4, 2, 64, 512, 512, 10_000.0, 16_384, True),
}
FILE_TYPES = {"F16": 1, "Q4_0": 2, "Q8_0": 7}


def byte_vocabulary(n: int) -> list[bytes]:
    """n SPM pieces: unknown, BOS, EOS, the 256 bytes, and fillers."""
    first = [b"<unk>", b"<s>", b"</s>", *(f"<0x{i:02X}>".encode() for i in range(256))]
    return first + [f"t{i}".encode() for i in range(len(first), n)]


def add_vocabulary(out: GGUFWriter, n: int, source: Path | None) -> int:
    """Copy the tokenizer of `source`, or write a byte vocabulary of n pieces; returns its size."""
    if source is None:
        kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
        out.add_tokenizer_model("llama")
        out.add_token_list(byte_vocabulary(n))
        out.add_token_scores([0.0] * n)
        out.add_token_types(kinds + [gguf.TokenType.NORMAL] * (n - len(kinds)))
        out.add_bos_token_id(1)
        out.add_eos_token_id(2)
        return n
    size = 0
    for key, field in gguf.GGUFReader(source).fields.items():
        if key.startswith("tokenizer."):
            value = field.contents()
            if key == "tokenizer.ggml.tokens":
                size = len(value)
            if field.types[0] == gguf.GGUFValueType.ARRAY:
                out.add_array(key, value)
            else:
                out.add_key_value(key, value, field.types[0])
    return size


def make(shape: Shape, name: str, path: Path, kind: str, vocabulary: Path | None = None, seed: int = 0) -> None:
    """Write the file."""
    out = GGUFWriter(path, shape.architecture)
    out.add_name(name)
    out.add_file_type(FILE_TYPES[kind])
    out.add_context_length(shape.n_ctx)
    out.add_embedding_length(shape.dim)
    out.add_block_count(shape.layers)
    out.add_feed_forward_length(shape.ffn)
    if shape.window:
        out.add_sliding_window(shape.window)
    if shape.experts:
        out.add_expert_count(shape.experts)
        out.add_expert_used_count(shape.experts_used)
        out.add_expert_feed_forward_length(shape.ffn)
    out.add_head_count(shape.heads)
    out.add_head_count_kv(shape.kv_heads)
    out.add_key_length(shape.head_dim)
    out.add_value_length(shape.head_dim)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_freq_base(shape.rope_base)
    out.add_rope_dimension_count(shape.head_dim)
    n_vocab = add_vocabulary(out, shape.vocab, vocabulary)
    out.add_vocab_size(n_vocab)
    rng = np.random.default_rng(seed)
    usual = GGMLQuantizationType[kind]
    table = usual if kind == "F16" else GGMLQuantizationType.Q8_0

    def matrix(tensor: str, *size: int, quant: GGMLQuantizationType = usual) -> None:
        values = rng.standard_normal(size, dtype=np.float32) * np.float32(0.7 / np.sqrt(size[-1]))
        if quant == GGMLQuantizationType.F32:
            out.add_tensor(tensor, values)
        elif quant == GGMLQuantizationType.F16:
            out.add_tensor(tensor, values.astype(np.float16))
        else:
            out.add_tensor(tensor, quantize(values, quant), raw_dtype=quant)

    def gain(tensor: str, size: int = shape.dim) -> None:
        out.add_tensor(tensor, np.ones(size, np.float32))

    matrix("token_embd.weight", n_vocab, shape.dim, quant=table if shape.tied else usual)
    for i in range(shape.layers):
        prefix = f"blk.{i}."
        gain(prefix + "attn_norm.weight")
        gain(prefix + "ffn_norm.weight")
        if shape.window:
            gain(prefix + "post_attention_norm.weight")
            gain(prefix + "post_ffw_norm.weight")
        matrix(prefix + "attn_q.weight", shape.heads * shape.head_dim, shape.dim)
        matrix(prefix + "attn_k.weight", shape.kv_heads * shape.head_dim, shape.dim)
        matrix(prefix + "attn_v.weight", shape.kv_heads * shape.head_dim, shape.dim)
        matrix(prefix + "attn_output.weight", shape.dim, shape.heads * shape.head_dim)
        if shape.architecture != "llama":
            gain(prefix + "attn_q_norm.weight", shape.head_dim)
            gain(prefix + "attn_k_norm.weight", shape.head_dim)
        if shape.experts:
            matrix(prefix + "ffn_gate_inp.weight", shape.experts, shape.dim, quant=GGMLQuantizationType.F32)
            matrix(prefix + "ffn_gate_exps.weight", shape.experts, shape.ffn, shape.dim)
            matrix(prefix + "ffn_up_exps.weight", shape.experts, shape.ffn, shape.dim)
            matrix(prefix + "ffn_down_exps.weight", shape.experts, shape.dim, shape.ffn)
            continue
        matrix(prefix + "ffn_gate.weight", shape.ffn, shape.dim)
        matrix(prefix + "ffn_up.weight", shape.ffn, shape.dim)
        matrix(prefix + "ffn_down.weight", shape.dim, shape.ffn)
    gain("output_norm.weight")
    if not shape.tied:
        matrix("output.weight", n_vocab, shape.dim, quant=table)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", choices=FILE_TYPES, default="Q4_0", dest="kind")
    parser.add_argument("--vocab", type=Path, default=None)
    args = parser.parse_args()
    make(SHAPES[args.shape], args.shape, args.out, args.kind, args.vocab)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
