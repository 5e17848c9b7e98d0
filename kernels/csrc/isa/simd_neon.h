// simd.h in NEON with dotprod (Arm's tier `neon`): every name is four registers of 128 bits, rows 0-3, 4-7, 8-11, 12-15.
#pragma once

#include <arm_neon.h>

#define MIXKV_EACH MIXKV_UNROLL for (int n = 0; n < 4; ++n)

namespace mixkv::MIXKV_ISA {

struct B64 {
    uint8x16_t v[4];
};
struct I16 {
    int32x4_t v[4];
};
struct F16 {
    float32x4_t v[4];
};

template <class R, class F>
MIXKV_INLINE R each(F f) {
    R r;
    MIXKV_EACH r.v[n] = f(n);
    return r;
}

MIXKV_INLINE B64 load64(const void* p) {
    return each<B64>([&](int n) { return vld1q_u8((const uint8_t*)p + 16 * n); });
}
MIXKV_INLINE void store64(void* p, B64 v) { MIXKV_EACH vst1q_u8((uint8_t*)p + 16 * n, v.v[n]); }
MIXKV_INLINE B64 low4(B64 a) {
    return each<B64>([&](int n) { return vandq_u8(a.v[n], vdupq_n_u8(15)); });
}
MIXKV_INLINE B64 high4(B64 a) {
    return each<B64>([&](int n) { return vshrq_n_u8(a.v[n], 4); });
}
MIXKV_INLINE B64 or64(B64 a, B64 b) {
    return each<B64>([&](int n) { return vorrq_u8(a.v[n], b.v[n]); });
}
MIXKV_INLINE B64 sub64(B64 a, int c) {
    return each<B64>([&](int n) { return vsubq_u8(a.v[n], vdupq_n_u8(uint8_t(c))); });
}
template <int pair>
MIXKV_INLINE B64 bits2(B64 a) {
    return each<B64>([&](int n) {
        uint8x16_t v = a.v[n];
        if constexpr (pair > 0) v = vshrq_n_u8(v, 2 * pair);
        return pair == 3 ? v : vandq_u8(v, vdupq_n_u8(3));
    });
}
template <int count>
MIXKV_INLINE B64 shl64(B64 a) {
    return each<B64>([&](int n) { return vshlq_n_u8(a.v[n], count); });
}
template <int bit, int value>
MIXKV_INLINE B64 bit_as(B64 a) {
    return each<B64>([&](int n) { return vandq_u8(vtstq_u8(a.v[n], vdupq_n_u8(1 << bit)), vdupq_n_u8(value)); });
}
MIXKV_INLINE B64 lookup16(const uint8_t* table, B64 x) {
    const uint8x16_t t = vld1q_u8(table);
    return each<B64>([&](int n) { return vqtbl1q_u8(t, x.v[n]); });
}

// sdot multiplies signed by signed: codes below 128 go in as they are and dot_init takes their zero off; wider ones
// (zero == 128) are made signed by turning their top bit over. One load of 16 activations serves four quads.
template <int zero>
MIXKV_INLINE I16 dot_init(int32_t xsum) {
    return each<I16>([&](int) { return vdupq_n_s32(zero == 128 ? 0 : -zero * xsum); });
}
template <int zero, int j>
MIXKV_INLINE I16 dot(I16 acc, B64 codes, const int8_t* x4) {
    const int8x16_t x16 = vld1q_s8(x4 - j % 4 * 4);
    return each<I16>([&](int n) {
        uint8x16_t w = codes.v[n];
        if constexpr (zero == 128) w = veorq_u8(w, vdupq_n_u8(0x80));
        return vdotq_laneq_s32(acc.v[n], vreinterpretq_s8_u8(w), x16, j % 4);
    });
}
template <int i>
MIXKV_INLINE I16 byte_of(B64 a) {
    return each<I16>([&](int n) {
        uint32x4_t v = vreinterpretq_u32_u8(a.v[n]);  // little-endian lanes
        if constexpr (i > 0) v = vshrq_n_u32(v, 8 * i);
        return vreinterpretq_s32_u32(vandq_u32(v, vdupq_n_u32(255)));
    });
}

MIXKV_INLINE I16 load_i32(const int32_t* p) {
    return each<I16>([&](int n) { return vld1q_s32(p + 4 * n); });
}
MIXKV_INLINE void store_i32(int32_t* p, I16 v) { MIXKV_EACH vst1q_s32(p + 4 * n, v.v[n]); }
MIXKV_INLINE F16 to_float(I16 a) {
    return each<F16>([&](int n) { return vcvtq_f32_s32(a.v[n]); });
}
MIXKV_INLINE F16 set16(float x) {
    return each<F16>([&](int) { return vdupq_n_f32(x); });
}
MIXKV_INLINE F16 load16(const float* p) {
    return each<F16>([&](int n) { return vld1q_f32(p + 4 * n); });
}
MIXKV_INLINE void store16(float* p, F16 v) { MIXKV_EACH vst1q_f32(p + 4 * n, v.v[n]); }
MIXKV_INLINE F16 load_f16(const void* p) {
    return each<F16>([&](int n) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t*)p + 4 * n))); });
}
MIXKV_INLINE F16 load_bf16(const void* p) {
    return each<F16>([&](int n) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16((const uint16_t*)p + 4 * n), 16)); });
}
MIXKV_INLINE F16 load_e8m0(const void* p) {
    const uint8x16_t v = vld1q_u8((const uint8_t*)p);
    const uint16x8_t a = vmovl_u8(vget_low_u8(v)), b = vmovl_high_u8(v);
    auto quarter = [](uint16x4_t h) {
        const int32x4_t e = vreinterpretq_s32_u32(vmovl_u16(h)), one = vdupq_n_s32(1);
        return vreinterpretq_f32_s32(vmaxq_s32(vshlq_n_s32(vsubq_s32(e, one), 23), vshlq_n_s32(vaddq_s32(e, one), 21)));
    };
    return {{quarter(vget_low_u16(a)), quarter(vget_high_u16(a)), quarter(vget_low_u16(b)), quarter(vget_high_u16(b))}};
}
MIXKV_INLINE F16 load_e4m3(const void* p) {
    const uint8x16_t v = vld1q_u8((const uint8_t*)p);
    const uint16x8_t a = vshll_n_u8(vget_low_u8(v), 7), b = vshll_n_u8(vget_high_u8(v), 7);
    auto quarter = [](uint16x4_t h) { return vmulq_n_f32(vcvt_f32_f16(vreinterpret_f16_u16(h)), 128.0f); };
    return {{quarter(vget_low_u16(a)), quarter(vget_high_u16(a)), quarter(vget_low_u16(b)), quarter(vget_high_u16(b))}};
}
MIXKV_INLINE F16 floats_of(uint8x16_t v) {
    const uint16x8_t a = vmovl_u8(vget_low_u8(v)), b = vmovl_high_u8(v);
    return {{vcvtq_f32_u32(vmovl_u16(vget_low_u16(a))), vcvtq_f32_u32(vmovl_high_u16(a)),
             vcvtq_f32_u32(vmovl_u16(vget_low_u16(b))), vcvtq_f32_u32(vmovl_high_u16(b))}};
}
MIXKV_INLINE F16 load_u8(const void* p) { return floats_of(vld1q_u8((const uint8_t*)p)); }
MIXKV_INLINE F16 load_i8(const void* p) {
    const int8x16_t v = vld1q_s8((const int8_t*)p);
    const int16x8_t a = vmovl_s8(vget_low_s8(v)), b = vmovl_high_s8(v);
    return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(a))), vcvtq_f32_s32(vmovl_high_s16(a)),
             vcvtq_f32_s32(vmovl_s16(vget_low_s16(b))), vcvtq_f32_s32(vmovl_high_s16(b))}};
}
MIXKV_INLINE void load_nibbles(const void* p, F16* low, F16* high) {
    const uint8x16_t v = vld1q_u8((const uint8_t*)p);
    *low = floats_of(vandq_u8(v, vdupq_n_u8(15)));
    *high = floats_of(vshrq_n_u8(v, 4));
}
MIXKV_INLINE F16 fma16(F16 a, F16 b, F16 c) {
    return each<F16>([&](int n) { return vfmaq_f32(c.v[n], a.v[n], b.v[n]); });
}
MIXKV_INLINE F16 mul(F16 a, F16 b) {
    return each<F16>([&](int n) { return vmulq_f32(a.v[n], b.v[n]); });
}
MIXKV_INLINE F16 add(F16 a, F16 b) {
    return each<F16>([&](int n) { return vaddq_f32(a.v[n], b.v[n]); });
}
MIXKV_INLINE F16 sub(F16 a, F16 b) {
    return each<F16>([&](int n) { return vsubq_f32(a.v[n], b.v[n]); });
}
MIXKV_INLINE F16 div16(F16 a, F16 b) {
    return each<F16>([&](int n) { return vdivq_f32(a.v[n], b.v[n]); });
}
MIXKV_INLINE F16 min16(F16 a, F16 b) {
    return each<F16>([&](int n) { return vminq_f32(a.v[n], b.v[n]); });
}
MIXKV_INLINE F16 max16(F16 a, F16 b) {
    return each<F16>([&](int n) { return vmaxq_f32(a.v[n], b.v[n]); });
}
MIXKV_INLINE F16 where_positive(F16 x, F16 yes, F16 no) {
    return each<F16>([&](int n) { return vbslq_f32(vcgtzq_f32(x.v[n]), yes.v[n], no.v[n]); });
}
MIXKV_INLINE I16 round16(F16 a) {
    return each<I16>([&](int n) { return vcvtnq_s32_f32(a.v[n]); });
}
MIXKV_INLINE F16 pow2(I16 a) {
    return each<F16>([&](int n) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(a.v[n], vdupq_n_s32(127)), 23)); });
}
MIXKV_INLINE I16 abs_bits(F16 a) {
    return each<I16>([&](int n) { return vreinterpretq_s32_f32(vabsq_f32(a.v[n])); });
}
MIXKV_INLINE I16 max_i32(I16 a, I16 b) {
    return each<I16>([&](int n) { return vmaxq_s32(a.v[n], b.v[n]); });
}
MIXKV_INLINE int32_t reduce_max_i32(I16 a) {
    return vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.v[0], a.v[1]), vmaxq_s32(a.v[2], a.v[3])));
}
MIXKV_INLINE int32_t reduce_add_i32(I16 a) {
    return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3])));
}
MIXKV_INLINE void store_i8(int8_t* p, I16 a) {
    const int16x8_t low = vcombine_s16(vqmovn_s32(a.v[0]), vqmovn_s32(a.v[1]));
    const int16x8_t high = vcombine_s16(vqmovn_s32(a.v[2]), vqmovn_s32(a.v[3]));
    vst1q_s8(p, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
}

}  // namespace mixkv::MIXKV_ISA

#undef MIXKV_EACH
