// Scores: x[r][t] = q_r . k_t for one tile of 16 keys, one kernel per cache type (layouts: kv_format.h).
//
// A float tile multiplies dimension by dimension into four chains (dims 0 4 8 .., 1 5 9 .., ...), summed in a fixed
// tree. A quantized tile takes exact integer dot products of its codes with the query's (both int8 parts), per block of
// 32 dims, then one multiply-add per block with the tile's scales: identical integers on every instruction set, so a
// matrix unit may do some rows and vectors others (attn_amx.h). For q4_0 they stay below 2^24 and convert exactly.
#pragma once

#include "attn_ops.h"
#include "attn_simd.h"

namespace mixkv::MIXKV_ISA {

#if defined(__AVX512F__)
constexpr int qk_float_rows = 6, qk_int_rows = 8;
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr int qk_float_rows = 1, qk_int_rows = 2;
#else
constexpr int qk_float_rows = 1, qk_int_rows = 1;  // too few registers for more
#endif

static inline V load_k(const float* p) { return vload(p); }
static inline V load_k(const uint16_t* p) { return vload_half(p); }

template <int R, class T>
static inline void qk_float_tile(const QueryRows& q, int r0, const T* tile, float* x) {
    V acc[R][4];
    MIXKV_UNROLL
    for (int r = 0; r < R; ++r)
        MIXKV_UNROLL
        for (int c = 0; c < 4; ++c) acc[r][c] = vset(0.0f);
    const float* row = q.q + size_t(r0) * q.pitch;
    for (int d = 0; d < q.head_dim; d += 4)
        MIXKV_UNROLL
        for (int c = 0; c < 4; ++c) {
            if (sizeof(T) == 4 || c % 2 == 0) ask_ahead(tile + (d + c) * tile_tokens);
            const V k = load_k(tile + (d + c) * tile_tokens);
            MIXKV_UNROLL
            for (int r = 0; r < R; ++r) acc[r][c] = vfma(vset(row[r * q.pitch + d + c]), k, acc[r][c]);
        }
    MIXKV_UNROLL
    for (int r = 0; r < R; ++r)
        vstore(x + r * block_keys, vadd(vadd(acc[r][0], acc[r][1]), vadd(acc[r][2], acc[r][3])));
}

#if defined(__ARM_FEATURE_DOTPROD)

static inline float32x4_t load_four_k(const float* p) { return vld1q_f32(p); }
static inline float32x4_t load_four_k(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }

// Four rows and four tokens at a time, the same numbers as row by row: 16 sums fit the registers, and a key that was
// converted serves four rows.
template <class T>
static inline void qk_float_four(const QueryRows& q, int r0, const T* tile, float* x) {
    const float* row = q.q + size_t(r0) * q.pitch;
    for (int t = 0; t < tile_tokens; t += 4) {
        float32x4_t acc[4][4], k[4];
        MIXKV_UNROLL
        for (int r = 0; r < 4; ++r)
            MIXKV_UNROLL
            for (int c = 0; c < 4; ++c) acc[r][c] = vdupq_n_f32(0.0f);
        for (int d = 0; d < q.head_dim; d += 4) {
            MIXKV_UNROLL
            for (int c = 0; c < 4; ++c) {
                const T* key = tile + (d + c) * tile_tokens + t;
                if (t == 0 && (sizeof(T) == 4 || c % 2 == 0)) ask_ahead(key);
                k[c] = load_four_k(key);
            }
            MIXKV_UNROLL
            for (int r = 0; r < 4; ++r) {
                const float32x4_t y = vld1q_f32(row + r * q.pitch + d);
                acc[r][0] = vfmaq_laneq_f32(acc[r][0], k[0], y, 0);
                acc[r][1] = vfmaq_laneq_f32(acc[r][1], k[1], y, 1);
                acc[r][2] = vfmaq_laneq_f32(acc[r][2], k[2], y, 2);
                acc[r][3] = vfmaq_laneq_f32(acc[r][3], k[3], y, 3);
            }
        }
        MIXKV_UNROLL
        for (int r = 0; r < 4; ++r) {
            const float32x4_t even = vaddq_f32(acc[r][0], acc[r][1]), odd = vaddq_f32(acc[r][2], acc[r][3]);
            vst1q_f32(x + r * block_keys + t, vaddq_f32(even, odd));
        }
    }
}

#endif

template <class T>
static void qk_float(const QueryRows& q, int r0, int r1, const uint8_t* tile, float* x) {
    const T* k = reinterpret_cast<const T*>(tile);
    int r = r0;
    x += size_t(r0) * block_keys;
#if defined(__ARM_FEATURE_DOTPROD)
    for (; r + 4 <= r1; r += 4, x += 4 * block_keys) qk_float_four(q, r, k, x);
#endif
    for (; r + qk_float_rows <= r1; r += qk_float_rows, x += qk_float_rows * block_keys)
        qk_float_tile<qk_float_rows>(q, r, k, x);
    if constexpr (qk_float_rows > 4)
        for (; r + 4 <= r1; r += 4, x += 4 * block_keys) qk_float_tile<4>(q, r, k, x);
    for (; r < r1; ++r, x += block_keys) qk_float_tile<1>(q, r, k, x);
}

// Four consecutive int8 of a query as one word, for all lanes.
static inline int32_t four_bytes(const int8_t* p) {
    int32_t w;
    memcpy(&w, p, 4);
    return w;
}

constexpr int part_shift(CacheType type) { return type == cache_q4_0 ? 4 : 8; }  // log2 of QueryRows' base

#if defined(__AVX512VNNI__)

template <int R>
struct Dots {  // integer dot products of R rows with 16 tokens, high and low parts
    __m512i hi[R], lo[R];
    inline void clear(const int32_t* offset, size_t pitch) {
        MIXKV_UNROLL
        for (int r = 0; r < R; ++r) hi[r] = _mm512_setzero_si512(), lo[r] = _mm512_set1_epi32(offset[r * pitch]);
    }
    inline void add(__m512i k, const int8_t* q, size_t pitch) {
        MIXKV_UNROLL
        for (int r = 0; r < R; ++r) {
            hi[r] = _mm512_dpbusd_epi32(hi[r], k, _mm512_set1_epi32(four_bytes(q + r * pitch)));
            lo[r] = _mm512_dpbusd_epi32(lo[r], k, _mm512_set1_epi32(four_bytes(q + r * pitch + 32)));
        }
    }
    template <CacheType type>
    inline V total(int r) const {
        return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(hi[r], part_shift(type)), lo[r]));
    }
};

