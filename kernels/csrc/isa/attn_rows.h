// Work on single rows of Q, K, V: rotation, encoding for the cache, splitting queries into int8 pairs.
#pragma once

#include "attn_ops.h"
#include "attn_simd.h"

namespace mixkv::MIXKV_ISA {

// Butterflies at distance `half` >= 16 over chunks of 2 * half floats.
static void wide_butterflies(float* row, int n, int half) {
    for (int start = 0; start < n; start += 2 * half)
        for (int i = start; i < start + half; i += 16) {
            const V a = vload(row + i), b = vload(row + i + half);
            vstore(row + i, vadd(a, b));
            vstore(row + i + half, vsub(a, b));
        }
}

// Stages of distance 1, 2, 4 ... in rising order, as the NumPy twin has them, so that both round alike.
static void hadamard(float* row, int head_dim) {
    const int width = head_dim & -head_dim;
    if (width == 1) return;
    const V norm = vset(1.0f / sqrtf(float(width)));
    for (int i = 0; i < head_dim; i += 16) {
        V x = vload(row + i);
        x = vbutterfly<1>(x);
        if (width > 2) x = vbutterfly<2>(x);
        if (width > 4) x = vbutterfly<4>(x);
        if (width > 8) x = vbutterfly<8>(x);
        vstore(row + i, width > 16 ? x : vmul(x, norm));
    }
    if (width <= 16) return;
    for (int half = 16; half < width; half *= 2) wide_butterflies(row, head_dim, half);
    for (int i = 0; i < head_dim; i += 16) vstore(row + i, vmul(vload(row + i), norm));
}

static inline uint32_t magnitude_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits & 0x7fffffffu;
}

// The largest magnitude, compared as bits: a NaN is larger than everything and so is not lost.
static inline uint32_t max_magnitude(const float* x) {
    uint32_t most = 0;
    for (int i = 0; i < block_dims; ++i) {
        const uint32_t bits = magnitude_bits(x[i]);
        most = bits > most ? bits : most;
    }
    return most;
}

// GGML's Q4_0: d = (first value of largest magnitude) / -8, code = clamp(floor(x / d + 8.5), 0, 15), NaN -> 0. The
// codes use the float32 scale, which is then stored as FP16.
static void encode_q4_0(const float* x, uint8_t* bytes) {
    const uint32_t most = max_magnitude(x);
    float top = 0.0f;
    for (int i = block_dims - 1; i >= 0; --i)
        if (magnitude_bits(x[i]) == most) top = x[i];
    const float d = top / -8.0f, inverse = d == 0.0f ? 0.0f : 1.0f / d;
    const uint16_t half = float_to_half(d);
    memcpy(bytes, &half, 2);
    uint8_t codes[block_dims];
    for (int i = 0; i < block_dims; ++i) {
        float y = x[i] * inverse + 8.5f;
        y = y > 0.0f ? y : 0.0f;
        y = y < 15.0f ? y : 15.0f;
        codes[i] = uint8_t(int(y));
    }
    for (int i = 0; i < 16; ++i) bytes[2 + i] = uint8_t(codes[i] | codes[i + 16] << 4);
}

// GGML's Q8_0: d = max |x| / 127, code = x / d rounded half away from zero.
static void encode_q8_0(const float* x, uint8_t* bytes) {
    const uint32_t most = max_magnitude(x);
    float top;
    memcpy(&top, &most, 4);
    const float d = top / 127.0f, inverse = d == 0.0f ? 0.0f : 1.0f / d;
    const uint16_t half = float_to_half(d);
    memcpy(bytes, &half, 2);
    for (int i = 0; i < block_dims; ++i) {
        const float y = x[i] * inverse, a = fabsf(y);
        float b = floorf(a);
        b += floorf(2.0f * (a - b));
        b = b < 127.0f ? b : (b == b ? 127.0f : 0.0f);
        bytes[2 + i] = uint8_t(int8_t(int(copysignf(b, y))));
    }
}

