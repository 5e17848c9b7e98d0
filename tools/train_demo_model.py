"""Train the small llama that ships as the demo model. `convert_demo_model.py` then writes it as GGUF.

    python tools/train_demo_model.py BOOKS OUT [--minutes 80] [--steps N]

BOOKS holds plain-text books, one file each, one paragraph a line; those named in HELD_OUT are never trained on. OUT
receives the sentencepiece tokenizer and model.pt, saved every ten minutes. On two CPU cores 80 minutes see 21 million
tokens and reach a held-out loss of 3.8 nats a token. Needs the extra `train` (torch).
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from torch import Tensor, nn
from torch.nn import functional

HELD_OUT = {"Emma", "Treasure-Island", "A-Tale-of-Two-Cities"}
VOCAB, DIM, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN = 4096, 256, 8, 4, 2, 64, 768
ROPE_BASE, EPS = 10000.0, 1e-5
BOS = 1
PEAK_LR, WARMUP_STEPS, FLOOR = 2e-3, 100, 0.05
# (share of the time, context, sequences a step): mostly short windows, then the full context
STAGES = ((0.7, 512, 16), (1.0, 2048, 4))
SAVE_EVERY_SECONDS = 600


def train_tokenizer(files: list[Path], prefix: Path) -> None:
    """A BPE sentencepiece model; a newline is a piece of its own, unknown characters fall back to bytes."""
    sentencepiece.SentencePieceTrainer.train(
        input=",".join(map(str, files)), model_prefix=str(prefix), vocab_size=VOCAB, model_type="bpe",
        byte_fallback=True, split_digits=True, character_coverage=0.9999, normalization_rule_name="identity",
        add_dummy_prefix=True, remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        unk_id=0, bos_id=BOS, eos_id=2, pad_id=-1, input_sentence_size=120_000, shuffle_input_sentence=True,
        num_threads=2, user_defined_symbols=["\n"],
    )  # fmt: skip


def rope_tables(n: int) -> tuple[Tensor, Tensor]:
    """cos and sin, (n, HEAD_DIM / 2)."""
    inv_freq = ROPE_BASE ** (-torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
    angle = torch.arange(n).float()[:, None] * inv_freq
    return angle.cos(), angle.sin()


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (batch, heads, n, HEAD_DIM); pairs are (2i, 2i + 1), as GGUF's architecture `llama` has them."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


class Block(nn.Module):
    """One llama layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attn_norm, self.ffn_norm = nn.RMSNorm(DIM, EPS), nn.RMSNorm(DIM, EPS)
        self.q = nn.Linear(DIM, HEADS * HEAD_DIM, bias=False)
        self.k = nn.Linear(DIM, KV_HEADS * HEAD_DIM, bias=False)
        self.v = nn.Linear(DIM, KV_HEADS * HEAD_DIM, bias=False)
        self.o = nn.Linear(HEADS * HEAD_DIM, DIM, bias=False)
        self.gate = nn.Linear(DIM, FFN, bias=False)
        self.up = nn.Linear(DIM, FFN, bias=False)
        self.down = nn.Linear(FFN, DIM, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, n, _ = x.shape
        h = self.attn_norm(x)
        q = rope(self.q(h).view(batch, n, HEADS, HEAD_DIM).transpose(1, 2), cos, sin)
        k = rope(self.k(h).view(batch, n, KV_HEADS, HEAD_DIM).transpose(1, 2), cos, sin)
        v = self.v(h).view(batch, n, KV_HEADS, HEAD_DIM).transpose(1, 2)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).reshape(batch, n, -1))
        h = self.ffn_norm(x)
        return x + self.down(functional.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    """Tied embeddings; residual projections start smaller, as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, DIM)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(DIM, EPS)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                residual = name.endswith(("o.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / (math.sqrt(2 * LAYERS) if residual else 1))

    def forward(self, ids: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.norm(x) @ self.embed.weight.T


def encode(tokenizer: sentencepiece.SentencePieceProcessor, files: list[Path]) -> np.ndarray:
    """All books as one row of ids, BOS before each."""
    books = [np.array([BOS, *tokenizer.encode(f.read_text(encoding="utf-8"))], np.uint16) for f in files]
    return np.concatenate(books)


def windows(data: np.ndarray, starts: np.ndarray, n: int) -> Tensor:
    """(len(starts), n + 1) ids: n inputs and, shifted by one, n targets."""
    return torch.from_numpy(np.stack([data[i : i + n + 1] for i in starts]).astype(np.int64))


@torch.no_grad()
def evaluate(model: Llama, data: np.ndarray, n: int, n_windows: int = 16) -> float:
    """Mean loss in nats a token over evenly spaced windows of n tokens."""
    cos, sin = rope_tables(n)
    total = 0.0
    for start in np.linspace(0, len(data) - n - 2, n_windows).astype(int):
        x = windows(data, np.array([start]), n)
        total += functional.cross_entropy(model(x[:, :-1], cos, sin)[0].float(), x[0, 1:]).item()
    return total / n_windows


def train(model: Llama, data: np.ndarray, held: np.ndarray, out: Path, seconds: float, max_steps: int | None) -> None:
    """AdamW with a cosine schedule over the time given; saves to `out` as it goes."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    gains = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.95))
    rng = np.random.default_rng(0)
    start, saved, step, seen = time.monotonic(), time.monotonic(), 0, 0
    while (share := (time.monotonic() - start) / seconds) < 1 and step != max_steps:
        n, batch = next((n, batch) for until, n, batch in STAGES if share < until)
        cosine = 0.5 * (1 + math.cos(math.pi * share)) * (1 - FLOOR) + FLOOR
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * min(1.0, (step + 1) / WARMUP_STEPS) * cosine
        x = windows(data, rng.integers(0, len(data) - n - 1, batch), n)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(x[:, :-1], *rope_tables(n))
        loss = functional.cross_entropy(logits.float().view(-1, VOCAB), x[:, 1:].reshape(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, seen = step + 1, seen + batch * n
        if step % 20 == 0:
            speed = seen / (time.monotonic() - start)
            print(f"step {step}  {seen / 1e6:.2f}M tokens  loss {loss.item():.3f}  {speed:.0f} tokens/s", flush=True)
        if time.monotonic() - saved > SAVE_EVERY_SECONDS:
            saved = time.monotonic()
            torch.save(model.state_dict(), out / "model.pt")
            print(f"held-out loss {evaluate(model, held, 512):.4f}", flush=True)
    torch.save(model.state_dict(), out / "model.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("books", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=80)
    parser.add_argument("--steps", type=int, default=None, help="stop after so many steps, to try the recipe out")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    files = sorted(args.books.glob("*.txt"))
    training = [f for f in files if f.stem not in HELD_OUT]
    prefix = args.out / "tokenizer"
    if not prefix.with_suffix(".model").exists():
        train_tokenizer(training, prefix)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(prefix.with_suffix(".model")))
    data, held = encode(tokenizer, training), encode(tokenizer, [f for f in files if f.stem in HELD_OUT])
    model = Llama()
    print(f"{len(data)} training tokens, {sum(p.numel() for p in model.parameters())} parameters", flush=True)
    train(model, data, held, args.out, args.minutes * 60, args.steps)
    print(f"held-out loss {evaluate(model, held, 512):.4f} at 512, {evaluate(model, held, 2048, 8):.4f} at 2048")


if __name__ == "__main__":
    main()
