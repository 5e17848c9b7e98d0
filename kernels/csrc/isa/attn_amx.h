// Matrix units (AMX) for q4_0 tiles.
//
// Scores of 16 or more rows: the same integers as the vector kernel of attn_qk.h, so both may be used side by side.
// Values of any number of rows: weights (times the scale of the value) rounded to bf16, codes exact in bf16, products
// summed in float32 by the unit; a relative error of 2^-9 of each weight at most, about 1e-6 of the result's square.
// All rows go through the unit always, in blocks of 64 keys: its order of summation is its own.
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

// A block of K codes as int8 for the unit: rows 0-7 16 * (code - 8), rows 8-15 code - 8, to meet [hi 32 | lo 32] of a
// query.
static inline void expand_k(const uint8_t* codes, int8_t* out) {
    const __m512i high = _mm512_set1_epi8(char(0xf0)), flip = _mm512_set1_epi8(char(0x80));
    const __m512i eight = _mm512_set1_epi8(8), low = _mm512_set1_epi8(15);
    constexpr int and_xor = 0x6a;  // (a & b) ^ c
    for (int j = 0; j < 4; ++j) {
        ask_ahead(codes + j * 64);
        const __m512i two = _mm512_loadu_si512(codes + j * 64);
        const __m512i left = _mm512_slli_epi16(two, 4), right = _mm512_srli_epi16(two, 4);
        _mm512_store_si512(out + j * 64, _mm512_ternarylogic_epi64(left, high, flip, and_xor));
        _mm512_store_si512(out + (j + 4) * 64, _mm512_ternarylogic_epi64(two, high, flip, and_xor));
        _mm512_store_si512(out + (j + 8) * 64, _mm512_sub_epi8(_mm512_and_si512(two, low), eight));
        _mm512_store_si512(out + (j + 12) * 64, _mm512_sub_epi8(_mm512_and_si512(right, low), eight));
    }
}

struct alignas(64) KeyScratch {
    int8_t keys[tiles_per_block][2][16 * 64];  // [tile][block of 32 dims]
    int32_t sums[4][2][16 * 16];               // [product in flight][block of 32 dims]
};

// Products of one tile and 16 rows (or all, if they are fewer) over one or two blocks of dims, in registers C0 and C1.
// The tile's codes are in registers 4 and 5. A macro, because gcc's intrinsics take register numbers as text only.
#define MIXKV_KEY_PRODUCT(C0, C1, codes, pitch, both, sums) \
    do {                                                    \
        _tile_zero(C0);                                     \
        _tile_loadd(2, codes, pitch);                       \
        if (both) {                                         \
            _tile_zero(C1);                                 \
            _tile_loadd(3, (codes) + 64, pitch);            \
        }                                                   \
        _tile_dpbssd(C0, 2, 4);                             \
        if (both) _tile_dpbssd(C1, 3, 5);                   \
        _tile_stored(C0, (sums)[0], 64);                    \
        if (both) _tile_stored(C1, (sums)[1], 64);          \
    } while (0)

// scores += integer sums times the scales of the tile
static inline void scale_products(const QueryRows& q, int rows, int b, bool both, const uint8_t* tile,
                                  const int32_t (*sums)[16 * 16], float* x) {
    const auto* scales = reinterpret_cast<const uint16_t*>(tile + q.blocks * 256) + b * tile_tokens;
    ask_ahead(scales);
    const V d0 = vload_half(scales), d1 = both ? vload_half(scales + tile_tokens) : d0;
    for (int r = 0; r < rows; ++r, x += block_keys) {
        V score = b == 0 ? vset(0.0f) : vload(x);
        score = vfma(_mm512_cvtepi32_ps(_mm512_load_si512(sums[0] + r * 16)), d0, score);
        if (both) score = vfma(_mm512_cvtepi32_ps(_mm512_load_si512(sums[1] + r * 16)), d1, score);
        vstore(x, score);
    }
}

