// How fast this machine reads memory: the roof under which decoding works.
#include "probe.h"

#include <chrono>
#include <cstring>

#include "memory.h"

namespace mixkv {
namespace {

constexpr size_t kPiece = size_t(4) << 20;

uint64_t sum(const uint8_t* p, size_t n) {
    uint64_t s[8] = {};
    for (size_t i = 0; i + 64 <= n; i += 64) {
        uint64_t v[8];
        std::memcpy(v, p + i, 64);
        for (int j = 0; j < 8; ++j) s[j] += v[j];
    }
    return s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7];
}

}  // namespace

double read_bandwidth(Backend& on, size_t n_bytes) {
    const int pieces = int((n_bytes + kPiece - 1) / kPiece);
    Buffer memory(size_t(pieces) * kPiece);
    on.parallel_for(pieces, [&](int i, int) { std::memset(memory.data() + size_t(i) * kPiece, i, kPiece); });
    volatile uint64_t sink = 0;
    const auto start = std::chrono::steady_clock::now();
    on.parallel_for(pieces, [&](int i, int) { sink = sum(memory.data() + size_t(i) * kPiece, kPiece); });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    return double(memory.size()) / seconds.count();
}

}  // namespace mixkv
