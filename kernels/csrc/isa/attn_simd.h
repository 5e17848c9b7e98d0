// Sixteen floats (V) and sixteen int32 (I) on every instruction set, for the attention kernels.
//
// One zmm on AVX-512, two ymm on AVX2, four registers on NEON, an array that the compiler vectorises elsewhere. Every
// function does the same arithmetic lane by lane on each set except vfma, which is fused where the set has it; hmax and
// hsum reduce in a fixed tree. Included by isa sources only, so everything is static and lives in the set's own
// namespace.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

#include "kv_format.h"

namespace mixkv::MIXKV_ISA {

// Loops over rows and registers must vanish: gcc keeps arrays of vectors in registers only when no index is left.
#define MIXKV_UNROLL _Pragma("GCC unroll 8")

// Asks for what a stream of tiles will need about a block of 64 keys later, line by line and into the second cache: a
// few rows compute faster than memory answers, and the hardware's own prefetching starts anew every 4 KiB. But a core
// can wait for 16 lines only; the hardware can for more, so every fourth line is asked for a block earlier, which sets it
// going (1B shape, 8,192 keys: decode attention loses 7 % of its time).
static inline void ask_ahead(const void* p) {
    const char* at = static_cast<const char*>(p) + 4608;
    __builtin_prefetch(at, 0, 2);
    if (reinterpret_cast<uintptr_t>(at) % 256 == 0) __builtin_prefetch(at + 4608, 0, 2);
}

#if defined(__AVX512F__)

typedef __m512 V;
typedef __m512i I;
static inline V vload(const float* p) { return _mm512_loadu_ps(p); }
static inline void vstore(float* p, V x) { _mm512_storeu_ps(p, x); }
static inline V vset(float x) { return _mm512_set1_ps(x); }
static inline V vadd(V a, V b) { return _mm512_add_ps(a, b); }
static inline V vsub(V a, V b) { return _mm512_sub_ps(a, b); }
static inline V vmul(V a, V b) { return _mm512_mul_ps(a, b); }
static inline V vdiv(V a, V b) { return _mm512_div_ps(a, b); }
static inline V vfma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
static inline V vmax(V a, V b) { return _mm512_max_ps(a, b); }
static inline float hmax(V x) { return _mm512_reduce_max_ps(x); }
static inline float hsum(V x) { return _mm512_reduce_add_ps(x); }
static inline V vabs(V x) { return _mm512_abs_ps(x); }
static inline V vcopysign(V magnitude, V sign) {
    return _mm512_or_ps(magnitude, _mm512_and_ps(sign, _mm512_set1_ps(-0.0f)));
}
static inline V vround(V x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline V vscale2(V x, V n) { return _mm512_scalef_ps(x, n); }  // x * 2^n, n integral
static inline V vzero_below(V x, float limit, V value) {              // 0 where x < limit
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_NLT_UQ), value);
}
static inline V vkeep_neg_inf(V where, V value) {  // -inf where `where` is -inf
    const V inf = _mm512_set1_ps(-INFINITY);
    return _mm512_mask_mov_ps(value, _mm512_cmp_ps_mask(where, inf, _CMP_EQ_OQ), inf);
}
static inline bool vall_at_most(V a, V b, V c, V d, float limit) {  // false for NaN
    const V l = _mm512_set1_ps(limit);
    const unsigned ab = _mm512_cmp_ps_mask(a, l, _CMP_NLE_UQ) | _mm512_cmp_ps_mask(b, l, _CMP_NLE_UQ);
    const unsigned cd = _mm512_cmp_ps_mask(c, l, _CMP_NLE_UQ) | _mm512_cmp_ps_mask(d, l, _CMP_NLE_UQ);
    return (ab | cd) == 0;
}
static inline bool vany_nan(V x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q) != 0; }
static inline V vlanes(V x, int first, int stop, float other) {  // lanes first <= i < stop of x, else `other`
    const uint32_t low = stop >= 16 ? 0xffffu : stop <= 0 ? 0u : (1u << stop) - 1;
    const uint32_t skip = first >= 16 ? 0xffffu : first <= 0 ? 0u : (1u << first) - 1;
    return _mm512_mask_mov_ps(_mm512_set1_ps(other), __mmask16(low & ~skip), x);
}
static inline V viota() {
    return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
static inline V vload_half(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
static inline void vstore_half(uint16_t* p, V x) {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline V vload_int8(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
static inline V vfrom_int(I x) { return _mm512_cvtepi32_ps(x); }
static inline I vload_i(const uint32_t* p) { return _mm512_loadu_si512(p); }
template <int half>
static inline V vbutterfly(V x) {  // lane i: x[i] + x[i + half] in lower halves, x[i - half] - x[i] in upper ones
    constexpr __mmask16 upper = half == 8 ? 0xff00 : half == 4 ? 0xf0f0 : half == 2 ? 0xcccc : 0xaaaa;
    V y;
    if constexpr (half == 8) y = _mm512_shuffle_f32x4(x, x, 0x4e);
    if constexpr (half == 4) y = _mm512_shuffle_f32x4(x, x, 0xb1);
    if constexpr (half == 2) y = _mm512_permute_ps(x, 0x4e);
    if constexpr (half == 1) y = _mm512_permute_ps(x, 0xb1);
    return _mm512_mask_sub_ps(_mm512_add_ps(x, y), upper, y, x);
}
// Nibble `n` of each of 16 words as a float, minus 8.
static inline V vnibble(I words, int n) {
    const V values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return _mm512_permutexvar_ps(_mm512_srli_epi32(words, unsigned(4 * n)), values);
}

#elif defined(__AVX2__)

struct V { __m256 a, b; };
struct I { __m256i a, b; };
static inline V vload(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void vstore(float* p, V x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
static inline V vset(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline V vadd(V x, V y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
static inline V vsub(V x, V y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
static inline V vmul(V x, V y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static inline V vdiv(V x, V y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
static inline V vfma(V x, V y, V z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
static inline V vmax(V x, V y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
static inline float hmax(V x) {
    const __m256 y = _mm256_max_ps(x.a, x.b);
    __m128 z = _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    z = _mm_max_ps(z, _mm_movehl_ps(z, z));
    return _mm_cvtss_f32(_mm_max_ss(z, _mm_shuffle_ps(z, z, 1)));
}
static inline float hsum(V x) {
    const __m256 y = _mm256_add_ps(x.a, x.b);
    __m128 z = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    z = _mm_add_ps(z, _mm_movehl_ps(z, z));
    return _mm_cvtss_f32(_mm_add_ss(z, _mm_shuffle_ps(z, z, 1)));
}
static inline V vabs(V x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
static inline V vcopysign(V magnitude, V s) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_or_ps(magnitude.a, _mm256_and_ps(s.a, sign)), _mm256_or_ps(magnitude.b, _mm256_and_ps(s.b, sign))};
}
static inline V vround(V x) {
    constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}
static inline __m256 scale2_half(__m256 x, __m256 n) {
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(x, _mm256_castsi256_ps(power));
}
static inline V vscale2(V x, V n) { return {scale2_half(x.a, n.a), scale2_half(x.b, n.b)}; }
static inline V vzero_below(V x, float limit, V value) {
    const __m256 l = _mm256_set1_ps(limit);
    return {_mm256_and_ps(value.a, _mm256_cmp_ps(x.a, l, _CMP_NLT_UQ)),
            _mm256_and_ps(value.b, _mm256_cmp_ps(x.b, l, _CMP_NLT_UQ))};
}
static inline V vkeep_neg_inf(V w, V value) {
    const __m256 inf = _mm256_set1_ps(-INFINITY);
    return {_mm256_blendv_ps(value.a, inf, _mm256_cmp_ps(w.a, inf, _CMP_EQ_OQ)),
            _mm256_blendv_ps(value.b, inf, _mm256_cmp_ps(w.b, inf, _CMP_EQ_OQ))};
}
static inline bool vall_at_most(V a, V b, V c, V d, float limit) {
    auto above = [l = _mm256_set1_ps(limit)](__m256 x) { return _mm256_cmp_ps(x, l, _CMP_NLE_UQ); };
    const __m256 ab = _mm256_or_ps(_mm256_or_ps(above(a.a), above(a.b)), _mm256_or_ps(above(b.a), above(b.b)));
    const __m256 cd = _mm256_or_ps(_mm256_or_ps(above(c.a), above(c.b)), _mm256_or_ps(above(d.a), above(d.b)));
    return _mm256_movemask_ps(_mm256_or_ps(ab, cd)) == 0;
}
static inline bool vany_nan(V x) {
    return _mm256_movemask_ps(_mm256_or_ps(_mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q), _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q)));
}
static inline V viota() {
    return {_mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_ps(8, 9, 10, 11, 12, 13, 14, 15)};
}
static inline V vlanes(V x, int first, int stop, float other) {
    const V lane = viota();
    const __m256 from = _mm256_set1_ps(float(first)), to = _mm256_set1_ps(float(stop)), o = _mm256_set1_ps(other);
    auto pick = [&](__m256 v, __m256 i) {
        const __m256 in = _mm256_and_ps(_mm256_cmp_ps(i, from, _CMP_GE_OQ), _mm256_cmp_ps(i, to, _CMP_LT_OQ));
        return _mm256_blendv_ps(o, v, in);
    };
    return {pick(x.a, lane.a), pick(x.b, lane.b)};
}
static inline V vload_half(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
static inline void vstore_half(uint16_t* p, V x) {
    constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x.a, mode));
    _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(x.b, mode));
}
static inline V vload_int8(const int8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8))))};
}
static inline V vfrom_int(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
static inline I vload_i(const uint32_t* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 8))};
}
template <int half>
static inline __m256 butterfly_half(__m256 x) {
    __m256 y;
    if constexpr (half == 4) y = _mm256_permute2f128_ps(x, x, 1);
    if constexpr (half == 2) y = _mm256_permute_ps(x, 0x4e);
    if constexpr (half == 1) y = _mm256_permute_ps(x, 0xb1);
    constexpr int upper = half == 4 ? 0xf0 : half == 2 ? 0xcc : 0xaa;
    return _mm256_blend_ps(_mm256_add_ps(x, y), _mm256_sub_ps(y, x), upper);
}
template <int half>
static inline V vbutterfly(V x) {
    if constexpr (half == 8) return {_mm256_add_ps(x.a, x.b), _mm256_sub_ps(x.a, x.b)};
    else return {butterfly_half<half>(x.a), butterfly_half<half>(x.b)};
}
static inline V vnibble(I words, int n) {
    auto pick = [n](__m256i w) {
        const __m256i code = _mm256_and_si256(_mm256_srli_epi32(w, 4 * n), _mm256_set1_epi32(15));
        return _mm256_cvtepi32_ps(_mm256_sub_epi32(code, _mm256_set1_epi32(8)));
    };
    return {pick(words.a), pick(words.b)};
}

#elif defined(__ARM_FEATURE_DOTPROD)

struct V { float32x4_t v[4]; };
struct I { int32x4_t v[4]; };
// Four registers, each as `expr` says for its number i.
#define MIXKV_FOUR(expr)                                  \
    V r;                                                  \
    MIXKV_UNROLL for (int i = 0; i < 4; ++i) r.v[i] = expr; \
    return r;
static inline V vload(const float* p) { MIXKV_FOUR(vld1q_f32(p + 4 * i)) }
static inline void vstore(float* p, V x) { MIXKV_UNROLL for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, x.v[i]); }
static inline V vset(float x) { MIXKV_FOUR(vdupq_n_f32(x)) }
static inline V vadd(V a, V b) { MIXKV_FOUR(vaddq_f32(a.v[i], b.v[i])) }
static inline V vsub(V a, V b) { MIXKV_FOUR(vsubq_f32(a.v[i], b.v[i])) }
static inline V vmul(V a, V b) { MIXKV_FOUR(vmulq_f32(a.v[i], b.v[i])) }
static inline V vdiv(V a, V b) { MIXKV_FOUR(vdivq_f32(a.v[i], b.v[i])) }
static inline V vfma(V a, V b, V c) { MIXKV_FOUR(vfmaq_f32(c.v[i], a.v[i], b.v[i])) }
static inline V vmax(V a, V b) { MIXKV_FOUR(vmaxq_f32(a.v[i], b.v[i])) }
static inline float hmax(V x) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.v[0], x.v[2]), vmaxq_f32(x.v[1], x.v[3]))); }
static inline float hsum(V x) {
    const float32x4_t four = vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
static inline V vabs(V x) { MIXKV_FOUR(vabsq_f32(x.v[i])) }
static inline V vcopysign(V magnitude, V sign) {
    MIXKV_FOUR(vbslq_f32(vdupq_n_u32(0x80000000u), sign.v[i], magnitude.v[i]))
}
static inline V vround(V x) { MIXKV_FOUR(vrndnq_f32(x.v[i])) }
static inline float32x4_t scale2_four(float32x4_t x, float32x4_t n) {
    const int32x4_t power = vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23);
    return vmulq_f32(x, vreinterpretq_f32_s32(power));
}
static inline V vscale2(V x, V n) { MIXKV_FOUR(scale2_four(x.v[i], n.v[i])) }
static inline float32x4_t keep_where(uint32x4_t mask, float32x4_t x) {
    return vreinterpretq_f32_u32(vandq_u32(mask, vreinterpretq_u32_f32(x)));
}
static inline V vzero_below(V x, float limit, V value) {  // not below, or NaN: kept
    MIXKV_FOUR(keep_where(vmvnq_u32(vcltq_f32(x.v[i], vdupq_n_f32(limit))), value.v[i]))
}
static inline V vkeep_neg_inf(V w, V value) {
    const float32x4_t inf = vdupq_n_f32(-INFINITY);
    MIXKV_FOUR(vbslq_f32(vceqq_f32(w.v[i], inf), inf, value.v[i]))
}
static inline bool vall_at_most(V a, V b, V c, V d, float limit) {
    const float32x4_t l = vdupq_n_f32(limit);
    uint32x4_t all = vdupq_n_u32(~0u);
    MIXKV_UNROLL
    for (int i = 0; i < 4; ++i) {
        const uint32x4_t ab = vandq_u32(vcleq_f32(a.v[i], l), vcleq_f32(b.v[i], l));
        all = vandq_u32(all, vandq_u32(ab, vandq_u32(vcleq_f32(c.v[i], l), vcleq_f32(d.v[i], l))));
    }
    return vminvq_u32(all) != 0;
}
static inline bool vany_nan(V x) {
    uint32x4_t equal = vdupq_n_u32(~0u);
    MIXKV_UNROLL for (int i = 0; i < 4; ++i) equal = vandq_u32(equal, vceqq_f32(x.v[i], x.v[i]));
    return vminvq_u32(equal) == 0;
}
static inline V viota() {
    const float lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return vload(lanes);
}
static inline V vlanes(V x, int first, int stop, float other) {
    const V lane = viota();
    const float32x4_t from = vdupq_n_f32(float(first)), to = vdupq_n_f32(float(stop)), o = vdupq_n_f32(other);
    MIXKV_FOUR(vbslq_f32(vandq_u32(vcgeq_f32(lane.v[i], from), vcltq_f32(lane.v[i], to)), x.v[i], o))
}
static inline V vload_half(const uint16_t* p) { MIXKV_FOUR(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)))) }
static inline void vstore_half(uint16_t* p, V x) {
    MIXKV_UNROLL for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.v[i])));
}
static inline V vload_int8(const int8_t* p) {
    const int8x16_t c = vld1q_s8(p);
    const int16x8_t a = vmovl_s8(vget_low_s8(c)), b = vmovl_high_s8(c);
    return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(a))), vcvtq_f32_s32(vmovl_high_s16(a)),
             vcvtq_f32_s32(vmovl_s16(vget_low_s16(b))), vcvtq_f32_s32(vmovl_high_s16(b))}};
}
static inline V vfrom_int(I x) { MIXKV_FOUR(vcvtq_f32_s32(x.v[i])) }
static inline I vload_i(const uint32_t* p) {
    I r;
    MIXKV_UNROLL for (int i = 0; i < 4; ++i) r.v[i] = vreinterpretq_s32_u32(vld1q_u32(p + 4 * i));
    return r;
}
template <int half>
static inline float32x4_t butterfly_four(float32x4_t x) {
    const float32x4_t y = half == 2 ? vextq_f32(x, x, 2) : vrev64q_f32(x), sum = vaddq_f32(x, y), less = vsubq_f32(y, x);
    if constexpr (half == 2) return vcombine_f32(vget_low_f32(sum), vget_high_f32(less));
    return vtrn2q_f32(vrev64q_f32(sum), less);  // sums from even lanes, differences from odd ones
}
template <int half>
static inline V vbutterfly(V x) {
    constexpr int far = half / 4;  // in registers
    if constexpr (half >= 4) {
        MIXKV_FOUR(i & far ? vsubq_f32(x.v[i ^ far], x.v[i]) : vaddq_f32(x.v[i], x.v[i ^ far]))
    } else {
        MIXKV_FOUR(butterfly_four<half>(x.v[i]))
    }
}
// Nibble n to the top of its word; with its highest bit turned over that is 2^28 (code - 8), which converts exactly.
static inline float32x4_t nibble_four(int32x4_t words, int n) {
    const uint32x4_t turned = veorq_u32(vreinterpretq_u32_s32(words), vdupq_n_u32(0x88888888u));
    const uint32x4_t top = vandq_u32(turned << (28 - 4 * n), vdupq_n_u32(0xf0000000u));
    return vcvtq_n_f32_s32(vreinterpretq_s32_u32(top), 28);
}
static inline V vnibble(I words, int n) { MIXKV_FOUR(nibble_four(words.v[i], n)) }
#undef MIXKV_FOUR

