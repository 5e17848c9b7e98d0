// Token masks: which tokens of a vocabulary may be drawn, a bit each. Memory for the result is all that it needs, so a
// mask waits for nobody's turn.
#include <cstring>
#include <limits>

#include "bind.h"

namespace mixkv {
namespace {

constexpr size_t word_bits = 32;

void apply_mask(const float* logits, size_t n, const int32_t* words, size_t n_words, float* out) {
    constexpr float banned = -std::numeric_limits<float>::infinity();
    for (size_t start = 0; start < n; start += word_bits) {
        const size_t count = n - start < word_bits ? n - start : word_bits, w = start / word_bits;
        const uint32_t bits = w < n_words ? uint32_t(words[w]) : 0;
        const float* from = logits + start;
        float* to = out + start;
        if (bits == 0) {  // most words of most masks are of one kind
            for (size_t i = 0; i < count; ++i) to[i] = banned;
        } else if (bits == ~uint32_t(0)) {
            std::memcpy(to, from, count * sizeof(float));
        } else {
            for (size_t i = 0; i < count; ++i) to[i] = bits >> i & 1 ? from[i] : banned;
        }
    }
}

nb::object apply_token_mask(PyBackend&, In1 logits, Array<const int32_t, -1> bitmask) {
    float* out;
    nb::object made = new_array(out, {logits.shape(0)});
    nb::gil_scoped_release nogil;
    apply_mask(logits.data(), logits.shape(0), bitmask.data(), bitmask.shape(0), out);
    return made;
}

}  // namespace

void bind_mask(nb::class_<PyBackend>& backend) {
    backend.def("apply_token_mask", &apply_token_mask, nb::arg("logits").noconvert(), nb::arg("bitmask").noconvert(),
                "logits (n_vocab,) with -inf where bit i % 32 of bitmask[i / 32] is not set or not there.");
}

}  // namespace mixkv
