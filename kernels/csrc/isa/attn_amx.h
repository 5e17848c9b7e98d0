// Matrix units (AMX) for q4_0 tiles.
//
// Scores of 16 or more rows: the same integers as the vector kernel of attn_qk.h, so both may be used side by side.
// Values of any number of rows: weights (times the scale of the value) rounded to bf16, codes exact in bf16, products
// summed in float32 by the unit; a relative error of 2^-9 of each weight at most, about 1e-6 of the result's square. All
// rows go through the unit always, in blocks of 64 keys: its order of summation is its own.
//
// Tile registers are all 16 rows (of queries: as many as there are, if fewer) of 64 bytes.
#pragma once

#include <immintrin.h>

#include "attn_ops.h"
#include "attn_qk.h"
#include "attn_simd.h"

namespace mixkv::MIXKV_ISA {

struct alignas(64) TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

// gcc's tile intrinsics do not say that they read memory: what they are about to read has to be written by then.
static inline void written(const void* p) { __asm__ volatile("" ::"r"(p) : "memory"); }

// Registers 0-1 and 2-3 hold sums and queries or weights, 4-7 keys or values.
static void enter(int n_rows) {
    TileConfig config = {};
    config.palette = 1;
    for (int i = 0; i < 8; ++i) {
        config.row_bytes[i] = 64;
        config.rows[i] = uint8_t(i < 4 && n_rows < 16 ? n_rows : 16);
    }
    written(&config);
    _tile_loadconfig(&config);
}

static void leave() { _tile_release(); }

// A block of K codes as int8 for the unit: rows 0-7 16 * (code - 8), rows 8-15 code - 8, to meet [hi 32 | lo 32] of a query.
static inline void expand_k(const uint8_t* codes, int8_t* out) {
    const __m512i high = _mm512_set1_epi8(char(0xf0)), flip = _mm512_set1_epi8(char(0x80));
    const __m512i eight = _mm512_set1_epi8(8), low = _mm512_set1_epi8(15);
    for (int j = 0; j < 4; ++j) {
        const __m512i two = _mm512_loadu_si512(codes + j * 64);
        const __m512i first = _mm512_slli_epi16(two, 4), second = two;  // the code wanted is the upper nibble
        _mm512_store_si512(out + j * 64, _mm512_xor_si512(_mm512_and_si512(first, high), flip));
        _mm512_store_si512(out + (j + 4) * 64, _mm512_xor_si512(_mm512_and_si512(second, high), flip));
        _mm512_store_si512(out + (j + 8) * 64, _mm512_sub_epi8(_mm512_and_si512(two, low), eight));
        _mm512_store_si512(out + (j + 12) * 64,
                           _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(two, 4), low), eight));
    }
}

// Two blocks of dims (or one, with `both` false) of 16 rows, added to the scores. Sums of all row tiles are stored
// before any is read back: the unit works ahead while the vectors convert.
static void qk_two_blocks(const QueryRows& q, int r0, int n_tiles, int b, bool both, const uint8_t* tile, float* x) {
    alignas(64) static thread_local int8_t keys[2][16 * 64];
    alignas(64) static thread_local int32_t sums[4][2][16 * 16];
    const auto* scales = reinterpret_cast<const uint16_t*>(tile + q.blocks * 256);
    const size_t pitch = size_t(q.blocks) * 64;
    expand_k(tile + b * 256, keys[0]);
    written(keys);
    _tile_loadd(4, keys[0], 64);
    if (both) {
        expand_k(tile + (b + 1) * 256, keys[1]);
        written(keys);
        _tile_loadd(5, keys[1], 64);
    }
    const V d0 = vload_half(scales + b * tile_tokens), d1 = both ? vload_half(scales + (b + 1) * tile_tokens) : vset(0.0f);
    for (int start = 0; start < n_tiles; start += 4) {
        const int stop = start + 4 < n_tiles ? start + 4 : n_tiles;
        for (int i = start; i < stop; ++i) {
            const int8_t* codes = q.codes + size_t(r0 + 16 * i) * pitch + size_t(b) * 64;
            _tile_zero(0);
            _tile_loadd(2, codes, pitch);
            _tile_dpbssd(0, 2, 4);
            _tile_stored(0, sums[i - start][0], 64);
            if (!both) continue;
            _tile_zero(1);
            _tile_loadd(3, codes + 64, pitch);
            _tile_dpbssd(1, 3, 5);
            _tile_stored(1, sums[i - start][1], 64);
        }
        written(sums);
        for (int i = start; i < stop; ++i)
            for (int r = 0; r < 16; ++r) {
                float* to = x + size_t(16 * i + r) * block_keys;
                const V before = b == 0 ? vset(0.0f) : vload(to);
                V score = vfma(_mm512_cvtepi32_ps(_mm512_load_si512(sums[i - start][0] + r * 16)), d0, before);
                if (both) score = vfma(_mm512_cvtepi32_ps(_mm512_load_si512(sums[i - start][1] + r * 16)), d1, score);
                vstore(to, score);
            }
    }
}

static void qk_q4_matrix(const QueryRows& q, int r0, int r1, const uint8_t* tile, float* x) {
    const int n_tiles = (r1 - r0) / 16;
    if (n_tiles)
        for (int b = 0; b < q.blocks; b += 2)
            qk_two_blocks(q, r0, n_tiles, b, b + 1 < q.blocks, tile, x + size_t(r0) * block_keys);
    if (r0 + 16 * n_tiles < r1) qk_int<cache_q4_0>(q, r0 + 16 * n_tiles, r1, tile, x);
}

