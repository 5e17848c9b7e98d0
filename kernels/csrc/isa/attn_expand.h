// Keys as values: where V is the beginning of K (multi-head latent attention), a K tile that is read is laid out as a V
// tile, once for all rows (layouts: kv_format.h): codes as codes, float16 and float32 as float32. Every number is exact.
#pragma once

#include "attn_ops.h"
#include "attn_simd.h"
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace mixkv::MIXKV_ISA {

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

template <class T>
static void values_of_floats(const uint8_t* tile, int, int dims, uint8_t* values) {
    const T* keys = reinterpret_cast<const T*>(tile);
    float* rows = reinterpret_cast<float*>(values);
    const int pitch = round_up_int(dims, 16);
    alignas(64) float block[16][tile_tokens];
    for (int d0 = 0; d0 < dims; d0 += 16) {
        for (int i = 0; i < 16; ++i)
            vstore(block[i], d0 + i < dims ? load_k(keys + (d0 + i) * tile_tokens) : vset(0.0f));
        for (int t = 0; t < tile_tokens; t += 4)
            for (int i = 0; i < 16; i += 4) turn_over(block[i] + t, rows + t * pitch + d0 + i, pitch);
    }
}

// Scales stand in the same order in tiles of both sides.
static inline void copy_scales(CacheType type, const uint8_t* tile, int head_dim, int dims, uint8_t* values) {
    memcpy(values + tile_code_bytes(type, dims), tile + tile_code_bytes(type, head_dim),
           size_t(n_blocks(dims)) * tile_tokens * 2);
}

static void values_of_q8(const uint8_t* tile, int head_dim, int dims, uint8_t* values) {
    for (int b = 0; b < n_blocks(dims); ++b, tile += 512, values += 512)
        for (int t = 0; t < tile_tokens; ++t)
            for (int j = 0; j < 8; ++j) {
                uint32_t word;
                memcpy(&word, tile + (j * tile_tokens + t) * 4, 4);
                word ^= 0x80808080u;
                memcpy(values + t * 32 + j * 4, &word, 4);
            }
    tile -= n_blocks(dims) * 512, values -= n_blocks(dims) * 512;
    copy_scales(cache_q8_0, tile, head_dim, dims, values);
}

// The low nibbles of eight tokens' bytes as the word of a V tile: even tokens, then odd ones.
static inline uint32_t nibbles_of(uint64_t bytes) {
    auto close_up = [](uint64_t x) {  // nibbles at bits 0, 16, 32, 48 -> 0, 4, 8, 12
        x = (x | x >> 12) & 0x000000ff000000ffull;
        return uint32_t(x | x >> 24) & 0xffffu;
    };
    return close_up(bytes & 0x000f000f000f000full) | close_up(bytes >> 8 & 0x000f000f000f000full) << 16;
}

static void values_of_q4(const uint8_t* tile, int head_dim, int dims, uint8_t* values) {
    copy_scales(cache_q4_0, tile, head_dim, dims, values);
    for (int b = 0; b < n_blocks(dims); ++b, tile += 256, values += 256) {
        uint32_t words[2][2][16];  // [half][octet][dim]
        for (int j = 0; j < 4; ++j)
            for (int octet = 0; octet < 2; ++octet) {
                const uint8_t* row = tile + (j * tile_tokens + octet * 8) * 4;
                for (int c = 0; c < 4; ++c) {
                    uint64_t bytes = 0;
                    for (int t = 0; t < 8; ++t) bytes |= uint64_t(row[t * 4 + c]) << (8 * t);
                    words[0][octet][4 * j + c] = nibbles_of(bytes);
                    words[1][octet][4 * j + c] = nibbles_of(bytes >> 4);
                }
            }
        memcpy(values, words, sizeof words);
    }
}

}  // namespace mixkv::MIXKV_ISA
