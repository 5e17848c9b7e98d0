// The quantized formats of packed.h as the kernels read them: one line of MIXKV_QUANT_FORMATS makes one type here.
//
//   Fmt::quad<j>(q)               codes of quad j of the block at q
//   Fmt::scales(s, b, d, m)       scales (and minimums) of block b of the group whose first scale unit is at s
#pragma once

#include "packed.h"
#include "simd.h"

namespace mixkv::MIXKV_ISA {

// blocks: how many a scale unit goes with
template <int bits_, int zero_, int fraction, Table table, int subs_, Scales kind, int blocks>
struct Fmt {
    static constexpr int bits = bits_, zero = zero_, subs = subs_;
    static constexpr int block_bytes = quant_block_bytes(bits), block_step = panel_groups * block_bytes;
    static constexpr int unit_bytes = scale_unit_bytes(kind, blocks, subs), unit_step = panel_groups * unit_bytes;
    static constexpr bool has_min = kind == scales_plain_min || kind == scales_super_min || kind == scales_super_min4;

    template <int j>
    MIXKV_INLINE B64 nibbles(const uint8_t* q) {
        if constexpr (j < 4)
            return low4(load64(q + 64 * j));
        else
            return high4(load64(q + 64 * (j - 4)));
    }
    template <int j>
    MIXKV_INLINE B64 pairs(const uint8_t* q) {
        return bits2<j % 4>(load64(q + 64 * (j / 4)));
    }

    template <int j>
    MIXKV_INLINE B64 code(const uint8_t* q) {
        if constexpr (bits == 8) return load64(q + 64 * j);
        if constexpr (bits == 4) return nibbles<j>(q);
        if constexpr (bits == 5) return or64(nibbles<j>(q), bit_as<j, 16>(load64(q + 256)));
        if constexpr (bits == 6) return or64(nibbles<j>(q), shl64<4>(pairs<j>(q + 256)));
        if constexpr (bits == 2) return pairs<j>(q);
        if constexpr (bits == 3) return or64(pairs<j>(q), bit_as<j, 4>(load64(q + 128)));
        if constexpr (bits == 1) return bit_as<j, 2>(load64(q));
    }
    template <int j>
    MIXKV_INLINE B64 quad(const uint8_t* q) {
        if constexpr (table != no_table)
            return lookup16(value_tables[table], code<j>(q));
        else
            return code<j>(q);
    }

    // d[subs], m[subs]: the number is d * (code - zero) + m
    MIXKV_INLINE void scales(const uint8_t* s, int b, F16* d, F16* m) {
        const uint8_t* p = s + size_t(b / blocks) * unit_step;
        const int i = b % blocks;
        if constexpr (kind == scales_e8m0) {
            d[0] = load_e8m0(p);
            return;
        }
        if constexpr (kind == scales_e4m3) {
            MIXKV_UNROLL
            for (int h = 0; h < subs; ++h) d[h] = load_e4m3(p + 16 * (i * subs + h));
            return;
        }
        d[0] = load_f16(p);
        if constexpr (fraction != 0) d[0] = mul(d[0], set16(1.0f / (1 << fraction)));  // exact, like all its products
        if constexpr (kind == scales_plain_min) m[0] = load_f16(p + 32);
        if constexpr (kind == scales_super) {
            const F16 base = d[0];
            MIXKV_UNROLL
            for (int h = 0; h < subs; ++h) d[h] = mul(base, load_i8(p + 32 + 16 * (i * subs + h)));
        }
        if constexpr (kind == scales_super_min) {
            d[0] = mul(d[0], load_u8(p + 64 + 16 * i));
            m[0] = mul(sub(set16(0.0f), load_f16(p + 32)), load_u8(p + 64 + 128 + 16 * i));
        }
        if constexpr (kind == scales_super_min4) {
            const F16 base = d[0], neg_min = sub(set16(0.0f), load_f16(p + 32));
            MIXKV_UNROLL
            for (int h = 0; h < subs; ++h) {
                F16 c, e;
                load_nibbles(p + 64 + 16 * (2 * i + h), &c, &e);
                d[h] = mul(base, c);
                m[h] = mul(neg_min, e);
            }
        }
    }
};

// Formats that differ only in how files write them are one type here, and share their code.
#define MIXKV_FMT(name, type, cols, bytes, bits, zero, fraction, table, subs, scales) \
    using Fmt_##name = Fmt<bits, zero, fraction, table, subs, scales, cols / block_cols>;
MIXKV_QUANT_FORMATS(MIXKV_FMT)
#undef MIXKV_FMT

}  // namespace mixkv::MIXKV_ISA