// Codes of 16 tokens and 32 dims as bf16 numbers - 8 .. 7: for each half of 16 dims, 8 rows (pairs of tokens) of 16 dims
// times 2 tokens, written from row `at` on.
static inline void expand_v(const uint32_t* words, uint16_t* first_half, uint16_t* second_half) {
    // bf16 of -8 .. 7, twice: the index is 5 bits wide and its top one is a neighbour's
    alignas(64) static const uint16_t table[32] = {
        0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
        0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
    const __m512i values = _mm512_load_si512(table);
    for (int half = 0; half < 2; ++half)
        for (int octet = 0; octet < 2; ++octet) {
            const __m512i w = _mm512_loadu_si512(words + (half * 2 + octet) * 16);
            uint16_t* to = (half ? second_half : first_half) + octet * 4 * 32;
            _mm512_store_si512(to, _mm512_permutexvar_epi16(w, values));
            _mm512_store_si512(to + 32, _mm512_permutexvar_epi16(_mm512_srli_epi16(w, 4), values));
            _mm512_store_si512(to + 64, _mm512_permutexvar_epi16(_mm512_srli_epi16(w, 8), values));
            _mm512_store_si512(to + 96, _mm512_permutexvar_epi16(_mm512_srli_epi16(w, 12), values));
        }
}

constexpr int amx_rows = 64;  // rows whose weights are laid out at a time

// Weights of one row for 32 dims: 64 keys in two groups of 32 bf16, zero where the row does not read the tile (and where
// a key is hidden, even if the scale stored for it is not finite).
static inline void bf16_weights(const float* x, const V* d, unsigned readers, bool finite, uint16_t* first, uint16_t* second) {
    V p[tiles_per_block];
    for (int t = 0; t < tiles_per_block; ++t) {
        const V w = vload(x + 16 * t);
        __mmask16 keep = readers >> t & 1 ? 0xffff : 0;
        if (!finite) keep &= _mm512_cmp_ps_mask(w, _mm512_setzero_ps(), _CMP_NEQ_UQ);
        p[t] = _mm512_maskz_mul_ps(keep, w, d[t]);
    }
    _mm512_store_si512(first, (__m512i)_mm512_cvtne2ps_pbh(p[1], p[0]));
    _mm512_store_si512(second, (__m512i)_mm512_cvtne2ps_pbh(p[3], p[2]));
}

// Rows start .. stop of the block times 32 dims of its values, which registers 4-7 hold ([group of 32 keys][16 dims]).
static inline void matrix_rows(const ValueBlock& v, int start, int stop, int column, const V* d, bool finite) {
    alignas(64) static thread_local uint16_t weights[2][amx_rows * 32];
    for (int r = start; r < stop; ++r)
        bf16_weights(v.x + size_t(r) * block_keys, d, v.readers[r / v.group], finite, weights[0] + (r - start) * 32,
                     weights[1] + (r - start) * 32);
    written(weights);
    const size_t pitch = size_t(v.state.pitch) * 4;
    for (int r = start; r < stop; r += 16) {
        float* acc = v.state.acc + size_t(r) * v.state.pitch + column;
        _tile_loadd(2, weights[0] + (r - start) * 32, 64);
        _tile_loadd(3, weights[1] + (r - start) * 32, 64);
        _tile_loadd(0, acc, pitch);
        _tile_loadd(1, acc + 16, pitch);
        _tile_dpbf16ps(0, 2, 4);
        _tile_dpbf16ps(1, 2, 5);
        _tile_dpbf16ps(0, 3, 6);
        _tile_dpbf16ps(1, 3, 7);
        _tile_stored(0, acc, pitch);
        _tile_stored(1, acc + 16, pitch);
    }
    written(v.state.acc);
}

static void pv_q4_matrix(const ValueBlock& v) {
    alignas(64) static thread_local uint16_t values[2][2][16 * 32];  // [group of 32 keys][half of 32 dims]
    const int n_rows = v.n_queries * v.group;
    for (int b = 0; b < n_blocks(v.head_dim); ++b) {
        V d[tiles_per_block];
        bool finite = true;
        for (int t = 0; t < tiles_per_block; ++t) {
            uint16_t *one = values[t / 2][0] + t % 2 * 8 * 32, *two = values[t / 2][1] + t % 2 * 8 * 32;
            if (!v.tiles[t]) {
                memset(one, 0, 8 * 64);
                memset(two, 0, 8 * 64);
                d[t] = vset(0.0f);
                continue;
            }
            expand_v(reinterpret_cast<const uint32_t*>(v.tiles[t] + b * 256), one, two);
            d[t] = vload_half(reinterpret_cast<const uint16_t*>(v.tiles[t] + tile_code_bytes(cache_q4_0, v.head_dim)) + b * 16);
            finite &= !vany_nan(vsub(d[t], d[t]));
        }
        written(values);
        _tile_loadd(4, values[0][0], 64);
        _tile_loadd(5, values[0][1], 64);
        _tile_loadd(6, values[1][0], 64);
        _tile_loadd(7, values[1][1], 64);
        for (int start = 0; start < n_rows; start += amx_rows)
            matrix_rows(v, start, start + amx_rows < n_rows ? start + amx_rows : n_rows, b * block_dims, d, finite);
    }
}

}  // namespace mixkv::MIXKV_ISA
