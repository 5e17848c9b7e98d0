// Products of many tokens with AMX: one tile instruction multiplies 16 tokens by 16 rows over a block of 32 columns
// (16 where a format has two scales), exactly, in int32; AVX-512 then scales the 16 x 16 sums into float accumulators in
// the same order as linear_quant.cpp does, so both give the same bits.
//
// The limit is that scaling: per tile 16 x (convert, multiply, fma) on two ports = 24 cycles against 16 for the product.
#pragma once

#include "formats.h"
#include "linear_out.h"

namespace mixkv::MIXKV_ISA {

constexpr int amx_min_tokens = 9;
constexpr int amx_tokens = 16;  // rows of a tile; QuantX::width is 16 when there are more than 8 tokens

struct TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

// tmm0, 1: sums   tmm2, 3: activations, 16 tokens x 32 / subs   tmm4, 5: weights, quads x 16 rows x 4
// (_tile_loadconfig of gcc 12 tells the compiler that 8 bytes are read, which drops the other stores: so by hand.)
static void amx_configure(int subs) {
    TileConfig c;
    memset(&c, 0, sizeof c);
    c.palette = 1;
    for (int i = 0; i < 6; ++i) {
        c.rows[i] = i < 4 ? 16 : uint8_t(8 / subs);
        c.row_bytes[i] = i == 2 || i == 3 ? uint16_t(32 / subs) : 64;
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(c));
}

// The group's codes as signed bytes in quad order: 512 bytes a block.
template <class F, int j>
MIXKV_INLINE void amx_unpack_quad(const uint8_t* q, uint8_t* out) {
    B64 v = F::template quad<j>(q);
    if constexpr (F::zero != 0) v = sub64(v, F::zero);
    store64(out + 64 * j, v);
}
template <class F>
static void amx_unpack(const uint8_t* q, int blocks, uint8_t* out) {
    for (int b = 0; b < blocks; ++b, q += F::block_bytes, out += 512) {
        amx_unpack_quad<F, 0>(q, out);
        amx_unpack_quad<F, 1>(q, out);
        amx_unpack_quad<F, 2>(q, out);
        amx_unpack_quad<F, 3>(q, out);
        amx_unpack_quad<F, 4>(q, out);
        amx_unpack_quad<F, 5>(q, out);
        amx_unpack_quad<F, 6>(q, out);
        amx_unpack_quad<F, 7>(q, out);
    }
}

#define MIXKV_AMX_PRODUCT(c, a, b, x_at, w_at, sums) \
    do {                                             \
        _tile_zero(c);                               \
        _tile_loadd(a, x_at, 32);                    \
        _tile_loadd(b, w_at, 64);                    \
        _tile_dpbssd(c, a, b);                       \
        _tile_stored(c, sums, 64);                   \
    } while (0)

// 16 tokens (one tile of the activations) x one group.
template <class F>
static void amx_tile(const Packed* w, const uint8_t* codes, const uint8_t* s, const QuantX* x, int group, int t0,
                     int t1, const Out* out) {
    alignas(64) int32_t sums[2][16 * 16];
    const int nb = x->blocks;
    const size_t first = size_t(t0) * nb;
    const int8_t* xq = x->q + 32 * first;
    const float* xd = x->d + first;
    const int32_t* xs = x->sum + 2 * first;
    F16 acc[16];
    MIXKV_UNROLL
    for (int t = 0; t < 16; ++t) acc[t] = set16(0.0f);
    MIXKV_AMX_PRODUCT(0, 2, 4, xq, codes, sums[0]);
    const int steps = nb * F::subs;
    for (int i = 0; i < steps; ++i) {
        // One product ahead of the scaling, so that both units have work.
        const int next = i + 1 < steps ? i + 1 : i;
        const int8_t* xa = xq + size_t(next / F::subs) * 512 + (next % F::subs) * 16;
        const uint8_t* wa = codes + size_t(next) * (512 / F::subs);
        if (next & 1)
            MIXKV_AMX_PRODUCT(1, 3, 5, xa, wa, sums[1]);
        else
            MIXKV_AMX_PRODUCT(0, 2, 4, xa, wa, sums[0]);
        const int b = i / F::subs, h = i % F::subs;
        F16 d[F::subs], m[F::subs];
        F::scales(s, b, d, m);
        const int32_t* done = sums[i & 1];
        const F16 dh = F::subs == 1 || h == 0 ? d[0] : d[F::subs - 1];
        MIXKV_UNROLL
        for (int t = 0; t < 16; ++t)
            acc[t] = fma16(to_float(load_i32(done + 16 * t)), mul(dh, set16(xd[16 * b + t])), acc[t]);
        if constexpr (F::has_min) {
            const F16 mh = F::subs == 1 || h == 0 ? m[0] : m[F::subs - 1];
            const int32_t* sum = xs + 32 * b;
            const F16 total = to_float(
                {F::subs == 2 ? load_i32(sum + 16 * h).v : _mm512_add_epi32(load_i32(sum).v, load_i32(sum + 16).v)});
            alignas(64) float dx[16];
            store16(dx, mul(load16(xd + 16 * b), total));
            MIXKV_UNROLL
            for (int t = 0; t < 16; ++t) acc[t] = fma16(mh, set16(dx[t]), acc[t]);
        }
    }
    MIXKV_UNROLL
    for (int t = 0; t < 16; ++t)
        if (t0 + t < t1) put(out, w->rows, group, t0 + t, acc[t]);
}

template <class F>
static void amx_tiles(const Packed* w, const QuantX* x, int g0, int g1, int t0, int t1, const Out* out,
                      uint8_t* codes) {
    amx_configure(F::subs);
    for (int g = g0; g < g1; ++g) {
        amx_unpack<F>(w->q + w->q_group * size_t(g), x->blocks, codes);
        __asm__ volatile("" : : : "memory");  // the tile loads do not tell the compiler what they read
        for (int t = t0; t < t1; t += amx_tokens)
            amx_tile<F>(w, codes, w->s + w->s_group * size_t(g), x, g, t, t1, out);
    }
    _tile_release();
}

}  // namespace mixkv::MIXKV_ISA
