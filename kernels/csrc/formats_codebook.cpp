// The IQ1, IQ2 and IQ3 types: a few bits of the file choose a pattern of eight or four magnitudes from a codebook,
// others their signs (IQ1: which way the whole pattern is shifted). Our codes hold both, column by column: more memory
// than the file takes, and no gathers in the products.
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

// Eight codes: magnitudes of two bits each, signs above them.
void put_twos(uint64_t pattern, int signs, uint8_t* codes) {
    uint64_t v = (pattern | pattern << 24) & 0x000000ff000000ffu;
    v = (v | v << 12) & 0x000f000f000f000fu;
    v = ((v | v << 6) & 0x0303030303030303u) | bits_to_bytes(signs) << 2;
    std::memcpy(codes, &v, 8);
}
// The same from two entries of four magnitudes of four bits, of which three are used.
void put_fours(uint64_t first, uint64_t second, int signs, uint8_t* codes) {
    uint64_t v = first | second << 32;
    v = (v | v << 8) & 0x00ff00ff00ff00ffu;
    v = ((v | v << 4) & 0x0f0f0f0f0f0f0f0fu) | bits_to_bytes(signs) << 3;
    std::memcpy(codes, &v, 8);
}

}  // namespace

void codebook_codes(Format f, const uint8_t* raw, int i, uint8_t codes[block_cols]) {
    for (int l = 0; l < 4; ++l, codes += 8) {
        const int at = 4 * i + l;  // which eight of the raw block's columns
        switch (f) {
            case fmt_IQ2_XXS:
                put_twos(codebook_iq2_xxs[raw[2 + 8 * i + l]],
                         with_parity(word_at<uint32_t>(raw + 6 + 8 * i) >> (7 * l)), codes);
                break;
            case fmt_IQ2_XS: {
                const uint16_t q = word_at<uint16_t>(raw + 2 + 2 * at);
                put_twos(codebook_iq2_xs[q & 511], with_parity(q >> 9), codes);
                break;
            }
            case fmt_IQ2_S:
                put_twos(codebook_iq2_s[raw[2 + at] | (raw[66 + i] >> (2 * l) & 3) << 8], raw[34 + at], codes);
                break;
            case fmt_IQ3_XXS:
                put_fours(codebook_iq3_xxs[raw[2 + 2 * at]], codebook_iq3_xxs[raw[3 + 2 * at]],
                          with_parity(word_at<uint32_t>(raw + 66 + 4 * i) >> (7 * l)), codes);
                break;
            case fmt_IQ3_S: {
                const int high = raw[66 + i] >> (2 * l);
                put_fours(codebook_iq3_s[raw[2 + 2 * at] | (high & 1) << 8],
                          codebook_iq3_s[raw[3 + 2 * at] | (high & 2) << 7], raw[74 + at], codes);
                break;
            }
            case fmt_IQ1_S: {
                const uint16_t high = word_at<uint16_t>(raw + 34 + 2 * i);
                put_twos(codebook_iq1[raw[2 + at] | (high >> (3 * l) & 7) << 8], high & 0x8000 ? 255 : 0, codes);
                break;
            }
            case fmt_IQ1_M: {
                const int high = raw[32 + at / 2] >> (4 * (at % 2));
                put_twos(codebook_iq1[raw[at] | (high & 7) << 8], high & 8 ? 255 : 0, codes);
                break;
            }
            default: break;
        }
    }
}

}  // namespace mixkv