static void encode_row(CacheType type, const float* row, int head_dim, uint8_t* bytes) {
    if (type == cache_f32) {
        memcpy(bytes, row, size_t(head_dim) * 4);
    } else if (type == cache_f16) {
        for (int i = 0; i < head_dim; i += 16) {
            uint16_t half[16];
            vstore_half(half, vload(row + i));
            memcpy(bytes + 2 * i, half, size_t(head_dim - i < 16 ? head_dim - i : 16) * 2);
        }
    } else {
        for (int b = 0; b < n_blocks(head_dim); ++b)
            if (type == cache_q8_0)
                encode_q8_0(row + b * block_dims, bytes + b * 34);
            else
                encode_q4_0(row + b * block_dims, bytes + b * 18);
    }
}

static void decode_row(CacheType type, const uint8_t* bytes, int head_dim, float* row) {
    const int pitch = padded_dim(head_dim);
    for (int i = head_dim; i < pitch; ++i) row[i] = 0.0f;
    if (type == cache_f32) {
        memcpy(row, bytes, size_t(head_dim) * 4);
    } else if (type == cache_f16) {
        for (int i = 0; i < head_dim; i += 16) {
            uint16_t half[16] = {};
            memcpy(half, bytes + 2 * i, size_t(head_dim - i < 16 ? head_dim - i : 16) * 2);
            vstore(row + i, vload_half(half));
        }
    } else {
        for (int b = 0; b < n_blocks(head_dim); ++b) {
            const uint8_t* block = bytes + b * (type == cache_q8_0 ? 34 : 18);
            uint16_t half;
            memcpy(&half, block, 2);
            const float d = half_to_float(half);
            for (int i = 0; i < block_dims; ++i) {
                const int code = type == cache_q8_0 ? int8_t(block[2 + i])
                                                    : (i < 16 ? block[2 + i] & 15 : block[2 + i - 16] >> 4) - 8;
                row[b * block_dims + i] = d * float(code);
            }
        }
    }
}

// q = factor * (base * hi + lo). For q8_0, base 256 and 16 bits. For q4_0, base 16 and |16 hi + lo| <= 2159: 12 bits,
// as much as an FP16 number has, and 16 * code still fits a byte, which lets one matrix product do both parts. The
// largest magnitude of the row gets the largest integer. (lo = -128 is nudged to -127: the AVX2 sign trick cannot
// negate -128.)
static void split_queries(const QueryRows& q, CacheType type_k, float by) {
    const bool quantized = type_k == cache_q4_0 || type_k == cache_q8_0;
    const int base = type_k == cache_q4_0 ? 16 : 256, zero = type_k == cache_q4_0 ? 8 : 128;
    const float most_code = type_k == cache_q4_0 ? 2159.0f : 32512.0f;
    for (int r = 0; r < q.n_rows; ++r) {
        q.scale[r] = by;
        if (!quantized) continue;
        float* x = q.q + size_t(r) * q.pitch;
        uint32_t most = 0;
        for (int b = 0; b < q.blocks; ++b) {
            const uint32_t m = max_magnitude(x + b * block_dims);
            most = m > most ? m : most;
        }
        float top;
        memcpy(&top, &most, 4);
        const float factor = top / most_code;
        const bool usable = most < 0x7f800000u && factor > 1e-30f;  // zero, tiny, infinite, NaN: codes 0, x as it is
        if (usable) q.scale[r] *= factor;
        const float inverse = usable ? 1.0f / factor : 1.0f;
        for (int i = 0; i < q.pitch; ++i) x[i] *= inverse;
        if (most >= 0x7f800000u) q.scale[r] = NAN;
        for (int b = 0; b < q.blocks; ++b) {
            const float* y = x + b * block_dims;
            int8_t* codes = q.codes + (size_t(r) * q.blocks + b) * 64;
            int32_t sum = 0;
            for (int i = 0; i < block_dims; ++i) {
                float v = usable ? y[i] : 0.0f;
                v = v < most_code ? v : most_code;
                v = v > -most_code ? v : -most_code;
                const int code = int(rintf(v));
                int hi = (code + base / 2) >> (base == 16 ? 4 : 8);
                hi = hi > 127 ? 127 : hi < -127 ? -127 : hi;
                int lo = code - hi * base;
                lo = lo < -127 ? -127 : lo;
                codes[i] = int8_t(hi);
                codes[32 + i] = int8_t(lo);
                sum += hi * base + lo;
            }
            q.offset[size_t(r) * q.blocks + b] = -zero * sum;
        }
    }
}

}  // namespace mixkv::MIXKV_ISA
