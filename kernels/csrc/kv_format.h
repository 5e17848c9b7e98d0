// How the cache writes numbers: types, tiles and their sizes. The NumPy twin is kernels/formats.py.
//
// A tile holds 16 consecutive positions of one layer, one KV head and one side (K or V). A type fixes what a tile
// looks like, wherever it lies (sinks, ring, cold area), so each type has one kernel per side:
//
//   K f32, f16   [head_dim rounded up to 4][16 tokens]: one row of a tile is one dimension of 16 tokens
//   V f32, f16   [16 tokens][head_dim rounded up to 16]
//   K q8_0       blocks of 32 dims: [8][16 tokens][4 dims], codes + 128 as uint8; then scales [block][16 tokens] f16
//   K q4_0       blocks of 32 dims: [4][16 tokens][4 bytes]: byte c of row j has dim 4j + c in its low nibble and
//                dim 16 + 4j + c in its high one (so a token's four bytes are GGML's bytes 4j..4j+3); then scales
//   V q8_0       blocks of 32 dims: [16 tokens][32 dims] int8; then scales [block][16 tokens] f16
//   V q4_0       blocks of 32 dims: [2 halves of 16 dims][2 octets of tokens][16 dims] uint32 whose nibbles are, from
//                the lowest, tokens 0 2 4 6 1 3 5 7 of the octet (even tokens in the low 16 bits: what a pair-wise
//                bf16 product wants); then scales
//
// A row's bytes ("row bytes") are GGML's own blocks, zero-padded to 32 dims; they are what get_cold and set_cold carry.
// C headers only: the isa sources use this file.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

namespace mixkv {

enum CacheType : int { cache_f32, cache_f16, cache_q8_0, cache_q4_0, n_cache_types };
enum Side : int { side_k, side_v };

constexpr int tile_tokens = 16;
constexpr int block_dims = 32;

static constexpr int round_up_int(int n, int to) { return (n + to - 1) / to * to; }
static constexpr int n_blocks(int head_dim) { return (head_dim + block_dims - 1) / block_dims; }
static constexpr bool is_float_type(CacheType t) { return t == cache_f32 || t == cache_f16; }

// Bytes of one row in GGML's order.
static inline size_t row_bytes(CacheType type, int head_dim) {
    switch (type) {
        case cache_f32: return size_t(head_dim) * 4;
        case cache_f16: return size_t(head_dim) * 2;
        case cache_q8_0: return size_t(n_blocks(head_dim)) * 34;
        default: return size_t(n_blocks(head_dim)) * 18;
    }
}

// Bytes of the codes of a quantized tile; the scales [block][16] follow.
static inline size_t tile_code_bytes(CacheType type, int head_dim) {
    return size_t(n_blocks(head_dim)) * (type == cache_q8_0 ? 512 : 256);
}

static inline size_t tile_bytes(CacheType type, Side side, int head_dim) {
    const int lanes = side == side_k ? round_up_int(head_dim, 4) : round_up_int(head_dim, 16);
    switch (type) {
        case cache_f32: return size_t(lanes) * tile_tokens * 4;
        case cache_f16: return size_t(lanes) * tile_tokens * 2;
        default: return tile_code_bytes(type, head_dim) + size_t(n_blocks(head_dim)) * tile_tokens * 2;
    }
}

// Which nibble of its uint32 a token of an octet has in a q4_0 V tile, and the inverse.
static inline int v_nibble(int token_in_octet) { return (token_in_octet >> 1) + 4 * (token_in_octet & 1); }
static inline int v_token(int nibble) { return 2 * (nibble & 3) + (nibble >> 2); }

// IEEE half <-> single, round to nearest even, NaN stays NaN.
static inline float half_to_float(uint16_t h) {
    const uint32_t sign = uint32_t(h & 0x8000) << 16, body = uint32_t(h & 0x7fff) << 13;
    uint32_t bits;
    if (body >= 0x0f800000) {
        bits = body + 0x70000000;  // inf, NaN
    } else {
        float f;
        memcpy(&f, &body, 4);
        f *= 0x1p112f;  // exact; makes half's denormals right as well
        memcpy(&bits, &f, 4);
    }
    bits |= sign;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

static inline uint16_t float_to_half(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint32_t sign = bits >> 16 & 0x8000, body = bits & 0x7fffffff;
    if (body > 0x7f800000) return uint16_t(sign | 0x7e00);
    if (body >= 0x47800000) return uint16_t(sign | 0x7c00);  // 65536 and above
    if (body < 0x38800000) {  // a half denormal: let one float addition do the rounding
        float f;
        memcpy(&f, &body, 4);
        f += 0.5f;
        memcpy(&bits, &f, 4);
        return uint16_t(sign | (bits - 0x3f000000));
    }
    const uint32_t rounded = body + 0xfff + (body >> 13 & 1) - 0x38000000;  // carries into infinity where it must
    return uint16_t(sign | rounded >> 13);
}

// Gives the Q4_0 row `bytes` the unbiased scales for its values, row (zero-padded to 32 dims); see kernels/formats.py.
void unbias_q4_0(const float* row, int head_dim, uint8_t* bytes);

// One row's GGML bytes into lane `lane` of a tile, and back.
void put_row(CacheType type, Side side, int head_dim, uint8_t* tile, int lane, const uint8_t* row);
void get_row(CacheType type, Side side, int head_dim, const uint8_t* tile, int lane, uint8_t* row);

}  // namespace mixkv