#else

struct V { float v[16]; };
struct I { int32_t v[16]; };
#define MIXKV_LANES(expr)                      \
    V r;                                       \
    for (int i = 0; i < 16; ++i) r.v[i] = expr; \
    return r;
static inline V vload(const float* p) { MIXKV_LANES(p[i]) }
static inline void vstore(float* p, V x) { memcpy(p, x.v, sizeof x); }
static inline V vset(float x) { MIXKV_LANES(x) }
static inline V vadd(V a, V b) { MIXKV_LANES(a.v[i] + b.v[i]) }
static inline V vsub(V a, V b) { MIXKV_LANES(a.v[i] - b.v[i]) }
static inline V vmul(V a, V b) { MIXKV_LANES(a.v[i] * b.v[i]) }
static inline V vdiv(V a, V b) { MIXKV_LANES(a.v[i] / b.v[i]) }
static inline V vfma(V a, V b, V c) { MIXKV_LANES(a.v[i] * b.v[i] + c.v[i]) }
static inline V vmax(V a, V b) { MIXKV_LANES(a.v[i] > b.v[i] ? a.v[i] : b.v[i]) }
static inline float hmax(V x) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; ++i) x.v[i] = x.v[i] > x.v[i + half] ? x.v[i] : x.v[i + half];
    return x.v[0];
}
static inline float hsum(V x) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; ++i) x.v[i] += x.v[i + half];
    return x.v[0];
}
static inline V vabs(V x) { MIXKV_LANES(fabsf(x.v[i])) }
static inline V vcopysign(V magnitude, V sign) { MIXKV_LANES(copysignf(magnitude.v[i], sign.v[i])) }
static inline V vround(V x) { MIXKV_LANES(rintf(x.v[i])) }
static inline V vscale2(V x, V n) {
    V r;
    for (int i = 0; i < 16; ++i) {
        const float clipped = n.v[i] > -126.0f ? n.v[i] : -126.0f;  // NaN and what vzero_below clears anyway
        const uint32_t power = uint32_t(int(clipped) + 127) << 23;
        float f;
        memcpy(&f, &power, 4);
        r.v[i] = x.v[i] * f;
    }
    return r;
}
static inline V vzero_below(V x, float limit, V value) { MIXKV_LANES(x.v[i] < limit ? 0.0f : value.v[i]) }
static inline V vkeep_neg_inf(V w, V value) { MIXKV_LANES(w.v[i] == -INFINITY ? -INFINITY : value.v[i]) }
static inline bool vall_at_most(V a, V b, V c, V d, float l) {
    bool all = true;
    for (int i = 0; i < 16; ++i) all &= a.v[i] <= l && b.v[i] <= l && c.v[i] <= l && d.v[i] <= l;
    return all;
}
static inline bool vany_nan(V x) {
    bool any = false;
    for (int i = 0; i < 16; ++i) any |= x.v[i] != x.v[i];
    return any;
}
static inline V vlanes(V x, int first, int stop, float other) { MIXKV_LANES(i >= first && i < stop ? x.v[i] : other) }
static inline V viota() { MIXKV_LANES(float(i)) }
static inline V vload_half(const uint16_t* p) { MIXKV_LANES(half_to_float(p[i])) }
static inline void vstore_half(uint16_t* p, V x) {
    for (int i = 0; i < 16; ++i) p[i] = float_to_half(x.v[i]);
}
static inline V vload_int8(const int8_t* p) { MIXKV_LANES(float(p[i])) }
static inline V vfrom_int(I x) { MIXKV_LANES(float(x.v[i])) }
static inline I vload_i(const uint32_t* p) {
    I r;
    memcpy(r.v, p, sizeof r);
    return r;
}
template <int half>
static inline V vbutterfly(V x) { MIXKV_LANES(i & half ? x.v[i ^ half] - x.v[i] : x.v[i] + x.v[i ^ half]) }
static inline V vnibble(I w, int n) { MIXKV_LANES(float(int(uint32_t(w.v[i]) >> (4 * n) & 15) - 8)) }
#undef MIXKV_LANES

