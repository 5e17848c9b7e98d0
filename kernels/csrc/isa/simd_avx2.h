// simd.h in AVX2 + FMA + F16C, with or without AVX-VNNI: every name is a pair of 256-bit halves (rows 0-7, rows 8-15).
#pragma once

#include <immintrin.h>

namespace mixkv::MIXKV_ISA {

struct B64 {
    __m256i a, b;
};
struct I16 {
    __m256i a, b;
};
struct F16 {
    __m256 a, b;
};

MIXKV_INLINE B64 load64(const void* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)p + 1)};
}
MIXKV_INLINE void store64(void* p, B64 v) {
    _mm256_storeu_si256((__m256i*)p, v.a);
    _mm256_storeu_si256((__m256i*)p + 1, v.b);
}
MIXKV_INLINE B64 and64(B64 v, int c) {
    const __m256i m = _mm256_set1_epi8(char(c));
    return {_mm256_and_si256(v.a, m), _mm256_and_si256(v.b, m)};
}
MIXKV_INLINE B64 low4(B64 v) { return and64(v, 15); }
MIXKV_INLINE B64 high4(B64 v) { return low4({_mm256_srli_epi16(v.a, 4), _mm256_srli_epi16(v.b, 4)}); }
MIXKV_INLINE B64 or64(B64 x, B64 y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
MIXKV_INLINE B64 sub64(B64 v, int c) {
    const __m256i m = _mm256_set1_epi8(char(c));
    return {_mm256_sub_epi8(v.a, m), _mm256_sub_epi8(v.b, m)};
}
template <int pair>
MIXKV_INLINE B64 bits2(B64 v) {
    return and64({_mm256_srli_epi16(v.a, 2 * pair), _mm256_srli_epi16(v.b, 2 * pair)}, 3);
}
template <int n>
MIXKV_INLINE B64 shl64(B64 v) {
    return {_mm256_slli_epi16(v.a, n), _mm256_slli_epi16(v.b, n)};
}
template <int bit, int value>
MIXKV_INLINE B64 bit_as(B64 v) {
    const __m256i m = _mm256_set1_epi8(char(1 << bit)), c = _mm256_set1_epi8(value);
    return {_mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(v.a, m), m), c),
            _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(v.b, m), m), c)};
}
MIXKV_INLINE B64 lookup16(const uint8_t* table, B64 i) {
    const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
    return {_mm256_shuffle_epi8(t, i.a), _mm256_shuffle_epi8(t, i.b)};
}

#if defined(__AVXVNNI__)
template <int zero>
MIXKV_INLINE I16 dot_init(int32_t xsum) {
    const __m256i v = _mm256_set1_epi32(-zero * xsum);
    return {v, v};
}
template <int zero>
MIXKV_INLINE __m256i dot_half(__m256i acc, __m256i w, __m256i x) {
    return _mm256_dpbusd_avx_epi32(acc, w, x);
}
#else
// vpmaddubsw adds two products in int16: codes up to 128 fit (2 * 128 * 127 < 32768), wider ones (zero == 128) are made
// signed first and their sign is moved to the activations.
template <int zero>
MIXKV_INLINE I16 dot_init(int32_t xsum) {
    const __m256i v = zero == 128 ? _mm256_setzero_si256() : _mm256_set1_epi32(-zero * xsum);
    return {v, v};
}
template <int zero>
MIXKV_INLINE __m256i dot_half(__m256i acc, __m256i w, __m256i x) {
    if constexpr (zero == 128) {
        w = _mm256_xor_si256(w, _mm256_set1_epi8(char(0x80)));
        x = _mm256_sign_epi8(x, w);
        w = _mm256_abs_epi8(w);
    }
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}
#endif
template <int zero, int j>
MIXKV_INLINE I16 dot(I16 acc, B64 w, const int8_t* x4) {
    int32_t x;
    memcpy(&x, x4, 4);
    const __m256i xv = _mm256_set1_epi32(x);
    return {dot_half<zero>(acc.a, w.a, xv), dot_half<zero>(acc.b, w.b, xv)};
}
template <int i>
MIXKV_INLINE I16 byte_of(B64 v) {
    const __m256i m = _mm256_set1_epi32(255);
    return {_mm256_and_si256(_mm256_srli_epi32(v.a, 8 * i), m), _mm256_and_si256(_mm256_srli_epi32(v.b, 8 * i), m)};
}