// All codes of one block of a tile against the same dims of R rows.
template <CacheType type, int R>
static inline void block_dots(Dots<R>& dots, const uint8_t* codes, const int8_t* q, size_t pitch, const int32_t* offset,
                              size_t offset_pitch) {
    dots.clear(offset, offset_pitch);
    if constexpr (type == cache_q8_0) {
        for (int j = 0; j < 8; ++j) {
            ask_ahead(codes + j * 64);
            dots.add(_mm512_loadu_si512(codes + j * 64), q + 4 * j, pitch);
        }
    } else {
        const __m512i nibble = _mm512_set1_epi8(15);
        for (int j = 0; j < 4; ++j) {
            ask_ahead(codes + j * 64);
            const __m512i two = _mm512_loadu_si512(codes + j * 64);
            dots.add(_mm512_and_si512(two, nibble), q + 4 * j, pitch);
            dots.add(_mm512_and_si512(_mm512_srli_epi16(two, 4), nibble), q + 16 + 4 * j, pitch);
        }
    }
}

#elif defined(__AVX2__)

template <int R>
struct Dots {
    __m256i hi[2], lo[2];  // R is 1; two halves of 8 tokens
    template <CacheType type>
    inline V total(int) const {
        auto half = [&](int h) {
            return _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32(hi[h], part_shift(type)), lo[h]));
        };
        return {half(0), half(1)};
    }
};

