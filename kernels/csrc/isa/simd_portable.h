// simd.h in the vector extensions of gcc and clang, 128 bits at a time: the tier `base` of every architecture
// (x86-64-v2, plain Armv8, whatever else). Only dot() and lookup16() know an instruction set: SSSE3 both, NEON the
// latter; else they are plain C.
#pragma once

#if defined(__SSSE3__)
#include <tmmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define MIXKV_EACH MIXKV_UNROLL for (int n = 0; n < 4; ++n)

namespace mixkv::MIXKV_ISA {

typedef uint8_t u8x16 __attribute__((vector_size(16)));
typedef uint8_t u8x4 __attribute__((vector_size(4)));
typedef int8_t i8x4 __attribute__((vector_size(4)));
typedef uint16_t u16x4 __attribute__((vector_size(8)));
typedef uint32_t u32x4 __attribute__((vector_size(16)));
typedef int32_t i32x4 __attribute__((vector_size(16)));
typedef float f32x4 __attribute__((vector_size(16)));

struct B64 {
    u8x16 v[4];
};
struct I16 {
    i32x4 v[4];
};
struct F16 {
    f32x4 v[4];
};

template <class V>
MIXKV_INLINE V load_as(const void* p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}
template <class F>
MIXKV_INLINE B64 each64(F f) {
    B64 r;
    MIXKV_EACH r.v[n] = f(n);
    return r;
}
template <class F>
MIXKV_INLINE F16 each16(F f) {
    F16 r;
    MIXKV_EACH r.v[n] = f(n);
    return r;
}
template <class F>
MIXKV_INLINE I16 eachi(F f) {
    I16 r;
    MIXKV_EACH r.v[n] = f(n);
    return r;
}
MIXKV_INLINE f32x4 as_float(u32x4 bits) { return (f32x4)bits; }

MIXKV_INLINE B64 load64(const void* p) {
    return each64([&](int n) { return load_as<u8x16>((const uint8_t*)p + 16 * n); });
}
MIXKV_INLINE void store64(void* p, B64 v) { memcpy(p, v.v, 64); }
MIXKV_INLINE B64 low4(B64 a) {
    return each64([&](int n) { return a.v[n] & 15; });
}
MIXKV_INLINE B64 high4(B64 a) {
    return each64([&](int n) { return a.v[n] >> 4; });
}
MIXKV_INLINE B64 or64(B64 a, B64 b) {
    return each64([&](int n) { return a.v[n] | b.v[n]; });
}
MIXKV_INLINE B64 sub64(B64 a, int c) {
    return each64([&](int n) { return a.v[n] - uint8_t(c); });
}
template <int pair>
MIXKV_INLINE B64 bits2(B64 a) {
    return each64([&](int n) { return (a.v[n] >> (2 * pair)) & 3; });
}
template <int count>
MIXKV_INLINE B64 shl64(B64 a) {
    return each64([&](int n) { return a.v[n] << count; });
}
template <int bit, int value>
MIXKV_INLINE B64 bit_as(B64 a) {
    return each64([&](int n) { return ((a.v[n] >> bit) & 1) * uint8_t(value); });
}
MIXKV_INLINE B64 lookup16(const uint8_t* table, B64 x) {
#if defined(__SSSE3__)
    const __m128i t = _mm_loadu_si128((const __m128i*)table);
    return each64([&](int n) { return (u8x16)_mm_shuffle_epi8(t, (__m128i)x.v[n]); });
#elif defined(__aarch64__)
    const uint8x16_t t = vld1q_u8(table);
    return each64([&](int n) { return (u8x16)vqtbl1q_u8(t, (uint8x16_t)x.v[n]); });
#else
    B64 r;
    for (int i = 0; i < 64; ++i) r.v[i / 16][i % 16] = table[x.v[i / 16][i % 16]];
    return r;
#endif
}

// As in simd_avx2.h: codes that fit are multiplied unsigned and corrected by dot_init, wide ones made signed.
#if defined(__SSSE3__)
template <int zero>
MIXKV_INLINE I16 dot_init(int32_t xsum) {
    const int32_t v = zero == 128 ? 0 : -zero * xsum;
    return eachi([&](int) { return i32x4{v, v, v, v}; });
}
template <int zero, int j>
MIXKV_INLINE I16 dot(I16 acc, B64 codes, const int8_t* x4) {
    const __m128i xs = _mm_set1_epi32(load_as<int32_t>(x4));
    return eachi([&](int n) {
        __m128i w = (__m128i)codes.v[n], x = xs;
        if constexpr (zero == 128) {
            w = _mm_xor_si128(w, _mm_set1_epi8(char(0x80)));
            x = _mm_sign_epi8(x, w);
            w = _mm_abs_epi8(w);
        }
        return acc.v[n] + (i32x4)_mm_madd_epi16(_mm_maddubs_epi16(w, x), _mm_set1_epi16(1));
    });
}
#else
template <int zero>
MIXKV_INLINE I16 dot_init(int32_t) {
    return eachi([](int) { return i32x4{0, 0, 0, 0}; });
}
template <int zero, int j>
MIXKV_INLINE I16 dot(I16 acc, B64 codes, const int8_t* x4) {
    for (int i = 0; i < 16; ++i)
        for (int k = 0; k < 4; ++k) acc.v[i / 4][i % 4] += (int32_t(codes.v[i / 4][4 * (i % 4) + k]) - zero) * x4[k];
    return acc;
}
#endif
template <int b>
MIXKV_INLINE I16 byte_of(B64 a) {
    return eachi([&](int n) { return (i32x4)(((u32x4)a.v[n] >> (8 * b)) & 255); });  // little-endian lanes
}

MIXKV_INLINE I16 load_i32(const int32_t* p) {
    return eachi([&](int n) { return load_as<i32x4>(p + 4 * n); });
}
MIXKV_INLINE void store_i32(int32_t* p, I16 v) { memcpy(p, v.v, 64); }
MIXKV_INLINE F16 to_float(I16 a) {
    return each16([&](int n) { return __builtin_convertvector(a.v[n], f32x4); });
}
MIXKV_INLINE F16 set16(float x) {
    return each16([&](int) { return f32x4{x, x, x, x}; });
}
MIXKV_INLINE F16 load16(const float* p) {
    return each16([&](int n) { return load_as<f32x4>(p + 4 * n); });
}
MIXKV_INLINE void store16(float* p, F16 v) { memcpy(p, v.v, 64); }
MIXKV_INLINE F16 load_f16(const void* p) {
    return each16([&](int n) {
        const u32x4 h = __builtin_convertvector(load_as<u16x4>((const uint16_t*)p + 4 * n), u32x4);
        const u32x4 sign = (h & 0x8000) << 16, body = (h & 0x7fff) << 13;
        // Multiplying by 2^112 corrects the exponent and makes subnormals normal, exactly.
        const u32x4 finite = (u32x4)(as_float(body) * 5.192296858534828e33f);
        const u32x4 special = (u32x4)((h & 0x7c00) == 0x7c00);  // all ones for infinity and NaN
        return as_float(sign | (special & (body | 0x7f800000)) | (~special & finite));
    });
}
MIXKV_INLINE F16 load_bf16(const void* p) {
    return each16([&](int n) {
        return as_float(__builtin_convertvector(load_as<u16x4>((const uint16_t*)p + 4 * n), u32x4) << 16);
    });
}
MIXKV_INLINE F16 load_e8m0(const void* p) {
    return each16([&](int n) {
        const i32x4 e = __builtin_convertvector(load_as<u8x4>((const uint8_t*)p + 4 * n), i32x4);
        const i32x4 normal = (i32x4)((u32x4)(e - 1) << 23), low = (e + 1) << 21, m = normal > low;
        return (f32x4)((m & normal) | (~m & low));
    });
}
MIXKV_INLINE F16 load_e4m3(const void* p) {
    return each16([&](int n) {  // as a float32's bits: 2^120 too small
        const u32x4 v = __builtin_convertvector(load_as<u8x4>((const uint8_t*)p + 4 * n), u32x4);
        return as_float(v << 20) * 0x1p119f;
    });
}
MIXKV_INLINE F16 load_u8(const void* p) {
    return each16([&](int n) { return __builtin_convertvector(load_as<u8x4>((const uint8_t*)p + 4 * n), f32x4); });
}
MIXKV_INLINE F16 load_i8(const void* p) {
    return each16([&](int n) { return __builtin_convertvector(load_as<i8x4>((const int8_t*)p + 4 * n), f32x4); });
}
MIXKV_INLINE void load_nibbles(const void* p, F16* low, F16* high) {
    const u8x16 v = load_as<u8x16>(p), l = v & 15, h = v >> 4;
    *low = load_u8(&l);
    *high = load_u8(&h);
}
// Not fused: without FMA hardware that would be a library call. This tier rounds twice, always in the same way.
MIXKV_INLINE F16 fma16(F16 a, F16 b, F16 c) {
    return each16([&](int n) { return a.v[n] * b.v[n] + c.v[n]; });
}
MIXKV_INLINE F16 mul(F16 a, F16 b) {
    return each16([&](int n) { return a.v[n] * b.v[n]; });
}
MIXKV_INLINE F16 add(F16 a, F16 b) {
    return each16([&](int n) { return a.v[n] + b.v[n]; });
}
MIXKV_INLINE F16 sub(F16 a, F16 b) {
    return each16([&](int n) { return a.v[n] - b.v[n]; });
}
MIXKV_INLINE F16 div16(F16 a, F16 b) {
    return each16([&](int n) { return a.v[n] / b.v[n]; });
}
MIXKV_INLINE f32x4 choose(i32x4 mask, f32x4 a, f32x4 b) { return (f32x4)((mask & (i32x4)a) | (~mask & (i32x4)b)); }
MIXKV_INLINE F16 min16(F16 a, F16 b) {
    return each16([&](int n) { return choose((i32x4)(a.v[n] < b.v[n]), a.v[n], b.v[n]); });
}
MIXKV_INLINE F16 max16(F16 a, F16 b) {
    return each16([&](int n) { return choose((i32x4)(a.v[n] > b.v[n]), a.v[n], b.v[n]); });
}
MIXKV_INLINE F16 where_positive(F16 x, F16 yes, F16 no) {
    return each16([&](int n) { return choose((i32x4)(x.v[n] > f32x4{0, 0, 0, 0}), yes.v[n], no.v[n]); });
}
MIXKV_INLINE I16 round16(F16 a) {  // to nearest even, for |a| < 2^22: the addition leaves the integer in the low bits
    return eachi([&](int n) { return (i32x4)((u32x4)(a.v[n] + 12582912.0f) - 0x4b400000u); });
}
MIXKV_INLINE F16 pow2(I16 a) {
    return each16([&](int n) { return as_float(((u32x4)a.v[n] + 127u) << 23); });
}
MIXKV_INLINE I16 abs_bits(F16 a) {
    return eachi([&](int n) { return (i32x4)a.v[n] & 0x7fffffff; });
}
MIXKV_INLINE I16 max_i32(I16 a, I16 b) {
    return eachi([&](int n) {
        const i32x4 m = a.v[n] > b.v[n];
        return (m & a.v[n]) | (~m & b.v[n]);
    });
}
MIXKV_INLINE int32_t reduce_max_i32(I16 a) {
    int32_t t[16], m = INT32_MIN;
    store_i32(t, a);
    for (int i = 0; i < 16; ++i) m = t[i] > m ? t[i] : m;
    return m;
}
MIXKV_INLINE int32_t reduce_add_i32(I16 a) {
    // unsigned, as the sums of what NaN was rounded to wrap around
    const u32x4 s = ((u32x4)a.v[0] + (u32x4)a.v[1]) + ((u32x4)a.v[2] + (u32x4)a.v[3]);
    return int32_t(s[0] + s[1] + s[2] + s[3]);
}
MIXKV_INLINE void store_i8(int8_t* p, I16 a) {
    int32_t t[16];
    store_i32(t, a);
    for (int i = 0; i < 16; ++i) p[i] = int8_t(t[i] < -128 ? -128 : t[i] > 127 ? 127 : t[i]);
}

}  // namespace mixkv::MIXKV_ISA

#undef MIXKV_EACH
