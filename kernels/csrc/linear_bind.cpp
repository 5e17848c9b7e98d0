// Python's side of weights, products and norms: shapes are checked here, arrays are made here, the GIL is released here.
// The fused objects are in layers_bind.cpp.
#include "bind.h"
#include "errors.h"
#include "formats.h"
#include "parts_bind.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/unique_ptr.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string>

namespace mixkv {

bool exact_by_default() {
    const char* v = std::getenv("MIXKV_ACTIVATIONS");
    if (!v || !*v || std::strcmp(v, "int8") == 0) return false;
    if (std::strcmp(v, "f32") == 0) return true;
    throw ConfigError("MIXKV_ACTIVATIONS=" + std::string(v) + " is neither int8 nor f32");
}

namespace {

using Raw = Array<const uint8_t, -1, -1>;
using Ids = Array<const int32_t, -1>;

// `dense` is for the NumPy twin, which then dequantizes once instead of at every use; packed weights need no such
// thing.
std::unique_ptr<Weight> pack(PyBackend& on, Raw raw, int ggml_type, int cols, bool exact, bool /*dense*/) {
    exact = exact || exact_by_default();
    std::unique_ptr<Weight> w;
    on_turn(*on, [&] {
        w = std::make_unique<Weight>(*on, raw.data(), raw.shape(1), int(raw.shape(0)), cols, ggml_type, exact);
    });
    return w;
}

nb::object embed(PyBackend& on, const Weight& w, Ids ids) {
    float* y;
    const int n = int(ids.shape(0));
    nb::object out = new_array(y, {size_t(n), size_t(w.cols())});
    for (int i = 0; i < n; ++i)
        if (ids.data()[i] < 0 || ids.data()[i] >= w.rows())
            throw InputError("token id " + std::to_string(ids.data()[i]) + " is outside the vocabulary of " +
                             std::to_string(w.rows()));
    constexpr int per_task = 16;
    on_turn(*on, [&] {
        (*on).parallel_for((n + per_task - 1) / per_task, [&](int task, int) {
            for (int i = task * per_task; i < std::min(n, (task + 1) * per_task); ++i)
                w.read_row(ids.data()[i], y + int64_t(i) * w.cols());
        });
    });
    return out;
}

// f(t) for rows t of n, in threads where there are many; few need no turn, as they use nothing of the backend's.
template <class F>
void for_rows(PyBackend& on, int n, F f) {
    constexpr int per_task = 16;
    auto rows = [&](int task) {
        for (int t = task * per_task; t < std::min(n, (task + 1) * per_task); ++t) f(t);
    };
    if (n > per_task)
        return on_turn(*on, [&] { (*on).parallel_for(ceil_div(n, per_task), [&](int task, int) { rows(task); }); });
    nb::gil_scoped_release nogil;
    rows(0);
}

nb::object norm(PyBackend& on, In2 x, nb::object norm, std::optional<In2> residual) {
    Parts parts;
    const int dim = int(x.shape(1));
    const std::optional<Norm> part = parts.norm(norm, dim, "norm");
    if (!part) throw nb::type_error("norm is None");
    const float* plus = optional_rows(residual, x.shape(0), dim, "residual");
    float* y;
    nb::object out = new_array(y, {x.shape(0), x.shape(1)});
    for_rows(on, int(x.shape(0)), [&](int t) {
        const int64_t at = int64_t(t) * dim;
        apply_norm(*on, *part, x.data() + at, 1, dim, y + at);
        if (plus) (*on).linear.scale(y + at, 1.0f, plus + at, dim);
    });
    return out;
}

nb::object activate(PyBackend& on, nb::object activation, In2 g, std::optional<In2> u) {
    Parts parts;
    const Activation act = parts.activation(activation);
    const int cols = int(g.shape(1));
    const float* times = optional_rows(u, g.shape(0), cols, "u");
    float* y;
    nb::object out = new_array(y, {g.shape(0), g.shape(1)});
    for_rows(on, int(g.shape(0)), [&](int t) {
        const int64_t at = int64_t(t) * cols;
        std::copy_n(g.data() + at, cols, y + at);
        (*on).linear.activate(&act, y + at, times ? times + at : nullptr, cols);
    });
    return out;
}

nb::object linear(PyBackend& on, In2 x, const Weight& w, std::optional<In1> bias, std::optional<In2> residual) {
    need_cols(x, w.cols(), "x");
    const int n = int(x.shape(0));
    if (bias) need(bias->shape(0) == size_t(w.rows()), "bias", (long long)bias->shape(0), w.rows());
    const float* plus = optional_rows(residual, x.shape(0), w.rows(), "residual");
    float* y;
    nb::object out = new_array(y, {size_t(n), size_t(w.rows())});
    on_turn(*on, [&] {
        const Activations a =
            prepare(*on, x.data(), n, w.cols(), nullptr, nullptr, !w.float_activations(), (*on).activations);
        multiply(*on, a, {{&w, {y, w.rows(), 0, bias ? bias->data() : nullptr, plus, w.rows()}}});
    });
    return out;
}

// For tests: the integer dot products of each block, (n, blocks, 2, rows rounded up to 16) int32.
nb::object debug_idots(PyBackend& on, In2 x, const Weight& w) {
    need_cols(x, w.cols(), "x");
    need(!w.is_float(), "float weight", 0, 1);
    const int n = int(x.shape(0)), blocks = w.cols() / block_cols;
    int32_t* y;
    nb::object out = new_array(y, {size_t(w.groups()), size_t(n), size_t(blocks), 2, size_t(group_rows)});
    on_turn(*on, [&] {
        const Activations a = prepare(*on, x.data(), n, w.cols(), nullptr, nullptr, true, (*on).activations);
        for (int g = 0; g < w.groups(); ++g)
            (*on).linear.idots[w.packed().format](&w.packed(), &a.codes, g,
                                                  y + int64_t(g) * n * blocks * 2 * group_rows);
    });
    return out;
}

// For tests: the activations as the kernels see them after rounding, dequantized, (n, cols).
nb::object debug_quantize(PyBackend& on, In2 x) {
    need(x.shape(1) % block_cols == 0, "x", (long long)x.shape(1), block_cols);
    const int n = int(x.shape(0)), cols = int(x.shape(1));
    float* y;
    nb::object out = new_array(y, {size_t(n), size_t(cols)});
    on_turn(*on, [&] {
        const QuantX q = prepare(*on, x.data(), n, cols, nullptr, nullptr, true, (*on).activations).codes;
        for (int t = 0; t < n; ++t)
            for (int k = 0; k < cols; ++k) {
                const size_t block = size_t(t / q.width) * size_t(q.blocks) + size_t(k / 32);
                const size_t cell = block * size_t(q.width) + size_t(t % q.width);
                y[int64_t(t) * cols + k] = q.d[cell] * float(q.q[32 * cell + size_t(k % 32)]);
            }
    });
    return out;
}

nb::list weight_types() {
    nb::list out;
    for (int f = 0; f < n_formats; ++f) {
        const FormatInfo& info = format_info(Format(f));
        out.append(nb::make_tuple(info.name, info.ggml_type));
    }
    return out;
}

}  // namespace

void bind_linear(nb::module_& m, nb::class_<PyBackend>& backend) {
    using namespace nb::literals;
    nb::class_<Weight>(m, "Weight", "A weight matrix (rows, cols) in the kernels' own layout.")
        .def_prop_ro("rows", &Weight::rows)
        .def_prop_ro("cols", &Weight::cols)
        .def_prop_ro("ggml_type", &Weight::ggml_type)
        .def_prop_ro("nbytes", &Weight::nbytes);
    backend
        .def("pack", &pack, "raw"_a.noconvert(), "ggml_type"_a, "cols"_a, "exact"_a = false, "dense"_a = false,
             "raw (rows, row_bytes) uint8 as in the file; packed in threads, `raw` is not kept.")
        .def("embed", &embed, "w"_a, "ids"_a.noconvert())
        .def("activate", &activate, "activation"_a, "g"_a.noconvert(), "u"_a.noconvert().none())
        .def("norm", &norm, "x"_a.noconvert(), "norm"_a.none(), "residual"_a.noconvert() = nb::none())
        .def("linear", &linear, "x"_a.noconvert(), "w"_a, "bias"_a.noconvert() = nb::none(),
             "residual"_a.noconvert() = nb::none())
        .def("debug_idots", &debug_idots, "x"_a.noconvert(), "w"_a)
        .def("debug_quantize", &debug_quantize, "x"_a.noconvert());
    m.def("weight_types", &weight_types, "(name, GGML type number) of every packed format.");
    m.def("packed_bytes", &Weight::packed_bytes, "ggml_type"_a, "rows"_a, "cols"_a, "Bytes of a packed weight.");
}
}  // namespace mixkv