// q4_0: codes <= 15, so 8 products of pairs (each at most 2 * 15 * 127) add up within int16. q8_0: the codes' signs go
// to the query, since unsigned 255 * 127 would saturate; there is no zero point then. Each product is widened at once.
template <CacheType type, int R>
static inline void block_dots(Dots<R>& dots, const uint8_t* codes, const int8_t* q, size_t, const int32_t* offset, size_t) {
    const __m256i ones = _mm256_set1_epi16(1), nibble = _mm256_set1_epi8(15), flip = _mm256_set1_epi8(-128);
    auto four = [q](int at) { return _mm256_set1_epi32(four_bytes(q + at)); };
    for (int h = 0; h < 2; ++h) {
        __m256i hi = _mm256_setzero_si256(), lo = hi;
        for (int j = 0; j < part_shift(type); ++j) {  // 4 or 8 rows of codes
            const __m256i k = _mm256_loadu_si256((const __m256i*)(codes + j * 64 + h * 32));
            if constexpr (type == cache_q8_0) {
                const __m256i s = _mm256_xor_si256(k, flip), a = _mm256_abs_epi8(s);
                auto wide = [&](__m256i x) { return _mm256_madd_epi16(_mm256_maddubs_epi16(a, _mm256_sign_epi8(x, s)), ones); };
                hi = _mm256_add_epi32(hi, wide(four(4 * j)));
                lo = _mm256_add_epi32(lo, wide(four(32 + 4 * j)));
            } else {
                const __m256i low = _mm256_and_si256(k, nibble), high = _mm256_and_si256(_mm256_srli_epi16(k, 4), nibble);
                hi = _mm256_add_epi16(hi, _mm256_maddubs_epi16(low, four(4 * j)));
                hi = _mm256_add_epi16(hi, _mm256_maddubs_epi16(high, four(16 + 4 * j)));
                lo = _mm256_add_epi16(lo, _mm256_maddubs_epi16(low, four(32 + 4 * j)));
                lo = _mm256_add_epi16(lo, _mm256_maddubs_epi16(high, four(48 + 4 * j)));
            }
        }
        dots.hi[h] = type == cache_q8_0 ? hi : _mm256_madd_epi16(hi, ones);
        dots.lo[h] = type == cache_q8_0 ? lo : _mm256_add_epi32(_mm256_madd_epi16(lo, ones), _mm256_set1_epi32(*offset));
    }
}

#elif defined(__ARM_FEATURE_DOTPROD)

template <int R>
struct Dots {
    int32x4_t hi[R][4], lo[R][4];
    inline void clear(const int32_t* offset, size_t pitch) {
        MIXKV_UNROLL
        for (int r = 0; r < R; ++r)
            MIXKV_UNROLL
            for (int i = 0; i < 4; ++i) hi[r][i] = vdupq_n_s32(0), lo[r][i] = vdupq_n_s32(offset ? offset[r * pitch] : 0);
    }
    // Tokens 4 i .. 4 i + 3, dims 4 lane .. 4 lane + 3 of the 16 whose two parts are at q.
    template <int lane>
    inline void add(int i, int8x16_t k, const int8_t* q, size_t pitch) {
        MIXKV_UNROLL
        for (int r = 0; r < R; ++r) {
            hi[r][i] = vdotq_laneq_s32(hi[r][i], k, vld1q_s8(q + r * pitch), lane);
            lo[r][i] = vdotq_laneq_s32(lo[r][i], k, vld1q_s8(q + r * pitch + 32), lane);
        }
    }
    template <CacheType type>
    inline V total(int r) const {
        V x;
        MIXKV_UNROLL
        for (int i = 0; i < 4; ++i) x.v[i] = vcvtq_f32_s32(vaddq_s32(vshlq_n_s32(hi[r][i], part_shift(type)), lo[r][i]));
        return x;
    }
};

