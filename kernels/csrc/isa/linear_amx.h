// Products of many tokens with AMX: one tile instruction multiplies 16 tokens by 16 rows over a block of 32 columns
// (16 where a format has two scales), exactly, in int32; AVX-512 then scales the 16 x 16 sums into float accumulators
// in the same order as linear_quant.cpp does, so both give the same bits.
//
// What limits it, measured on a Xeon with 480 MB of L3: a product costs 12 cycles, its tile loads 10 and its tile store
// 12, and these hardly overlap with vector work; the scaling is 48 vector operations, 24 cycles alone and more for some
// hundred cycles after a product. 52 cycles in all where everything is in L1, about 70 in a prompt, against 130 with VNNI.
#pragma once

#include "linear_formats.h"
#include "linear_out.h"

namespace mixkv::MIXKV_ISA {

constexpr int amx_min_tokens = 9;      // QuantX::width is then 16, a tile's rows
constexpr int amx_least_left = 4;      // rows beyond whole tiles that are worth another one must be more
constexpr int amx_chunk_blocks = 32;   // 16 KiB of unpacked codes, a third of L1

struct TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

// tmm0, 1: sums   tmm4, 5: activations, 16 tokens x 32 / subs   tmm6, 7: weights, quads x 16 rows x 4
// (_tile_loadconfig of gcc 12 tells the compiler that 8 bytes are read, which drops the other stores: so by hand.)
static void amx_configure(int subs) {
    TileConfig c;
    memset(&c, 0, sizeof c);
    c.palette = 1;
    for (int i = 0; i < 8; ++i) {
        c.rows[i] = i < 6 ? 16 : uint8_t(8 / subs);
        c.row_bytes[i] = i == 4 || i == 5 ? uint16_t(32 / subs) : 64;
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
    for (int b = 0; b < blocks; ++b, q += F::block_step, out += 512) {
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

#define MIXKV_AMX_PRODUCT(c, a, b, x_at, w_at) \
    do {                                       \
        _tile_zero(c);                         \
        _tile_loadd(a, x_at, 32);              \
        _tile_loadd(b, w_at, 64);              \
        _tile_dpbssd(c, a, b);                 \
    } while (0)

// What one tile of 16 tokens needs at the columns of a chunk.
struct AmxInput {
    const int8_t* x;    // [block][16 tokens][32]
    const float* d;     // [block][16]
    const int32_t* sum; // [block][2][16]
};

// What is fetched ahead during a tile, a step each: the rows of a result that it will be written to (and of the residual
// that is added), and blocks of the weights that are unpacked next.
struct AmxFetch {
    const float *y, *residual;
    int64_t ldy, ldr;
    const uint8_t* q;
    int steps;
};
template <class F>
constexpr int amx_fetch_steps = F::subs * amx_chunk_blocks / 2;  // of a chunk's tile

// acc += sums * scales for one step (a block, or half of one), and the minimums.
template <class F>
MIXKV_INLINE void amx_scale(F16 acc[16], const int32_t* sums, const uint8_t* s, const AmxInput& in, int first,
                            int step) {
    const int b = step / F::subs, h = step % F::subs;
    F16 d[2], m[2];
    F::scales(s, first + b, d, m);
    const F16 dh = h == 0 ? d[0] : d[F::subs - 1];
    const float* xd = in.d + 16 * b;
    MIXKV_UNROLL
    for (int t = 0; t < 16; ++t) acc[t] = fma16(to_float(load_i32(sums + 16 * t)), mul(dh, set16(xd[t])), acc[t]);
    if constexpr (F::has_min) {
        const F16 mh = h == 0 ? m[0] : m[F::subs - 1];
        const int32_t* xs = in.sum + 32 * b;
        const I16 total =
            F::subs == 2 ? load_i32(xs + 16 * h) : I16{_mm512_add_epi32(load_i32(xs).v, load_i32(xs + 16).v)};
        alignas(64) float dx[16];
        store16(dx, mul(load16(xd), to_float(total)));
        MIXKV_UNROLL
        for (int t = 0; t < 16; ++t) acc[t] = fma16(mh, set16(dx[t]), acc[t]);
    }
}

// acc (16 tokens x 16 rows) += blocks first .. first + blocks of one group. Each product is started before the scaling
// of the one before it and stored after: its latency is hidden behind 48 vector operations. Meanwhile the rows that the
// result will be written to and added to come closer, one at a time: each is a page of its own.
template <class F, bool ahead>
static void amx_tile(float* acc_at, const AmxInput in, const uint8_t* codes, const uint8_t* s, int first, int blocks,
                     const AmxFetch fetch) {
    alignas(64) int32_t sums[2][256];
    const int steps = blocks * F::subs;
    const auto x_at = [&](int i) { return in.x + size_t(i / F::subs) * 512 + (i % F::subs) * 16; };
    const auto w_at = [&](int i) { return codes + size_t(i) * (512 / F::subs); };
    F16 acc[16];
    MIXKV_UNROLL
    for (int t = 0; t < 16; ++t) acc[t] = first == 0 ? set16(0.0f) : load16(acc_at + 16 * t);
    MIXKV_AMX_PRODUCT(0, 4, 6, x_at(0), w_at(0));
    _tile_stored(0, sums[0], 64);
    for (int i = 0; i < steps; i += 2) {
        if (i / 2 < fetch.steps) {
            __builtin_prefetch(fetch.y + i / 2 * fetch.ldy, 1);
            __builtin_prefetch(fetch.residual + i / 2 * fetch.ldr);
            if constexpr (ahead) {
                MIXKV_UNROLL
                for (int line = 0; line < F::block_bytes; line += 64)
                    __builtin_prefetch(fetch.q + i / 2 * F::block_step + line, 0, 2);
            }
        }
        if (i + 1 < steps) MIXKV_AMX_PRODUCT(1, 5, 7, x_at(i + 1), w_at(i + 1));
        amx_scale<F>(acc, sums[0], s, in, first, i);
        if (i + 1 == steps) break;
        _tile_stored(1, sums[1], 64);
        if (i + 2 < steps) MIXKV_AMX_PRODUCT(0, 4, 6, x_at(i + 2), w_at(i + 2));
        amx_scale<F>(acc, sums[1], s, in, first, i + 1);
        if (i + 2 < steps) _tile_stored(0, sums[0], 64);
    }
    MIXKV_UNROLL
    for (int t = 0; t < 16; ++t) store16(acc_at + 16 * t, acc[t]);
}

// Groups x tokens, in chunks of columns: a chunk's unpacked codes stay in L1 while all tokens pass by, and only the
// activations stream from L2. scratch: the codes, then the accumulators of all tokens.
template <class F>
static void amx_tiles(const Packed* w, const QuantX* x, int g0, int g1, int t0, int t1, const Out* out,
                      uint8_t* scratch) {
    float* accs = (float*)(scratch + amx_chunk_blocks * 512);
    const int nb = x->blocks;
    amx_configure(F::subs);
    for (int g = g0; g < g1; ++g) {
        const uint8_t *q = w->q_of(g, F::block_bytes), *s = w->s_of(g, F::unit_bytes);
        for (int b = 0; b < nb; b += amx_chunk_blocks) {
            const int count = nb - b < amx_chunk_blocks ? nb - b : amx_chunk_blocks;
            const bool last = b + count == nb;
            // What is unpacked after this chunk: the next one of the group, of the next group, or what `out` says.
            const uint8_t* next = !last        ? q + size_t(b + count) * F::block_step
                                  : g + 1 < g1 ? w->q_of(g + 1, F::block_bytes)
                                               : out->next.q;
            int n_next = !out->next.q ? 0 : last ? nb : nb - b - count;  // of a long row of tokens, reading is no part
            if (n_next > amx_chunk_blocks) n_next = amx_chunk_blocks;
            amx_unpack<F>(q + size_t(b) * F::block_step, count, scratch);
            __asm__ volatile("" : : : "memory");  // the tile loads do not tell the compiler what they read
            for (int t = t0; t < t1; t += 16) {
                const size_t at = size_t(t) * size_t(nb) + 16 * size_t(b);
                const int end = !last ? t : t1 < t + 16 ? t1 : t + 16;
                float* acc = accs + 16 * (t - t0);
                const float* y = out->y + t * out->ldy + (g * group_rows - out->row0);
                const float* residual = out->residual ? out->residual + t * out->ldr + g * group_rows : y;
                const int at_block = (t - t0) / 16 * amx_fetch_steps<F>, blocks = n_next - at_block;
                const AmxFetch fetch = {
                    y, residual, out->ldy, out->residual ? out->ldr : out->ldy,
                    blocks > 0 ? next + size_t(at_block) * F::block_step : scratch,
                    last ? end - t : blocks < amx_fetch_steps<F> ? blocks : amx_fetch_steps<F>,
                };
                const AmxInput in = {x->q + 32 * at, x->d + at, x->sum + 2 * at};
                if (n_next)  // only then: fetching nothing costs a long row of tokens its twentieth
                    amx_tile<F, true>(acc, in, scratch, s, b, count, fetch);
                else
                    amx_tile<F, false>(acc, in, scratch, s, b, count, fetch);
                for (int i = t; i < end; ++i) put(out, w->rows, g, i, load16(acc + 16 * (i - t)));
            }
        }
    }
    _tile_release();
}

}  // namespace mixkv::MIXKV_ISA
