#include "pages.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

#include "errors.h"

namespace mixkv {
namespace {
constexpr size_t slab_bytes = size_t(8) << 20, huge_page = size_t(2) << 20;
constexpr size_t most_idle = size_t(32) << 20;  // beyond this, slabs that nobody uses go back to the system
}  // namespace

struct Slab {
    PagePool::Size* size;
    Buffer memory;
    std::vector<Page> pages;
    std::vector<Page*> free;
};

struct PagePool::Size {
    size_t bytes, n_pages = 0;                 // n_pages: in all slabs
    std::vector<std::unique_ptr<Slab>> slabs;
    size_t full = 0;                           // slabs before this one have no free page
};

PagePool::PagePool(int64_t budget) : budget_(budget) {}
PagePool::~PagePool() = default;

size_t PagePool::nbytes() {
    std::lock_guard lock(mutex);
    return used_;
}

size_t PagePool::peak_nbytes() {
    std::lock_guard lock(mutex);
    return peak_;
}

PagePool::Size& PagePool::size_of(size_t bytes) {
    for (auto& size : sizes_)
        if (size->bytes == bytes) return *size;
    sizes_.push_back(std::make_unique<Size>());
    sizes_.back()->bytes = bytes;
    return *sizes_.back();
}

Page* PagePool::take_one(Size& size) {
    while (size.full < size.slabs.size() && size.slabs[size.full]->free.empty()) ++size.full;
    if (size.full == size.slabs.size()) {
        size_t n = std::clamp<size_t>(size.n_pages, 1, std::max<size_t>(1, slab_bytes / size.bytes)), room = n * size.bytes;
        if (room >= huge_page && std::bit_floor(room) >= size.bytes) {  // no part of it on small pages
            room = std::bit_floor(room);
            n = room / size.bytes;
        }
        auto slab = std::make_unique<Slab>();
        slab->size = &size;
        slab->memory = Buffer(room);
        slab->pages.resize(n);
        slab->free.reserve(n);
        for (size_t i = n; i-- > 0;) {
            slab->pages[i] = {slab->memory.data() + i * size.bytes, 0, slab.get()};
            slab->free.push_back(&slab->pages[i]);
        }
        size.slabs.push_back(std::move(slab));
        size.n_pages += n;
        idle_ += room;
    }
    Slab& slab = *size.slabs[size.full];
    if (slab.free.size() == slab.pages.size()) idle_ -= slab.memory.size();
    Page* page = slab.free.back();
    slab.free.pop_back();
    page->refs = 1;
    used_ += size.bytes;
    return page;
}

void PagePool::take(std::vector<PageOrder>& orders, bool poison) {
    size_t wanted = 0;
    for (const PageOrder& o : orders) wanted += o.bytes;
    if (budget_ >= 0 && used_ + wanted > size_t(budget_))
        throw OutOfMemoryError("the KV cache needs " + std::to_string(wanted) + " bytes more beside the " +
                               std::to_string(used_) + " in use, but its budget is " + std::to_string(budget_) +
                               ": end or shorten other sequences, or allow more (kv_memory)");
    try {
        for (PageOrder& o : orders) {
            o.page = take_one(size_of(o.bytes));
            if (poison) memset(o.page->data, 0xff, o.bytes);
        }
    } catch (...) {
        for (PageOrder& o : orders)
            if (o.page) give(o.page);
        throw;
    }
    peak_ = std::max(peak_, used_);
}

void PagePool::give(Page* page) noexcept {
    if (--page->refs > 0) return;
    Slab& slab = *page->slab;
    Size& size = *slab.size;
    used_ -= size.bytes;
    slab.free.push_back(page);
    size.full = 0;
    if (slab.free.size() < slab.pages.size()) return;
    idle_ += slab.memory.size();
    if (idle_ <= most_idle) return;
    idle_ -= slab.memory.size();
    size.n_pages -= slab.pages.size();
    const auto at = std::find_if(size.slabs.begin(), size.slabs.end(), [&](auto& s) { return s.get() == &slab; });
    size.slabs.erase(at);
}

}  // namespace mixkv