// Rows r0 .. r0 + 16 n_row_tiles times n_tiles tiles (x: the scores of row r0 and the first tile). Memory that the unit
// or the vectors are to read from each other is written well before: keys of all tiles first, then four products, then
// their scaling.
static void key_products(const QueryRows& q, int r0, int n_row_tiles, const uint8_t* const* tiles, int n_tiles,
                         float* x) {
    KeyScratch m;
    const int rows = q.n_rows < 16 ? q.n_rows : 16, n = n_row_tiles * n_tiles;
    const size_t pitch = size_t(q.blocks) * 64;
    for (int b = 0; b < q.blocks; b += 2) {
        const bool both = b + 1 < q.blocks;
        for (int t = 0; t < n_tiles; ++t)
            for (int i = 0; i <= int(both); ++i) expand_k(tiles[t] + (b + i) * 256, m.keys[t][i]);
        written(&m);
        for (int start = 0; start < n; start += 4) {
            const int stop = start + 4 < n ? start + 4 : n;
            for (int i = start; i < stop; ++i) {
                if (i == start || i % n_row_tiles == 0) {
                    _tile_loadd(4, m.keys[i / n_row_tiles][0], 64);
                    if (both) _tile_loadd(5, m.keys[i / n_row_tiles][1], 64);
                }
                const int8_t* codes = q.codes + size_t(r0 + i % n_row_tiles * 16) * pitch + size_t(b) * 64;
                if (i % 2 && rows == 16)  // two pairs of registers in turn: nobody waits for a store to end
                    MIXKV_KEY_PRODUCT(6, 7, codes, pitch, both, m.sums[i - start]);
                else
                    MIXKV_KEY_PRODUCT(0, 1, codes, pitch, both, m.sums[i - start]);
            }
            written(&m);
            for (int i = start; i < stop; ++i) {
                const int t = i / n_row_tiles, row = i % n_row_tiles * 16;
                scale_products(q, rows, b, both, tiles[t], m.sums[i - start], x + row * block_keys + t * tile_tokens);
            }
        }
    }
}

static void qk_q4_matrix(const QueryRows& q, int r0, int r1, const uint8_t* tile, float* x) {
    const int n = (r1 - r0) / 16, rest = r0 + 16 * n;
    if (n) key_products(q, r0, n, &tile, 1, x + size_t(r0) * block_keys);
    if (rest < r1) qk_int<cache_q4_0>(q, rest, r1, tile, x);
}

static void qk_q4_block(const QueryRows& q, const uint8_t* const* tiles, float* x) {
    if (q.n_rows > 2)
        key_products(q, 0, (q.n_rows + 15) / 16, tiles, tiles_per_block, x);
    else
        qk_int_block<cache_q4_0>(q, tiles, x);
}

