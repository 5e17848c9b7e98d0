// Buffer: zeroed memory aligned to 64 bytes (large ones to 2 MiB, on huge pages where the system gives them).
// Pages are touched first by whoever writes them, so a large untouched Buffer costs nothing yet.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mixkv {

class Buffer {
public:
    Buffer() = default;
    explicit Buffer(size_t bytes);  // throws OutOfMemoryError
    ~Buffer() { release(); }
    Buffer(Buffer&& o) noexcept : data_(o.data_), size_(o.size_), mapped_(o.mapped_) { o.data_ = nullptr, o.size_ = 0; }
    Buffer& operator=(Buffer&& o) noexcept;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    uint8_t* data() const { return data_; }
    template <class T>
    T* as() const {
        return reinterpret_cast<T*>(data_);
    }
    size_t size() const { return size_; }

private:
    void release();
    uint8_t* data_ = nullptr;
    size_t size_ = 0;
    bool mapped_ = false;  // mmap, else aligned_alloc
};

}  // namespace mixkv
