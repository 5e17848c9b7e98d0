// Token masks: which tokens of a vocabulary may be drawn, a bit each. Memory for the result is all that it needs, so a
// mask waits for nobody's turn.
#include <array>
#include <limits>

#include "bind.h"

namespace mixkv {
namespace {

constexpr size_t word_bits = 32;

constexpr float banned = -std::numeric_limits<float>::infinity();

// `count` tokens of one word, without a branch for each: a lane is compared with the bit that is its own.
inline void choose(uint32_t bits, const float* from, float* to, size_t count) {
    alignas(64) static constexpr auto bit_of = [] {
        std::array<uint32_t, word_bits> bit{};
        for (size_t i = 0; i < word_bits; ++i) bit[i] = uint32_t(1) << i;
        return bit;
    }();
    for (size_t i = 0; i < count; ++i) {
        const float value = from[i];
        to[i] = (bits & bit_of[i]) != 0 ? value : banned;
    }
}

void apply_mask(const float* logits, size_t n, const int32_t* words, size_t n_words, float* out) {
    const size_t n_full = n / word_bits;
    const auto word = [&](size_t w) { return w < n_words ? uint32_t(words[w]) : 0; };
    for (size_t w = 0; w < n_full; ++w) choose(word(w), logits + w * word_bits, out + w * word_bits, word_bits);
    choose(word(n_full), logits + n_full * word_bits, out + n_full * word_bits, n - n_full * word_bits);
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