// Row `lane` of codes (q4_0), or rows `lane` and 4 + lane (q8_0): dims 4 lane .. and 16 + 4 lane .. of all tokens.
template <CacheType type, int lane, int R>
static inline void add_codes(Dots<R>& dots, const uint8_t* codes, const int8_t* q, size_t pitch) {
    ask_ahead(codes + lane * 64);
    if (type == cache_q8_0) ask_ahead(codes + (lane + 4) * 64);
    MIXKV_UNROLL
    for (int i = 0; i < 4; ++i) {
        const uint8x16_t k = vld1q_u8(codes + lane * 64 + i * 16);
        uint8x16_t first, second;
        if constexpr (type == cache_q8_0) {
            first = veorq_u8(k, vdupq_n_u8(0x80));
            second = veorq_u8(vld1q_u8(codes + (lane + 4) * 64 + i * 16), vdupq_n_u8(0x80));
        } else {
            first = vandq_u8(k, vdupq_n_u8(15));
            second = vshrq_n_u8(k, 4);
        }
        dots.template add<lane>(i, vreinterpretq_s8_u8(first), q, pitch);
        dots.template add<lane>(i, vreinterpretq_s8_u8(second), q + 16, pitch);
    }
}

// q4_0: codes 0 .. 15, their zero comes off through the offset. q8_0: the codes' top bits turned over make them signed.
template <CacheType type, int R>
static inline void block_dots(Dots<R>& dots, const uint8_t* codes, const int8_t* q, size_t pitch, const int32_t* offset,
                              size_t offset_pitch) {
    dots.clear(type == cache_q8_0 ? nullptr : offset, offset_pitch);
    add_codes<type, 0>(dots, codes, q, pitch);
    add_codes<type, 1>(dots, codes, q, pitch);
    add_codes<type, 2>(dots, codes, q, pitch);
    add_codes<type, 3>(dots, codes, q, pitch);
}

#else

template <int R>
struct Dots {
    I sum;
    template <CacheType>
    inline V total(int) const { return vfrom_int(sum); }
};

template <CacheType type, int R>
static inline void block_dots(Dots<R>& dots, const uint8_t* codes, const int8_t* q, size_t, const int32_t* offset, size_t) {
    for (int t = 0; t < 16; ++t) dots.sum.v[t] = *offset;
    for (int i = 0; i < block_dims; ++i) {
        const bool high = type == cache_q4_0 && i >= 16;
        const uint8_t* row = codes + (high ? i - 16 : i) / 4 * 64 + i % 4;
        const int32_t x = q[i] * (1 << part_shift(type)) + q[32 + i];
        for (int t = 0; t < 16; ++t) {
            const int code = type == cache_q8_0 ? row[t * 4] : high ? row[t * 4] >> 4 : row[t * 4] & 15;
            dots.sum.v[t] += code * x;
        }
    }
}

#endif

template <CacheType type, int R>
static inline void qk_int_tile(const QueryRows& q, int r0, const uint8_t* tile, float* x) {
    const size_t pitch = size_t(q.blocks) * 64, block_bytes = type == cache_q8_0 ? 512 : 256;
    const auto* scales = reinterpret_cast<const uint16_t*>(tile + q.blocks * block_bytes);
    V score[R];
    MIXKV_UNROLL
    for (int r = 0; r < R; ++r) score[r] = vset(0.0f);
    for (int b = 0; b < q.blocks; ++b) {
        Dots<R> dots;
        block_dots<type>(dots, tile + b * block_bytes, q.codes + r0 * pitch + size_t(b) * 64, pitch,
                         q.offset + r0 * q.blocks + b, size_t(q.blocks));
        const V d = vload_half(scales + b * tile_tokens);
        MIXKV_UNROLL
        for (int r = 0; r < R; ++r) score[r] = vfma(dots.template total<type>(r), d, score[r]);
    }
    MIXKV_UNROLL
    for (int r = 0; r < R; ++r) vstore(x + r * block_keys, score[r]);
}

template <CacheType type>
static void qk_int(const QueryRows& q, int r0, int r1, const uint8_t* tile, float* x) {
    int r = r0;
    x += size_t(r0) * block_keys;
    for (; r + qk_int_rows <= r1; r += qk_int_rows, x += qk_int_rows * block_keys)
        qk_int_tile<type, qk_int_rows>(q, r, tile, x);
    if constexpr (qk_int_rows > 4)
        for (; r + 4 <= r1; r += 4, x += 4 * block_keys) qk_int_tile<type, 4>(q, r, tile, x);
    for (; r < r1; ++r, x += block_keys) qk_int_tile<type, 1>(q, r, tile, x);
}

