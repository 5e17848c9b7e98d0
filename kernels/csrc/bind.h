// What each bind_*.cpp offers to module.cpp, and the array types they share. Arrays are C-contiguous and never copied
// in silence: annotate arguments with .noconvert(); `const` element types admit read-only memory (GGUF maps).
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>

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

void bind_linear(nb::module_& m);
void bind_kv(nb::module_& m);

}  // namespace mixkv
