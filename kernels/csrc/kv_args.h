// What Python hands to the cache, before anything is believed of it: arrays of the right type and shape, positions inside
// the context, whole tiles. All that is wrong is an InputError, as in the NumPy twin (kernels/store_checks.py).
#pragma once

#include <cstdint>
#include <string>

#include "bind.h"
#include "errors.h"
#include "kv_store.h"

namespace mixkv {

// A whole number from Python. One that 64 bits cannot hold becomes the nearest that they can, which no check lets pass.
struct Whole {
    int64_t value;
    operator int64_t() const { return value; }
};

// A C-contiguous array of `dims` dimensions.
template <class T, int dims>
struct Numbers {
    const T* data;
    int64_t shape[dims];
    nb::ndarray<nb::ro> keep;
};

void require(bool ok, const char* what, const std::string& why);
std::string shape_text(std::initializer_list<int64_t> shape);

// Any array of `dims` dimensions, its numbers one after the other; `name` is for the message.
nb::ndarray<nb::ro> contiguous(nb::handle a, size_t dims, const char* what, const char* name);

template <class T, int dims>
Numbers<T, dims> numbers(nb::handle a, const char* what, const char* name) {
    Numbers<T, dims> out;
    out.keep = contiguous(a, dims, what, name);
    require(out.keep.dtype() == nb::dtype<T>(), what, std::string(name) + " has another dtype than it must");
    out.data = static_cast<const T*>(out.keep.data());
    for (size_t i = 0; i < dims; ++i) out.shape[i] = int64_t(out.keep.shape(i));
    return out;
}
using Heads = Numbers<float, 3>;  // (n, heads, head_dim)
using HotFrom = Numbers<int64_t, 1>;
using SinkLogits = Numbers<float, 1>;  // (n_heads,); without data where there are none

int check_layer(const KVStore& s, int64_t layer, const char* what);
void check_span(const KVStore& s, int64_t start, int64_t n, const char* what);  // positions start .. start + n
void check_tiles(const KVStore& s, int64_t start, int64_t stop, const char* what);
void check_kv(const KVStore& s, const Heads& k, const Heads& v, int64_t pos, const char* what);
SinkLogits sink_logits(nb::handle a, const Heads& q, const char* what);
void check_queries(const KVStore& s, const Heads& q, int64_t pos, const HotFrom& hot_from, int64_t window,
                   const char* what);

}  // namespace mixkv

namespace nanobind::detail {
template <>
struct type_caster<mixkv::Whole> {
    NB_TYPE_CASTER(mixkv::Whole, const_name("int"))
    bool from_python(handle src, uint8_t, cleanup_list*) noexcept {
        PyObject* index = PyNumber_Index(src.ptr());
        if (!index) return PyErr_Clear(), false;
        int beyond = 0;
        const long long n = PyLong_AsLongLongAndOverflow(index, &beyond);
        Py_DECREF(index);
        value.value = beyond > 0 ? INT64_MAX : beyond < 0 ? INT64_MIN : n;
        return true;
    }
};
}  // namespace nanobind::detail
