// Pages: the cache's memory, shared by the stores that hold the same tokens, under one budget.
//
// A page belongs to whoever has a reference; it may be written by its only holder. Stores give references back when they
// are destroyed, which Python may do in the middle of another thread's turn: a mutex of the pool's guards counts and
// lists. Contents need no guard: pages with one reference are their store's, and others are only read.
//
// fork(): whoever holds the mutex has the turn or Python's lock, and fork() waits for both.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "memory.h"

namespace mixkv {

struct Slab;

struct Page {
    uint8_t* data;
    int64_t refs;
    Slab* slab;
};

// A page to be had: of so many bytes, a multiple of 64.
struct PageOrder {
    size_t bytes;
    Page* page = nullptr;
};

// Pages of one size are cut from slabs, each larger than those before it, up to 8 MiB: small caches take what they need,
// large ones lie on huge pages (12 % of attention's time in decoding). A page that is used again still has its old
// contents.
class PagePool {
public:
    explicit PagePool(int64_t budget);  // bytes of pages in use, < 0: as many as there are
    ~PagePool();
    PagePool(const PagePool&) = delete;
    PagePool& operator=(const PagePool&) = delete;

    int64_t budget() const { return budget_; }
    size_t nbytes();  // of pages in use
    size_t peak_nbytes();

    // Whoever calls what follows holds this.
    std::mutex mutex;
    // All pages, each with one reference, or OutOfMemoryError and none. poison: full of NaN (tests).
    void take(std::vector<PageOrder>& orders, bool poison);
    void give(Page* page) noexcept;  // one reference back

private:
    friend struct Slab;
    struct Size;
    Size& size_of(size_t bytes);
    Page* take_one(Size& size);

    const int64_t budget_;
    size_t used_ = 0, peak_ = 0, idle_ = 0;  // idle: bytes of slabs without a page in use
    std::vector<std::unique_ptr<Size>> sizes_;
};

}  // namespace mixkv
