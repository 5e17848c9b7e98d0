// The codebooks of GGML's IQ types: which patterns of magnitudes a few bits of the file stand for.
#pragma once

#include <cstdint>

namespace mixkv {

// Eight columns an entry, two bits each, the first column lowest.
extern const uint16_t codebook_iq1[2048], codebook_iq2_xxs[256], codebook_iq2_xs[512], codebook_iq2_s[1024];
// Four columns an entry, four bits each.
extern const uint16_t codebook_iq3_xxs[256], codebook_iq3_s[512];

}  // namespace mixkv
