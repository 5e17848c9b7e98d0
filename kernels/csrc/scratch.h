// Memory that a backend keeps from call to call, so that a step of decoding allocates nothing. Whoever has the backend's
// turn owns it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "errors.h"
#include "memory.h"
#include "ops.h"

namespace mixkv {

// Grows and never shrinks; contents are lost when it grows.
class Scratch {
public:
    template <class T>
    T* get(size_t n) {
        if (n * sizeof(T) > buffer_.size()) {
            buffer_ = Buffer();  // first: not both at once
            buffer_ = Buffer(n * sizeof(T));
        }
        return buffer_.as<T>();
    }

private:
    Buffer buffer_;
};

// Handed out piece by piece, 64-byte aligned.
class alignas(64) Arena {
public:
    void reserve(size_t bytes, bool poison) {
        if (bytes > memory_.size()) {
            memory_ = Buffer();
            memory_ = Buffer(bytes + bytes / 4);
        }
        if (poison) std::fill_n(memory_.as<float>(), memory_.size() / 4, std::nanf(""));
        used_ = 0;
    }
    template <class T>
    T* take(size_t count) {
        T* p = reinterpret_cast<T*>(memory_.data() + used_);
        used_ += (count * sizeof(T) + 63) / 64 * 64;
        MIXKV_CHECK(used_ <= memory_.size());
        return p;
    }

    size_t mark() const { return used_; }
    void rewind(size_t mark) { used_ = mark; }  // give back what was taken since

private:
    Buffer memory_;
    size_t used_ = 0;
};

// The memory behind one Activations (linear.h).
struct ActivationMemory {
    Scratch norm, q, d, sum;
    QuantX quantx(int n, int cols);
};

// What routed experts need beside those (routed.cpp): the router's products, each token's choice, the rows that experts
// read, those sorted, and what down gives.
struct RoutedMemory {
    Scratch products, chosen, weights, parts;
    ActivationMemory rows, sorted;
};

// cos and sin of the angles by which RoPE turns rows at positions (n), (n, rot / 2) each, times scale.
struct Cosines {
    std::vector<float> inv_freq;
    double scale = 0;
    std::vector<int64_t> positions;
    std::vector<float> cos, sin;
};

// All layers of a step ask for the same angles: the last few tables are kept.
class CosineTables {
public:
    const Cosines& of(const std::vector<float>& inv_freq, double scale, const int64_t* positions, int n);

private:
    static constexpr size_t kept = 4;
    Cosines recent_[kept];
    size_t next_ = 0;
};

struct AttentionMemory {
    explicit AttentionMemory(int n_threads) : of_thread(size_t(n_threads)) {}
    Arena shared;
    std::vector<Arena> of_thread;
    bool poison = false;  // tests: full of NaN before each use
};

}  // namespace mixkv
