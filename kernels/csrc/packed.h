// How weights lie in memory, for the glue (which packs) and the kernels (which read). C headers only, for isa sources.
//
// A weight (rows, cols) is cut into groups of 16 rows, and four groups make a panel; the last panel is padded with zero
// rows. Quantized types are cut along cols into blocks of 32 and have two planes, each with its panels in order;
// inside a panel: [block][4 groups]. So one token's product reads four rows of registers from one stream of memory.
//
//   q  one block = 32 columns x 16 rows at `bits` bits = 64 * bits bytes. "Quad j" of a block
//      are columns 4j..4j+3 of all 16 rows: 64 bytes, byte 4*row + (col % 4), the operand order of VNNI and AMX.
//        8 bits: line j is quad j                4 bits: line i holds quad i (low nibbles) and quad 4+i (high nibbles)
//        2 bits: line i, bit pair p is quad 4i+p (i = 0, 1)        1 bit: bit j is quad j; set, its code is 2
//        5 = 4 + 1, 6 = 4 + 2, 3 = 2 + 1 bits: the planes of the low bits, then of the high bits
//      Codes are unsigned; the number is (code - zero) / 2^fraction, with table[code] for code where there is a table.
//      Patterns of the file's codebooks (IQ1 to IQ3) are looked up when packed, and lie here column by column.
//   s  scales, 16 rows side by side, in units that go with as many blocks as a raw block has:
//        plain      d (16 x fp16)                                          number * d
//        plain_min  d, m (16 x fp16 each)                                  code * d + m
//        e8m0       16 bytes e                                             number * 2^(e - 128)
//        e4m3       [blocks * subs][16] bytes, four bits of exponent and three of mantissa f: number * f / 2
//        super      d (16 x fp16), then [8 * subs][16] int8 c              number * (d * c)
//        super_min  d, dmin (16 x fp16 each), then [8][16] uint8 c, [8][16] uint8 e: code (d c) - dmin e
//        super_min4 d, dmin, then [16][16] bytes with c in the low, e in the high nibble; subs = 2
//      subs = 2: a scale for each half block of 16 columns (quads 0-3, quads 4-7).
//
// Float types (F32, F16, BF16) have the plane q only, a panel is [col][4 groups][16 rows]. F64 becomes F32 when
// packed.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace mixkv {

enum Scales {
    scales_none, scales_plain, scales_plain_min, scales_e8m0, scales_e4m3,
    scales_super, scales_super_min, scales_super_min4  // from scales_super_min on: with minimums
};
enum Table { no_table, table_iq4, table_fp4, table_iq3_xxs, table_iq3_s, table_iq2, table_iq1 };

// X(name, ggml_type, raw block columns, raw block bytes, bits, zero, fraction, table, subs, scales)
#define MIXKV_QUANT_FORMATS(X)                                        \
    X(Q4_0, 2, 32, 18, 4, 8, 0, no_table, 1, scales_plain)            \
    X(Q4_1, 3, 32, 20, 4, 0, 0, no_table, 1, scales_plain_min)        \
    X(Q5_0, 6, 32, 22, 5, 16, 0, no_table, 1, scales_plain)           \
    X(Q5_1, 7, 32, 24, 5, 0, 0, no_table, 1, scales_plain_min)        \
    X(Q8_0, 8, 32, 34, 8, 128, 0, no_table, 1, scales_plain)          \
    X(Q2_K, 10, 256, 84, 2, 0, 0, no_table, 2, scales_super_min4)     \
    X(Q3_K, 11, 256, 110, 3, 4, 0, no_table, 2, scales_super)         \
    X(Q4_K, 12, 256, 144, 4, 0, 0, no_table, 1, scales_super_min)     \
    X(Q5_K, 13, 256, 176, 5, 0, 0, no_table, 1, scales_super_min)     \
    X(Q6_K, 14, 256, 210, 6, 32, 0, no_table, 2, scales_super)        \
    X(IQ4_NL, 20, 32, 18, 4, 128, 0, table_iq4, 1, scales_plain)      \
    X(IQ4_XS, 23, 256, 136, 4, 128, 0, table_iq4, 1, scales_super)    \
    X(MXFP4, 39, 32, 17, 4, 12, 0, table_fp4, 1, scales_e8m0)         \
    X(NVFP4, 40, 64, 36, 4, 12, 0, table_fp4, 2, scales_e4m3)         \
    X(IQ3_XXS, 18, 256, 98, 4, 62, 2, table_iq3_xxs, 1, scales_super) \
    X(IQ3_S, 21, 256, 110, 4, 15, 0, table_iq3_s, 1, scales_super)    \
    X(IQ2_XXS, 16, 256, 66, 3, 43, 3, table_iq2, 1, scales_super)     \
    X(IQ2_XS, 17, 256, 74, 3, 43, 3, table_iq2, 2, scales_super)      \
    X(IQ2_S, 22, 256, 82, 3, 43, 3, table_iq2, 2, scales_super)       \
    X(IQ1_S, 19, 256, 50, 3, 9, 3, table_iq1, 1, scales_super)        \
    X(IQ1_M, 29, 256, 56, 3, 9, 3, table_iq1, 2, scales_super)        \
    X(TQ1_0, 34, 256, 54, 2, 1, 0, no_table, 1, scales_plain)         \
    X(TQ2_0, 35, 256, 66, 2, 1, 0, no_table, 1, scales_plain)         \
    X(Q1_0, 41, 128, 18, 1, 1, 0, no_table, 1, scales_plain)