#if defined(__AVX512VNNI__)

// The operands of one block of 32 dims of a q4_0 tile, one code a byte, in the order of q8_0.
static inline void unpack_k(const uint8_t* codes, uint8_t* out) {
    const __m512i nibble = _mm512_set1_epi8(15);
    for (int j = 0; j < 4; ++j) {
        ask_ahead(codes + j * 64);
        const __m512i two = _mm512_loadu_si512(codes + j * 64);
        _mm512_store_si512(out + j * 64, _mm512_and_si512(two, nibble));
        _mm512_store_si512(out + (j + 4) * 64, _mm512_and_si512(_mm512_srli_epi16(two, 4), nibble));
    }
}

// R rows and two tiles, one block of dims: x = (first ? 0 : x) + integer dot product * d. Each part of a query that is
// broadcast serves both tiles.
template <CacheType type, int R>
static inline void qk_pair(const uint8_t* k0, const uint8_t* k1, const int8_t* q, size_t pitch, const int32_t* offset,
                           size_t offset_pitch, V d0, V d1, bool first, bool ask, float* x) {
    Dots<R> dots[2];
    dots[0].clear(offset, offset_pitch);
    dots[1].clear(offset, offset_pitch);
    for (int j = 0; j < 8; ++j) {
        if (ask) ask_ahead(k0 + j * 64), ask_ahead(k1 + j * 64);
        const __m512i a = _mm512_loadu_si512(k0 + j * 64), b = _mm512_loadu_si512(k1 + j * 64);
        dots[0].add(a, q + 4 * j, pitch);
        dots[1].add(b, q + 4 * j, pitch);
    }
    MIXKV_UNROLL
    for (int r = 0; r < R; ++r) {
        float* to = x + r * block_keys;
        vstore(to, vfma(dots[0].template total<type>(r), d0, first ? vset(0.0f) : vload(to)));
        vstore(to + 16, vfma(dots[1].template total<type>(r), d1, first ? vset(0.0f) : vload(to + 16)));
    }
}

// All rows and the four tiles of a block, the same numbers as four times qk_int.
template <CacheType type>
static void qk_int_block(const QueryRows& q, const uint8_t* const* tiles, float* x) {
    alignas(64) uint8_t unpacked[tiles_per_block][512];
    const size_t pitch = size_t(q.blocks) * 64, block_bytes = type == cache_q8_0 ? 512 : 256;
    for (int b = 0; b < q.blocks; ++b) {
        const uint8_t* codes[tiles_per_block];
        V d[tiles_per_block];
        for (int t = 0; t < tiles_per_block; ++t) {
            const uint8_t* scales = tiles[t] + q.blocks * block_bytes + b * tile_tokens * 2;
            d[t] = vload_half(reinterpret_cast<const uint16_t*>(scales));
            ask_ahead(scales);
            codes[t] = tiles[t] + b * block_bytes;
            if constexpr (type == cache_q4_0) {
                unpack_k(codes[t], unpacked[t]);
                codes[t] = unpacked[t];
            }
        }
        for (int t = 0; t < tiles_per_block; t += 2) {
            auto run = [&]<int R>(int r) {
                qk_pair<type, R>(codes[t], codes[t + 1], q.codes + r * pitch + size_t(b) * 64, pitch,
                                 q.offset + r * q.blocks + b, size_t(q.blocks), d[t], d[t + 1], b == 0,
                                 type == cache_q8_0 && r == 0, x + r * block_keys + t * tile_tokens);
            };
            int r = 0;
            for (; r + 4 <= q.n_rows; r += 4) run.template operator()<4>(r);
            if (q.n_rows - r >= 2) run.template operator()<2>(r), r += 2;
            if (r < q.n_rows) run.template operator()<1>(r);
        }
    }
}

#endif

}  // namespace mixkv::MIXKV_ISA
