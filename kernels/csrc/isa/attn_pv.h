// Weighted sums of values: acc[r] += sum over t of p[r][t] v_t for one tile, t rising, one kernel per cache type.
//
// 32 dims at a time: the tile's part is unpacked once to float32 and then used for all rows. The scale of a quantized
// value, one per token and 32 dims, is multiplied into the weight instead of into 32 values.
#pragma once

#include "attn_ops.h"
#include "attn_simd.h"

namespace mixkv::MIXKV_ISA {

#if defined(__AVX512F__)
constexpr int pv_rows = 8;
#elif defined(__AVX2__)
constexpr int pv_rows = 2;
#else
constexpr int pv_rows = 1;
#endif

// R rows: weights p (pitch p_pitch), values v (16 tokens, pitch v_pitch), NV * 16 dims into acc.
template <int R, int NV>
static inline void pv_micro(const float* p, int p_pitch, const float* v, int v_pitch, int t0, int t1, float* acc,
                            int acc_pitch) {
    V sum[R][NV];
    for (int r = 0; r < R; ++r)
        for (int j = 0; j < NV; ++j) sum[r][j] = vload(acc + r * acc_pitch + 16 * j);
    for (int t = t0; t < t1; ++t) {
        V value[NV];
        for (int j = 0; j < NV; ++j) value[j] = vload(v + t * v_pitch + 16 * j);
        for (int r = 0; r < R; ++r) {
            const V weight = vset(p[r * p_pitch + t]);
            for (int j = 0; j < NV; ++j) sum[r][j] = vfma(weight, value[j], sum[r][j]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int j = 0; j < NV; ++j) vstore(acc + r * acc_pitch + 16 * j, sum[r][j]);
}

// Unpacked values of (at most) 32 dims for rows r0..r1; `scales` of the 16 tokens, or null. NV: 1 or 2 times 16 dims.
template <int NV>
static void pv_columns(const float* x, int r0, int r1, const float* v, int v_pitch, const uint16_t* scales, int t0,
                       int t1, float* acc, int acc_pitch) {
    const V d = scales ? vload_half(scales) : vset(1.0f);
    auto run = [&]<int R>(int r) {
        const float* p = x + size_t(r) * block_keys;
        float scaled[R * tile_tokens];
        if (scales)
            for (int i = 0; i < R; ++i) vstore(scaled + i * tile_tokens, vmul(vload(p + i * block_keys), d));
        pv_micro<R, NV>(scales ? scaled : p, scales ? tile_tokens : block_keys, v, v_pitch, t0, t1,
                        acc + size_t(r) * acc_pitch, acc_pitch);
    };
    int r = r0;
    for (; r + pv_rows <= r1; r += pv_rows) run.template operator()<pv_rows>(r);
    if constexpr (pv_rows > 4)
        for (; r + 4 <= r1; r += 4) run.template operator()<4>(r);
    for (; r < r1; ++r) run.template operator()<1>(r);
}

static void pv_f32(const float* x, int r0, int r1, const uint8_t* tile, int head_dim, int t0, int t1,
                   const StateRows& state) {
    const float* v = reinterpret_cast<const float*>(tile);
    const int cols = round_up_int(head_dim, 16);
    int c = 0;
    for (; c + 32 <= cols; c += 32)
        pv_columns<2>(x, r0, r1, v + c, cols, nullptr, t0, t1, state.acc + c, state.pitch);
    if (c < cols) pv_columns<1>(x, r0, r1, v + c, cols, nullptr, t0, t1, state.acc + c, state.pitch);
}

static void pv_f16(const float* x, int r0, int r1, const uint8_t* tile, int head_dim, int t0, int t1,
                   const StateRows& state) {
    const auto* v = reinterpret_cast<const uint16_t*>(tile);
    const int cols = round_up_int(head_dim, 16);
    alignas(64) float part[tile_tokens * 32];
    for (int c = 0; c < cols; c += 32) {
        const bool both = c + 32 <= cols;
        for (int t = t0; t < t1; ++t) {
            ask_ahead(v + t * cols + c);
            vstore(part + t * 32, vload_half(v + t * cols + c));
            if (both) vstore(part + t * 32 + 16, vload_half(v + t * cols + c + 16));
        }
        if (both)
            pv_columns<2>(x, r0, r1, part, 32, nullptr, t0, t1, state.acc + c, state.pitch);
        else
            pv_columns<1>(x, r0, r1, part, 32, nullptr, t0, t1, state.acc + c, state.pitch);
    }
}

static void pv_q8_0(const float* x, int r0, int r1, const uint8_t* tile, int head_dim, int t0, int t1,
                    const StateRows& state) {
    const int blocks = n_blocks(head_dim);
    const auto* scales = reinterpret_cast<const uint16_t*>(tile + tile_code_bytes(cache_q8_0, head_dim));
    alignas(64) float part[tile_tokens * 32];
    for (int b = 0; b < blocks; ++b) {
        const auto* codes = reinterpret_cast<const int8_t*>(tile) + b * 512;
        for (int i = 0; i < tile_tokens * 32; i += 16) {
            if (i % 64 == 0) ask_ahead(codes + i);
            vstore(part + i, vload_int8(codes + i));
        }
        pv_columns<2>(x, r0, r1, part, 32, scales + b * 16, t0, t1, state.acc + b * 32, state.pitch);
    }
}

static void pv_q4_0(const float* x, int r0, int r1, const uint8_t* tile, int head_dim, int t0, int t1,
                    const StateRows& state) {
    const int blocks = n_blocks(head_dim);
    const auto* scales = reinterpret_cast<const uint16_t*>(tile + tile_code_bytes(cache_q4_0, head_dim));
    alignas(64) float part[tile_tokens * 32];
    for (int b = 0; b < blocks; ++b) {
        const auto* words = reinterpret_cast<const uint32_t*>(tile) + b * 64;
        for (int half = 0; half < 2; ++half)
            for (int octet = 0; octet < 2; ++octet) {
                ask_ahead(words + (half * 2 + octet) * 16);
                const I w = vload_i(words + (half * 2 + octet) * 16);
                for (int n = 0; n < 8; ++n)
                    vstore(part + (octet * 8 + v_token(n)) * 32 + half * 16, vnibble(w, n));
            }
        pv_columns<2>(x, r0, r1, part, 32, scales + b * 16, t0, t1, state.acc + b * 32, state.pitch);
    }
}

}  // namespace mixkv::MIXKV_ISA
