// The vector vocabulary of the linear kernels: 16 rows side by side, whatever the registers are.
//
//   B64  64 bytes: one quad (packed.h) of codes     I16  16 int32     F16  16 float32
//
// simd_avx512.h, simd_avx2.h, simd_neon.h and simd_portable.h define the same names; each isa source sees one of them.
// dot<zero, j>(acc, w, x4) adds the products of quad j of a block (w) and its four activations, which stand at
// place 4 j of the block's 32. Codes are unsigned bytes; `zero` is subtracted from them by dot_init (through the sum of
// the activations) or in dot() itself.
//
// load_e8m0 and load_e4m3 read 16 scales of one byte each: 2^(e - 128), and half of a number with four bits of exponent
// and three of mantissa. The first is a float's exponent, the two smallest denormal: max(e - 1 << 23, e + 1 << 21) is
// its bits for every e. The second is an FP16 whose exponent has one bit less, so 2^8 too small.
#pragma once

#include <stdint.h>
#include <string.h>

#define MIXKV_INLINE static inline __attribute__((always_inline))
#define MIXKV_UNROLL _Pragma("GCC unroll 16")

#if defined(__AVX512VNNI__)
#include "simd_avx512.h"
#elif defined(__AVX2__)
#include "simd_avx2.h"
#elif defined(__ARM_FEATURE_DOTPROD)
#include "simd_neon.h"
#else
#include "simd_portable.h"
#endif

namespace mixkv::MIXKV_ISA {

#if !defined(__AVX512VNNI__)  // which has masks for it
MIXKV_INLINE F16 load16_n(const float* p, int count) {
    float t[16] = {};
    memcpy(t, p, size_t(count) * 4);
    return load16(t);
}
MIXKV_INLINE void store16_n(float* p, F16 v, int count) {
    float t[16];
    store16(t, v);
    memcpy(p, t, size_t(count) * 4);
}
#endif

// The sum of the lanes, folded in halves: one fixed order on every instruction set.
MIXKV_INLINE float reduce_add(F16 v) {
    float a[16];
    store16(a, v);
    for (int w = 8; w; w /= 2)
        for (int i = 0; i < w; ++i) a[i] += a[i + w];
    return a[0];
}

// x within [low, high]; NaN stays, which the order of arguments sees to (x86 gives the second where one is NaN).
MIXKV_INLINE F16 clamp16(F16 x, float low, float high) { return min16(set16(high), max16(set16(low), x)); }

// e^x = (1 + r + p r^2) 2^n: x = n ln2 + r, a polynomial in r (Cephes' coefficients).
struct ExpParts {
    F16 r, p, power;
};
MIXKV_INLINE ExpParts exp_parts(F16 x) {
    x = clamp16(x, -87.0f, 88.0f);
    const I16 n = round16(mul(x, set16(1.44269504088896341f)));
    const F16 nf = to_float(n);
    F16 r = fma16(nf, set16(-0.693359375f), x);
    r = fma16(nf, set16(2.12194440e-4f), r);
    F16 p = set16(1.9875691500e-4f);
    p = fma16(p, r, set16(1.3981999507e-3f));
    p = fma16(p, r, set16(8.3334519073e-3f));
    p = fma16(p, r, set16(4.1665795894e-2f));
    p = fma16(p, r, set16(1.6666665459e-1f));
    p = fma16(p, r, set16(5.0000001201e-1f));
    return {r, p, pow2(n)};
}
// e^x to about 1e-7 of it.
MIXKV_INLINE F16 exp16(F16 x) {
    const ExpParts e = exp_parts(x);
    return mul(fma16(e.p, mul(e.r, e.r), add(e.r, set16(1.0f))), e.power);
}
// e^x - 1 to about 1e-7 of it, however small x is.
MIXKV_INLINE F16 expm1_16(F16 x) {
    const ExpParts e = exp_parts(x);
    return fma16(e.power, fma16(e.p, mul(e.r, e.r), e.r), sub(e.power, set16(1.0f)));
}

}  // namespace mixkv::MIXKV_ISA
