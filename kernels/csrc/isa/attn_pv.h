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
#elif defined(__AVX2__) || defined(__ARM_FEATURE_DOTPROD)
constexpr int pv_rows = 2;
#else
constexpr int pv_rows = 1;
#endif

// R rows: weights p (pitch p_pitch), values v (16 tokens, pitch v_pitch), NV * 16 dims into acc.
template <int R, int NV>
static inline void pv_micro(const float* p, int p_pitch, const float* v, int v_pitch, int t0, int t1, float* acc,
                            int acc_pitch) {
    V sum[R][NV];
    MIXKV_UNROLL
    for (int r = 0; r < R; ++r)
        MIXKV_UNROLL
        for (int j = 0; j < NV; ++j) sum[r][j] = vload(acc + r * acc_pitch + 16 * j);
    for (int t = t0; t < t1; ++t) {
        V value[NV];
        MIXKV_UNROLL
        for (int j = 0; j < NV; ++j) value[j] = vload(v + t * v_pitch + 16 * j);
        MIXKV_UNROLL
        for (int r = 0; r < R; ++r) {
            const V weight = vset(p[r * p_pitch + t]);
            MIXKV_UNROLL
            for (int j = 0; j < NV; ++j) sum[r][j] = vfma(weight, value[j], sum[r][j]);
        }
    }
    MIXKV_UNROLL
    for (int r = 0; r < R; ++r)
        MIXKV_UNROLL
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

// 32 dims of one tile as float32, [16 tokens][32] (at the last 16 of a float tile only half of it).
template <CacheType type>
static inline void unpack_v(const uint8_t* tile, int head_dim, int c, float* part) {
    const int cols = round_up_int(head_dim, 16);
    if constexpr (type == cache_q4_0) {
        const auto* words = reinterpret_cast<const uint32_t*>(tile) + c / 32 * 64;
        for (int half = 0; half < 2; ++half)
            for (int octet = 0; octet < 2; ++octet) {
                ask_ahead(words + (half * 2 + octet) * 16);
                const I w = vload_i(words + (half * 2 + octet) * 16);
                MIXKV_UNROLL
                for (int n = 0; n < 8; ++n) vstore(part + (octet * 8 + v_token(n)) * 32 + half * 16, vnibble(w, n));
            }
    } else if constexpr (type == cache_q8_0) {
        const auto* codes = reinterpret_cast<const int8_t*>(tile) + c / 32 * 512;
        for (int i = 0; i < tile_tokens * 32; i += 16) {
            if (i % 64 == 0) ask_ahead(codes + i);
            vstore(part + i, vload_int8(codes + i));
        }
    } else {
        const auto* v = reinterpret_cast<const uint16_t*>(tile) + c;
        for (int t = 0; t < tile_tokens; ++t) {
            ask_ahead(v + t * cols);
            vstore(part + t * 32, vload_half(v + t * cols));
            if (c + 32 <= cols) vstore(part + t * 32 + 16, vload_half(v + t * cols + 16));
        }
    }
}

// One tile: keys t0 .. t1 of it.
template <CacheType type>
static void pv_tile(const float* x, int r0, int r1, const uint8_t* tile, int head_dim, int t0, int t1,
                    const StateRows& state) {
    const int cols = is_float_type(type) ? round_up_int(head_dim, 16) : padded_dim(head_dim);
    alignas(64) float part[tile_tokens * 32];
    for (int c = 0; c < cols; c += 32) {
        unpack_v<type>(tile, head_dim, c, part);
        const uint8_t* scales = is_float_type(type) ? nullptr : tile + tile_code_bytes(type, head_dim) + c;
        const auto* d = reinterpret_cast<const uint16_t*>(scales);
        if (c + 32 <= cols)
            pv_columns<2>(x, r0, r1, part, 32, d, t0, t1, state.acc + c, state.pitch);
        else
            pv_columns<1>(x, r0, r1, part, 32, d, t0, t1, state.acc + c, state.pitch);
    }
}

// All rows and the four tiles of a block, the same numbers as four times pv: 64 keys between fetching a row's sums and
// storing them again.
template <CacheType type>
static void pv_whole(const float* x, int n_rows, const uint8_t* const* tiles, int head_dim, const StateRows& state) {
    alignas(64) float part[block_keys * 32];
    for (int c = 0; c < round_up_int(head_dim, 16); c += 32) {
        V d[tiles_per_block];
        for (int t = 0; t < tiles_per_block; ++t) {
            unpack_v<type>(tiles[t], head_dim, c, part + t * tile_tokens * 32);
            if (is_float_type(type)) continue;
            const uint8_t* scales = tiles[t] + tile_code_bytes(type, head_dim) + c;  // 16 of 2 bytes for 32 dims
            ask_ahead(scales);
            d[t] = vload_half(reinterpret_cast<const uint16_t*>(scales));
        }
        const bool both = is_float_type(type) ? c + 32 <= round_up_int(head_dim, 16) : true;
        auto run = [&]<int R>(int r) {
            alignas(64) float scaled[R * block_keys];
            const float* p = x + size_t(r) * block_keys;
            if constexpr (!is_float_type(type)) {
                for (int i = 0; i < R; ++i)
                    for (int t = 0; t < tiles_per_block; ++t)
                        vstore(scaled + i * block_keys + t * 16, vmul(vload(p + i * block_keys + t * 16), d[t]));
                p = scaled;
            }
            float* acc = state.acc + size_t(r) * state.pitch + c;
            if (both)
                pv_micro<R, 2>(p, block_keys, part, 32, 0, block_keys, acc, state.pitch);
            else
                pv_micro<R, 1>(p, block_keys, part, 32, 0, block_keys, acc, state.pitch);
        };
        int r = 0;
        for (; r + pv_rows <= n_rows; r += pv_rows) run.template operator()<pv_rows>(r);
        if constexpr (pv_rows > 4)
            for (; r + 4 <= n_rows; r += 4) run.template operator()<4>(r);
        for (; r < n_rows; ++r) run.template operator()<1>(r);
    }
}

}  // namespace mixkv::MIXKV_ISA
