// Keys as values: where V is the beginning of K (multi-head latent attention), a K tile that is read is laid out as a
// float32 V tile, once for all rows (layouts: kv_format.h). Every number is exact, the same on every instruction set.
#pragma once

#include "attn_ops.h"
#include "attn_simd.h"
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace mixkv::MIXKV_ISA {

// Dimension d of the 16 keys of a tile.
template <CacheType type>
static inline V key_dim(const uint8_t* tile, int head_dim, int d) {
    if constexpr (type == cache_f32) {
        return vload(reinterpret_cast<const float*>(tile) + d * tile_tokens);
    } else if constexpr (type == cache_f16) {
        return vload_half(reinterpret_cast<const uint16_t*>(tile) + d * tile_tokens);
    } else {
        const int b = d / block_dims, i = d % block_dims;
        const auto* scales = reinterpret_cast<const uint16_t*>(tile + tile_code_bytes(type, head_dim));
        const V scale = vload_half(scales + b * tile_tokens);
        const auto* words = reinterpret_cast<const uint32_t*>(tile);
        if constexpr (type == cache_q8_0) {  // a code is two nibbles, both of which come with 8 taken off
            const I w = vload_i(words + (b * 8 + i / 4) * tile_tokens);
            const V code = vadd(vfma(vnibble(w, 2 * (i % 4) + 1), vset(16.0f), vnibble(w, 2 * (i % 4))), vset(8.0f));
            return vmul(scale, code);
        } else {
            const I w = vload_i(words + (b * 4 + i % 16 / 4) * tile_tokens);
            return vmul(scale, vnibble(w, 2 * (i % 4) + i / 16));
        }
    }
}

// 4 x 4 numbers, rows 16 apart, to columns `pitch` apart. (A scalar loop over 16 x 16 took five times as long.)
static inline void turn_over(const float* from, float* to, int pitch) {
#if defined(__SSE__)
    __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + 16), c = _mm_loadu_ps(from + 32), d = _mm_loadu_ps(from + 48);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(to, a), _mm_storeu_ps(to + pitch, b);
    _mm_storeu_ps(to + 2 * pitch, c), _mm_storeu_ps(to + 3 * pitch, d);
#elif defined(__ARM_FEATURE_DOTPROD)
    const float32x4_t a = vld1q_f32(from), b = vld1q_f32(from + 16), c = vld1q_f32(from + 32), d = vld1q_f32(from + 48);
    const float32x4_t ab = vtrn1q_f32(a, b), ba = vtrn2q_f32(a, b), cd = vtrn1q_f32(c, d), dc = vtrn2q_f32(c, d);
    vst1q_f32(to, vcombine_f32(vget_low_f32(ab), vget_low_f32(cd)));
    vst1q_f32(to + pitch, vcombine_f32(vget_low_f32(ba), vget_low_f32(dc)));
    vst1q_f32(to + 2 * pitch, vcombine_f32(vget_high_f32(ab), vget_high_f32(cd)));
    vst1q_f32(to + 3 * pitch, vcombine_f32(vget_high_f32(ba), vget_high_f32(dc)));
#else
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) to[i * pitch + j] = from[j * 16 + i];
#endif
}

template <CacheType type>
static void expand_keys(const uint8_t* tile, int head_dim, int dims, float* rows) {
    const int pitch = round_up_int(dims, 16);
    alignas(64) float block[16][tile_tokens];
    for (int d0 = 0; d0 < dims; d0 += 16) {
        for (int i = 0; i < 16; ++i)
            vstore(block[i], d0 + i < dims ? key_dim<type>(tile, head_dim, d0 + i) : vset(0.0f));
        for (int t = 0; t < tile_tokens; t += 4)
            for (int i = 0; i < 16; i += 4) turn_over(block[i] + t, rows + t * pitch + d0 + i, pitch);
    }
}

}  // namespace mixkv::MIXKV_ISA
