// What each bind_*.cpp offers to module.cpp, and the array types they share. Arrays are C-contiguous and never copied
// in silence: annotate arguments with .noconvert(); `const` element types admit read-only memory (GGUF maps).
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <memory>

#include "backend.h"

namespace mixkv {

namespace nb = nanobind;

template <class T, int... shape>
using Array = nb::ndarray<T, nb::shape<shape...>, nb::c_contig, nb::device::cpu>;
using In1 = Array<const float, -1>;
using In2 = Array<const float, -1, -1>;
using In3 = Array<const float, -1, -1, -1>;

// Memory of the arrays that kernels return. Freed blocks of 64 KiB and more are kept (64 MiB at most) and handed out
// again: fresh pages from the system would cost a prompt's larger arrays as much as a tenth of the arithmetic.
void* take_array_memory(size_t bytes);  // 64-byte aligned, uninitialised; throws std::bad_alloc
void give_array_memory(void* p) noexcept;

// A fresh NumPy array of this shape, uninitialised; `data` receives its memory, which goes back when the array does.
template <class T>
nb::object new_array(T*& data, std::initializer_list<size_t> shape) {
    size_t n = 1;
    for (size_t s : shape) n *= s;
    data = static_cast<T*>(take_array_memory(n * sizeof(T)));
    nb::capsule owner(data, [](void* p) noexcept { give_array_memory(p); });
    return nb::cast(nb::ndarray<nb::numpy, T>(data, shape, owner), nb::rv_policy::reference);
}

// A backend as Python holds it; what it makes shares it.
struct PyBackend {
    std::shared_ptr<Backend> shared;
    Backend& operator*() const { return *shared; }
};

void warn_of_missing_threads(int n_missing, const Backend& on);

// One call: Python's lock is let go before the backend's turn is waited for, and taken again after it is given back.
template <class F>
void on_turn(Backend& on, F&& f) {
    {
        nb::gil_scoped_release nogil;
        Pool::Turn turn(on.pool);
        f();
    }
    if (const int n = on.pool.take_missing()) warn_of_missing_threads(n, on);
}

void bind_linear(nb::module_& m, nb::class_<PyBackend>& backend);
void bind_kv(nb::module_& m, nb::class_<PyBackend>& backend);
void bind_mask(nb::class_<PyBackend>& backend);

}  // namespace mixkv