MIXKV_INLINE I16 load_i32(const int32_t* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)p + 1)};
}
MIXKV_INLINE void store_i32(int32_t* p, I16 v) {
    _mm256_storeu_si256((__m256i*)p, v.a);
    _mm256_storeu_si256((__m256i*)p + 1, v.b);
}
MIXKV_INLINE F16 to_float(I16 v) { return {_mm256_cvtepi32_ps(v.a), _mm256_cvtepi32_ps(v.b)}; }
MIXKV_INLINE F16 set16(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
MIXKV_INLINE F16 load16(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
MIXKV_INLINE void store16(float* p, F16 v) {
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + 8, v.b);
}
MIXKV_INLINE F16 load_f16(const void* p) {
    const __m128i* h = (const __m128i*)p;
    return {_mm256_cvtph_ps(_mm_loadu_si128(h)), _mm256_cvtph_ps(_mm_loadu_si128(h + 1))};
}
MIXKV_INLINE F16 load_bf16(const void* p) {
    auto half = [](__m128i v) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16)); };
    return {half(_mm_loadu_si128((const __m128i*)p)), half(_mm_loadu_si128((const __m128i*)p + 1))};
}
MIXKV_INLINE I16 load_u8_i32(const void* p) {
    const uint8_t* u = (const uint8_t*)p;
    return {_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)u)),
            _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(u + 8)))};
}
MIXKV_INLINE F16 load_e8m0(const void* p) {
    auto half = [](__m256i e) {
        const __m256i one = _mm256_set1_epi32(1), normal = _mm256_slli_epi32(_mm256_sub_epi32(e, one), 23);
        return _mm256_castsi256_ps(_mm256_max_epi32(normal, _mm256_slli_epi32(_mm256_add_epi32(e, one), 21)));
    };
    const I16 e = load_u8_i32(p);
    return {half(e.a), half(e.b)};
}
MIXKV_INLINE F16 load_e4m3(const void* p) {
    const __m256i h = _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p)), 7);
    auto half = [](__m128i v) { return _mm256_mul_ps(_mm256_cvtph_ps(v), _mm256_set1_ps(128.0f)); };
    return {half(_mm256_castsi256_si128(h)), half(_mm256_extracti128_si256(h, 1))};
}
MIXKV_INLINE F16 load_u8(const void* p) { return to_float(load_u8_i32(p)); }
MIXKV_INLINE F16 load_i8(const void* p) {
    const uint8_t* u = (const uint8_t*)p;
    return to_float({_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)u)),
                     _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(u + 8)))});
}
MIXKV_INLINE void load_nibbles(const void* p, F16* low, F16* high) {
    const I16 v = load_u8_i32(p);
    const __m256i m = _mm256_set1_epi32(15);
    *low = to_float({_mm256_and_si256(v.a, m), _mm256_and_si256(v.b, m)});
    *high = to_float({_mm256_srli_epi32(v.a, 4), _mm256_srli_epi32(v.b, 4)});
}
MIXKV_INLINE F16 fma16(F16 x, F16 y, F16 z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
MIXKV_INLINE F16 mul(F16 x, F16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
MIXKV_INLINE F16 add(F16 x, F16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
MIXKV_INLINE F16 sub(F16 x, F16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
MIXKV_INLINE F16 div16(F16 x, F16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
MIXKV_INLINE F16 min16(F16 x, F16 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
MIXKV_INLINE F16 max16(F16 x, F16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
MIXKV_INLINE F16 where_positive(F16 x, F16 yes, F16 no) {
    const __m256 zero = _mm256_setzero_ps();
    return {_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(x.a, zero, _CMP_GT_OQ)),
            _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(x.b, zero, _CMP_GT_OQ))};
}
MIXKV_INLINE I16 round16(F16 v) { return {_mm256_cvtps_epi32(v.a), _mm256_cvtps_epi32(v.b)}; }
MIXKV_INLINE F16 pow2(I16 n) {
    auto half = [](__m256i v) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(v, _mm256_set1_epi32(127)), 23));
    };
    return {half(n.a), half(n.b)};
}
MIXKV_INLINE I16 abs_bits(F16 v) {
    const __m256i m = _mm256_set1_epi32(0x7fffffff);
    return {_mm256_and_si256(_mm256_castps_si256(v.a), m), _mm256_and_si256(_mm256_castps_si256(v.b), m)};
}
MIXKV_INLINE I16 max_i32(I16 x, I16 y) { return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }
MIXKV_INLINE int32_t reduce_max_i32(I16 v) {
    int32_t a[16], m = INT32_MIN;
    store_i32(a, v);
    for (int i = 0; i < 16; ++i) m = a[i] > m ? a[i] : m;
    return m;
}
MIXKV_INLINE int32_t reduce_add_i32(I16 v) {
    int32_t a[16];
    uint32_t s = 0;  // unsigned, as the sums of what NaN was rounded to wrap around
    store_i32(a, v);
    for (int i = 0; i < 16; ++i) s += uint32_t(a[i]);
    return int32_t(s);
}
MIXKV_INLINE void store_i8(int8_t* p, I16 v) {
    const __m256i w = _mm256_permute4x64_epi64(_mm256_packs_epi32(v.a, v.b), 0xd8);
    _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1)));
}

}  // namespace mixkv::MIXKV_ISA
