// The IQ1, IQ2 and IQ3 types: a few bits of the file choose a pattern of eight or four magnitudes from a codebook, others
// their signs (IQ1: which way the whole pattern is shifted). Our codes hold both, column by column: more memory than the file
// takes, and no gathers in the products.
#include "codebooks.h"
#include "formats.h"

namespace mixkv {
namespace {

template <class T>
T word_at(const uint8_t* p) {
    T v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

// Files keep seven signs of eight; the eighth makes the number of minus signs even.
int with_parity(uint32_t signs) { return int(signs & 127) | (__builtin_popcount(signs & 127) & 1) << 7; }

// Magnitudes of `bits` bits each from `pattern`, bit k of signs above them: code bit 2, or 3 for patterns of four bits.
void eight(uint32_t pattern, int bits, int signs, uint8_t* codes) {
    for (int k = 0; k < 8; ++k)
        codes[k] = uint8_t((pattern >> (bits * k) & ((1u << bits) - 1)) | uint32_t(signs >> k & 1) << (bits == 2 ? 2 : 3));
}
uint32_t two_fours(const uint16_t* book, int first, int second) { return book[first] | uint32_t(book[second]) << 16; }

}  // namespace

void codebook_codes(Format f, const uint8_t* raw, int i, uint8_t codes[block_cols]) {
    for (int l = 0; l < 4; ++l, codes += 8) {
        const int at = 4 * i + l;  // which eight of the raw block's columns
        switch (f) {
            case fmt_IQ2_XXS:
                eight(codebook_iq2_xxs[raw[2 + 8 * i + l]], 2, with_parity(word_at<uint32_t>(raw + 6 + 8 * i) >> (7 * l)), codes);
                break;
            case fmt_IQ2_XS: {
                const uint16_t q = word_at<uint16_t>(raw + 2 + 2 * at);
                eight(codebook_iq2_xs[q & 511], 2, with_parity(q >> 9), codes);
                break;
            }
            case fmt_IQ2_S:
                eight(codebook_iq2_s[raw[2 + at] | (raw[66 + i] >> (2 * l) & 3) << 8], 2, raw[34 + at], codes);
                break;
            case fmt_IQ3_XXS:
                eight(two_fours(codebook_iq3_xxs, raw[2 + 2 * at], raw[3 + 2 * at]), 4,
                      with_parity(word_at<uint32_t>(raw + 66 + 4 * i) >> (7 * l)), codes);
                break;
            case fmt_IQ3_S: {
                const int high = raw[66 + i] >> (2 * l);
                eight(two_fours(codebook_iq3_s, raw[2 + 2 * at] | (high & 1) << 8, raw[3 + 2 * at] | (high & 2) << 7), 4,
                      raw[74 + at], codes);
                break;
            }
            case fmt_IQ1_S: {
                const uint16_t high = word_at<uint16_t>(raw + 34 + 2 * i);
                eight(codebook_iq1[raw[2 + at] | (high >> (3 * l) & 7) << 8], 2, high & 0x8000 ? 255 : 0, codes);
                break;
            }
            case fmt_IQ1_M: {
                const int high = raw[32 + at / 2] >> (4 * (at % 2));
                eight(codebook_iq1[raw[at] | (high & 7) << 8], 2, high & 8 ? 255 : 0, codes);
                break;
            }
            default: break;
        }
    }
}

}  // namespace mixkv