// Codes of 16 tokens and 32 dims as bf16 numbers - 8 .. 7: for each half of 16 dims, 8 rows (pairs of tokens) of 16
// dims times 2 tokens, written from row `at` on.
static inline void expand_v(const uint32_t* words, uint16_t* first_half, uint16_t* second_half) {
    // bf16 of -8 .. 7, twice: the index is 5 bits wide and its top one is a neighbour's
    alignas(64) static const uint16_t table[32] = {
        0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
        0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
    const __m512i values = _mm512_load_si512(table);
    for (int half = 0; half < 2; ++half)
        for (int octet = 0; octet < 2; ++octet) {
            ask_ahead(words + (half * 2 + octet) * 16);
            const __m512i w = _mm512_loadu_si512(words + (half * 2 + octet) * 16);
            uint16_t* to = (half ? second_half : first_half) + octet * 4 * 32;
            _mm512_store_si512(to, _mm512_permutexvar_epi16(w, values));
            _mm512_store_si512(to + 32, _mm512_permutexvar_epi16(_mm512_srli_epi16(w, 4), values));
            _mm512_store_si512(to + 64, _mm512_permutexvar_epi16(_mm512_srli_epi16(w, 8), values));
            _mm512_store_si512(to + 96, _mm512_permutexvar_epi16(_mm512_srli_epi16(w, 12), values));
        }
}

constexpr int amx_rows = 64;  // rows whose weights are laid out at a time

// The scales of 32 dims of a block's values, [tile]; finite: none of them is infinite or NaN.
struct ValueScales {
    V d[tiles_per_block];
    bool finite;
};

// Weights of one row for 32 dims: 64 keys in two groups of 32 bf16, zero where the row does not read the tile (and
// where a key is hidden, even if the scale stored for it is not finite).
static inline void bf16_weights(const float* x, const ValueScales& v, unsigned readers, uint16_t* first, uint16_t* second) {
    V p[tiles_per_block];
    for (int t = 0; t < tiles_per_block; ++t) p[t] = vmul(vload(x + 16 * t), v.d[t]);
    if (readers != 15 || !v.finite)
        for (int t = 0; t < tiles_per_block; ++t) {
            const __mmask16 shown = _mm512_cmp_ps_mask(vload(x + 16 * t), _mm512_setzero_ps(), _CMP_NEQ_UQ);
            p[t] = _mm512_maskz_mov_ps(readers >> t & 1 ? shown : 0, p[t]);
        }
    _mm512_store_si512(first, (__m512i)_mm512_cvtne2ps_pbh(p[1], p[0]));
    _mm512_store_si512(second, (__m512i)_mm512_cvtne2ps_pbh(p[3], p[2]));
}

// The weights of rows start .. stop in the order of the unit.
static inline void lay_out_weights(const ValueBlock& v, int start, int stop, const ValueScales& d, uint16_t* first,
                                   uint16_t* second) {
    const float* x = v.x + size_t(start) * block_keys;
    int query = start / v.group, left = v.group - start % v.group;
    for (int r = start; r < stop; ++r, x += block_keys, first += 32, second += 32) {
        bf16_weights(x, d, v.readers[query], first, second);
        if (--left == 0) ++query, left = v.group;
    }
}

struct alignas(64) MatrixScratch {
    uint16_t values[2][2][2][16 * 32];      // [block of 32 dims][group of 32 keys][half of the dims]
    uint16_t weights[2][2][amx_rows * 32];  // [block of 32 dims][group of 32 keys]
};

// Rows start .. stop times one block of 32 dims, both laid out: acc += weights x values.
static inline void matrix_rows(const StateRows& state, int start, int stop, int column, const uint16_t (*values)[2][16 * 32],
                               const uint16_t (*weights)[amx_rows * 32]) {
    const size_t pitch = size_t(state.pitch) * 4;
    _tile_loadd(4, values[0][0], 64);
    _tile_loadd(5, values[0][1], 64);
    _tile_loadd(6, values[1][0], 64);
    _tile_loadd(7, values[1][1], 64);
    for (int r = start; r < stop; r += 16) {
        float* acc = state.acc + size_t(r) * state.pitch + column;
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
}

// Block b of the values: codes as bf16, and the scales.
static inline ValueScales expand_block(const ValueBlock& v, int b, uint16_t (*values)[2][16 * 32]) {
    ValueScales scales;
    scales.finite = true;
    for (int t = 0; t < tiles_per_block; ++t) {
        uint16_t *one = values[t / 2][0] + t % 2 * 8 * 32, *two = values[t / 2][1] + t % 2 * 8 * 32;
        if (!v.tiles[t]) {
            memset(one, 0, 8 * 64);
            memset(two, 0, 8 * 64);
            scales.d[t] = vset(0.0f);
            continue;
        }
        expand_v(reinterpret_cast<const uint32_t*>(v.tiles[t] + b * 256), one, two);
        const uint8_t* plane = v.tiles[t] + tile_code_bytes(cache_q4_0, v.head_dim);
        const V d = vload_half(reinterpret_cast<const uint16_t*>(plane) + b * 16);
        scales.d[t] = d;
        ask_ahead(plane);
        scales.finite &= !vany_nan(vsub(d, d));
    }
    return scales;
}

// Two blocks of dims at a time: everything is laid out before the unit starts, since it cannot take from stores that
// are still on their way to the cache.
static void pv_q4_matrix(const ValueBlock& v) {
    MatrixScratch m;
    const int n_rows = v.n_queries * v.group, blocks = n_blocks(v.head_dim);
    for (int b = 0; b < blocks; b += 2) {
        const int n = b + 1 < blocks ? 2 : 1;
        ValueScales scales[2];
        for (int i = 0; i < n; ++i) scales[i] = expand_block(v, b + i, m.values[i]);
        for (int start = 0; start < n_rows; start += amx_rows) {
            const int stop = start + amx_rows < n_rows ? start + amx_rows : n_rows;
            for (int i = 0; i < n; ++i) lay_out_weights(v, start, stop, scales[i], m.weights[i][0], m.weights[i][1]);
            written(&m);
            for (int i = 0; i < n; ++i)
                matrix_rows(v.state, start, stop, (b + i) * block_dims, m.values[i], m.weights[i]);
            written(v.state.acc);
        }
    }
}

}  // namespace mixkv::MIXKV_ISA
