// simd.h in AVX-512 with VNNI.
#pragma once

#include <immintrin.h>

namespace mixkv::MIXKV_ISA {

using B64 = __m512i;
using F16 = __m512;
struct I16 {
    __m512i v;
};

MIXKV_INLINE B64 load64(const void* p) { return _mm512_loadu_si512(p); }
MIXKV_INLINE void store64(void* p, B64 v) { _mm512_storeu_si512(p, v); }
MIXKV_INLINE B64 low4(B64 v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
MIXKV_INLINE B64 high4(B64 v) { return low4(_mm512_srli_epi16(v, 4)); }
MIXKV_INLINE B64 or64(B64 a, B64 b) { return _mm512_or_si512(a, b); }
MIXKV_INLINE B64 sub64(B64 a, int c) { return _mm512_sub_epi8(a, _mm512_set1_epi8(char(c))); }
template <int pair>
MIXKV_INLINE B64 bits2(B64 v) {
    return _mm512_and_si512(_mm512_srli_epi16(v, 2 * pair), _mm512_set1_epi8(3));
}
template <int n>
MIXKV_INLINE B64 shl64(B64 v) {  // of bytes small enough not to spill into their neighbour
    return _mm512_slli_epi16(v, n);
}
template <int bit, int value>
MIXKV_INLINE B64 bit_as(B64 v) {  // value where the bit is set, else 0
    return _mm512_maskz_mov_epi8(_mm512_test_epi8_mask(v, _mm512_set1_epi8(char(1 << bit))), _mm512_set1_epi8(value));
}
MIXKV_INLINE B64 lookup16(const uint8_t* table, B64 index) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table)), index);
}

template <int zero>
MIXKV_INLINE I16 dot_init(int32_t xsum) {
    return {_mm512_set1_epi32(-zero * xsum)};
}
template <int zero, int j>
MIXKV_INLINE I16 dot(I16 acc, B64 w, const int8_t* x4) {
    int32_t x;
    memcpy(&x, x4, 4);
    return {_mm512_dpbusd_epi32(acc.v, w, _mm512_set1_epi32(x))};
}
template <int i>
MIXKV_INLINE I16 byte_of(B64 v) {  // byte i of each of the 16 quads
    return {_mm512_and_si512(_mm512_srli_epi32(v, 8 * i), _mm512_set1_epi32(255))};
}

MIXKV_INLINE I16 load_i32(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
MIXKV_INLINE void store_i32(int32_t* p, I16 v) { _mm512_storeu_si512(p, v.v); }
MIXKV_INLINE F16 to_float(I16 v) { return _mm512_cvtepi32_ps(v.v); }
MIXKV_INLINE F16 set16(float x) { return _mm512_set1_ps(x); }
MIXKV_INLINE F16 load16(const float* p) { return _mm512_loadu_ps(p); }
MIXKV_INLINE F16 load16_n(const float* p, int n) { return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p); }
MIXKV_INLINE void store16(float* p, F16 v) { _mm512_storeu_ps(p, v); }
MIXKV_INLINE void store16_n(float* p, F16 v, int n) { _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), v); }
MIXKV_INLINE F16 load_f16(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
MIXKV_INLINE F16 load_bf16(const void* p) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
MIXKV_INLINE F16 load_e8m0(const void* p) {
    const __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)), one = _mm512_set1_epi32(1);
    const __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, one), 23);
    return _mm512_castsi512_ps(_mm512_max_epi32(normal, _mm512_slli_epi32(_mm512_add_epi32(e, one), 21)));
}
MIXKV_INLINE F16 load_e4m3(const void* p) {
    const __m256i h = _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p)), 7);
    return _mm512_mul_ps(_mm512_cvtph_ps(h), _mm512_set1_ps(128.0f));
}
MIXKV_INLINE F16 load_u8(const void* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
MIXKV_INLINE F16 load_i8(const void* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
MIXKV_INLINE void load_nibbles(const void* p, F16* low, F16* high) {
    const __m512i v = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
    *low = _mm512_cvtepi32_ps(_mm512_and_si512(v, _mm512_set1_epi32(15)));
    *high = _mm512_cvtepi32_ps(_mm512_srli_epi32(v, 4));
}
MIXKV_INLINE F16 fma16(F16 a, F16 b, F16 c) { return _mm512_fmadd_ps(a, b, c); }
MIXKV_INLINE F16 mul(F16 a, F16 b) { return _mm512_mul_ps(a, b); }
MIXKV_INLINE F16 add(F16 a, F16 b) { return _mm512_add_ps(a, b); }
MIXKV_INLINE F16 sub(F16 a, F16 b) { return _mm512_sub_ps(a, b); }
MIXKV_INLINE F16 div16(F16 a, F16 b) { return _mm512_div_ps(a, b); }
MIXKV_INLINE F16 min16(F16 a, F16 b) { return _mm512_min_ps(a, b); }
MIXKV_INLINE F16 max16(F16 a, F16 b) { return _mm512_max_ps(a, b); }
MIXKV_INLINE F16 where_positive(F16 x, F16 yes, F16 no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ), no, yes);
}
MIXKV_INLINE I16 round16(F16 v) { return {_mm512_cvtps_epi32(v)}; }
MIXKV_INLINE F16 pow2(I16 n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n.v, _mm512_set1_epi32(127)), 23));
}
MIXKV_INLINE I16 abs_bits(F16 v) {
    return {_mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff))};
}
MIXKV_INLINE I16 max_i32(I16 a, I16 b) { return {_mm512_max_epi32(a.v, b.v)}; }
MIXKV_INLINE int32_t reduce_max_i32(I16 a) { return _mm512_reduce_max_epi32(a.v); }
MIXKV_INLINE int32_t reduce_add_i32(I16 a) { return _mm512_reduce_add_epi32(a.v); }
MIXKV_INLINE void store_i8(int8_t* p, I16 v) { _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(v.v)); }

}  // namespace mixkv::MIXKV_ISA