#endif

// 2^x for x <= 120, within 1.5e-7: x = n + r, |r| <= 1/2, and a polynomial of degree 5 in r fitted for
// the least relative error (9e-8). Below -126 the result is exactly 0, so that no denormal slows the products down; so
// 2^-inf = 0, and NaN stays NaN.
static inline V vexp2(V x) {
    const V n = vround(x), r = vsub(x, n);
    V p = vset(1.3264726e-3f);
    p = vfma(p, r, vset(9.671513e-3f));
    p = vfma(p, r, vset(5.5507336e-2f));
    p = vfma(p, r, vset(2.4022242e-1f));
    p = vfma(p, r, vset(6.93147e-1f));
    p = vfma(p, r, vset(1.0f));
    return vzero_below(x, -126.0f, vscale2(p, n));
}

static inline float exp2_one(float x) {
    float lanes[16];
    vstore(lanes, vexp2(vset(x)));
    return lanes[0];
}

// tanh x = (1 - e) / (1 + e) with e = e^(-2 |x|), absolute error about 1e-7; an odd polynomial below 1/8 keeps small
// arguments relatively exact too.
static inline V vtanh(V x) {
    const V a = vabs(x), e = vexp2(vmul(a, vset(-2.88539008f)));
    const V big = vdiv(vsub(vset(1.0f), e), vadd(vset(1.0f), e));
    const V y = vmul(a, a);
    V p = vfma(y, vset(-17.0f / 315), vset(2.0f / 15));
    p = vfma(p, y, vset(-1.0f / 3));
    p = vfma(vmul(p, y), a, a);
    // big where a >= 1/8, else p; NaN falls to big
    const V high = vzero_below(a, 0.125f, big), low = vsub(p, vzero_below(a, 0.125f, p));
    return vcopysign(vadd(high, low), x);
}

}  // namespace mixkv::MIXKV_ISA
