// take_array_memory: see bind.h. A block starts with a line that holds its size; the array begins after it. fork() takes the
// shelf's lock, or a child might find it held by a thread that it does not have.
#include <pthread.h>

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include "bind.h"

namespace mixkv {
namespace {

constexpr size_t header = 64, smallest_kept = 64 << 10, most_kept = 64 << 20;

struct Block {
    uint8_t* start;
    size_t bytes;
};

struct Shelf {
    std::mutex mutex;
    std::vector<Block> blocks;
    size_t bytes = 0;
};
Shelf& shelf() {
    static Shelf* const one = [] {
        auto* s = new Shelf;  // never destroyed: arrays may outlive static objects
        s->blocks.reserve(most_kept / smallest_kept + 1);  // giving back must not need memory
        pthread_atfork([] { shelf().mutex.lock(); }, [] { shelf().mutex.unlock(); }, [] { shelf().mutex.unlock(); });
        return s;
    }();
    return *one;
}

}  // namespace

void* take_array_memory(size_t bytes) {
    bytes = (bytes + 63) / 64 * 64 + header;
    uint8_t* start = nullptr;
    if (bytes >= smallest_kept) {
        Shelf& s = shelf();
        std::lock_guard lock(s.mutex);
        for (size_t i = s.blocks.size(); i-- > 0;)
            if (s.blocks[i].bytes >= bytes && s.blocks[i].bytes <= bytes + bytes / 4) {
                start = s.blocks[i].start;
                bytes = s.blocks[i].bytes;
                s.bytes -= bytes;
                s.blocks.erase(s.blocks.begin() + std::ptrdiff_t(i));
                break;
            }
    }
    if (!start) start = static_cast<uint8_t*>(std::aligned_alloc(64, bytes));
    if (!start) throw std::bad_alloc();
    *reinterpret_cast<size_t*>(start) = bytes;
    return start + header;
}

void give_array_memory(void* p) noexcept {
    uint8_t* start = static_cast<uint8_t*>(p) - header;
    const size_t bytes = *reinterpret_cast<size_t*>(start);
    if (bytes >= smallest_kept) {
        Shelf& s = shelf();
        std::lock_guard lock(s.mutex);
        if (s.bytes + bytes <= most_kept) {
            s.blocks.push_back({start, bytes});
            s.bytes += bytes;
            return;
        }
    }
    std::free(start);
}

}  // namespace mixkv
