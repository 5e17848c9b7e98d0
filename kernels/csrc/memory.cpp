// Buffers beyond 64 KiB are pages of their own, which the system zeroes when they are touched. Large ones start on a 2 MiB
// boundary and end on a 4 KiB one, and only their whole 2 MiB pieces are advised as huge pages: a huge page for the tail
// would waste 1 MiB per weight on average, which the resident-memory promise cannot pay.
#include "memory.h"

#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

#include "errors.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mixkv {
namespace {
constexpr size_t huge = size_t(2) << 20, page = 4096, mapped_from = size_t(64) << 10;
constexpr const char* hint = ": a smaller context or batch, or fewer threads, need less";
size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }
}  // namespace

Buffer::Buffer(size_t bytes) : size_(bytes) {
    if (bytes == 0) return;
#if defined(__linux__)
    if (bytes >= mapped_from) {
        const size_t len = round_up(bytes, page), align = bytes >= huge ? huge : page;
        void* p = mmap(nullptr, len + align, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) throw OutOfMemoryError("could not reserve " + std::to_string(bytes) + " bytes" + hint);
        auto* raw = static_cast<uint8_t*>(p);
        auto* start = reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<size_t>(raw), align));
        if (start > raw) munmap(raw, size_t(start - raw));
        if (raw + align > start) munmap(start + len, size_t(raw + align - start));
        if (bytes >= huge) madvise(start, len / huge * huge, MADV_HUGEPAGE);
        data_ = start;
        mapped_ = true;
        return;
    }
#endif
    data_ = static_cast<uint8_t*>(std::aligned_alloc(64, round_up(bytes, 64)));
    if (!data_) throw OutOfMemoryError("could not allocate " + std::to_string(bytes) + " bytes" + hint);
    std::memset(data_, 0, bytes);
}

Buffer& Buffer::operator=(Buffer&& o) noexcept {
    std::swap(data_, o.data_);
    std::swap(size_, o.size_);
    std::swap(mapped_, o.mapped_);
    return *this;
}

void Buffer::release() {
#if defined(__linux__)
    if (mapped_) {
        munmap(data_, round_up(size_, page));
        return;
    }
#endif
    std::free(data_);
}

}  // namespace mixkv