// X(name, ggml_type, bytes)
#define MIXKV_FLOAT_FORMATS(X) X(F32, 0, 4) X(F16, 1, 2) X(BF16, 30, 2)

enum Format : int {
#define MIXKV_ENUM(name, ...) fmt_##name,
    MIXKV_QUANT_FORMATS(MIXKV_ENUM) n_quant_formats,
    fmt_before_float = n_quant_formats - 1,
    MIXKV_FLOAT_FORMATS(MIXKV_ENUM) n_formats
#undef MIXKV_ENUM
};

constexpr int group_rows = 16;   // rows that lie interleaved
constexpr int panel_groups = 4;  // groups whose blocks alternate
constexpr int block_cols = 32;   // columns of a block, in weights and in quantized activations

// What the codes of each table stand for, with the format's zero added. Where files keep signs apart from magnitudes,
// the sign is the highest bit of our code. Values up to 128 are multiplied fastest where there is no VNNI (simd_avx2.h).
constexpr uint8_t value_tables[][16] = {
    {},                                                                         // no_table
    {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241},  // iq4: -127 to 113
    {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0},                // fp4: twice 0, 0.5, 1, 1.5, 2, 3, 4, 6
    {66, 74, 82, 90, 98, 106, 114, 124, 58, 50, 42, 34, 26, 18, 10, 0},         // iq3_xxs: 4, 12, ... 52, 62
    {16, 18, 20, 22, 24, 26, 28, 30, 14, 12, 10, 8, 6, 4, 2, 0},                // iq3_s: 1, 3, ... 15
    {51, 68, 86, 43, 35, 18, 0, 43},                                            // iq2: 8, 25, 43, unused
    {2, 10, 18, 9, 0, 8, 16, 9},  // iq1: -8, 0, 8, unused, with 1 added; the same with 1 taken off
};

constexpr int quant_block_bytes(int bits) { return 64 * bits; }
constexpr int scale_unit_bytes(Scales s, int blocks, int subs) {  // of a unit that `blocks` blocks share
    switch (s) {
        case scales_plain: return 32;
        case scales_plain_min: return 64;
        case scales_e8m0: return 16;
        case scales_e4m3: return 16 * blocks * subs;
        case scales_super: return 32 + 16 * blocks * subs;
        default: return 64 + 32 * blocks;
    }
}

// A packed weight as the kernels see it.
struct Packed {
    const uint8_t* q;
    const uint8_t* s;
    size_t q_panel, s_panel;  // bytes of one panel in each plane
    int rows, cols;
    Format format;

    // The first block (scale unit) of a group; the next one of the same group is 4 blocks (units) further.
    const uint8_t* q_of(int group, size_t block_bytes) const {
        return q + size_t(group / panel_groups) * q_panel + size_t(group % panel_groups) * block_bytes;
    }
    const uint8_t* s_of(int group, size_t unit_bytes) const {
        return s + size_t(group / panel_groups) * s_panel + size_t(group % panel_groups) * unit_bytes;
    }
};

}  // namespace mixkv
