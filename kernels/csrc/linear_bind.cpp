// Python's side of the linear kernels: shapes are checked here, arrays are made here, the GIL is released here.
#include "bind.h"
#include "errors.h"
#include "formats.h"
#include "linear.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/unique_ptr.h>

#include <cstring>
#include <memory>
#include <optional>
#include <string>

namespace mixkv {
namespace {

using Raw = Array<const uint8_t, -1, -1>;
using Ids = Array<const int32_t, -1>;

// MIXKV_ACTIVATIONS=f32 makes every weight exact: float32 activations and dequantized weights, slow, for comparisons.
bool exact_by_default() {
    const char* v = std::getenv("MIXKV_ACTIVATIONS");
    if (!v || !*v || std::strcmp(v, "int8") == 0) return false;
    if (std::strcmp(v, "f32") == 0) return true;
    throw ConfigError("MIXKV_ACTIVATIONS=" + std::string(v) + " is neither int8 nor f32");
}

void need(bool ok, const char* what, long long got, long long want) {
    if (!ok)
        throw InputError(std::string(what) + " has size " + std::to_string(got) + " where " + std::to_string(want) +
                         " is needed");
}
void need_cols(const In2& x, int cols, const char* what) {
    need(int(x.shape(1)) == cols, what, (long long)x.shape(1), cols);
}
const float* vector_of(const std::optional<In1>& v, int size, const char* what) {
    if (!v) return nullptr;
    need(int(v->shape(0)) == size, what, (long long)v->shape(0), size);
    return v->data();
}

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

nb::object rms_norm(PyBackend& on, In2 x, In1 gain, float eps) {
    need_cols(x, int(gain.shape(0)), "x");
    float* y;
    nb::object out = new_array(y, {x.shape(0), x.shape(1)});
    nb::gil_scoped_release nogil;  // one row after the other, without memory of the backend's: no turn is needed
    (*on).linear.rms_norm(x.data(), gain.data(), eps, int(x.shape(0)), int(x.shape(1)), y);
    return out;
}

nb::object product(Backend& on, In2 x, const Weight& w, const float* gain, float eps, const float* bias, const float* residual) {
    need_cols(x, w.cols(), "x");
    const int n = int(x.shape(0));
    float* y;
    nb::object out = new_array(y, {size_t(n), size_t(w.rows())});
    on_turn(on, [&] {
        const Activations a =
            prepare(on, x.data(), n, w.cols(), gain, eps, !w.float_activations(), on.activations);
        multiply(on, a, {{&w, {y, w.rows(), 0, bias, residual, w.rows()}}});
    });
    return out;
}

nb::object linear(PyBackend& on, In2 x, const Weight& w, std::optional<In1> bias, std::optional<In2> residual) {
    if (residual) {
        need_cols(*residual, w.rows(), "residual");
        need(residual->shape(0) == x.shape(0), "residual", (long long)residual->shape(0), (long long)x.shape(0));
    }
    return product(*on, x, w, nullptr, 0, vector_of(bias, w.rows(), "bias"), residual ? residual->data() : nullptr);
}

// The fused objects keep their backend, and the Python objects whose memory they point to.
struct PyHead {
    std::shared_ptr<Backend> on;
    nb::object w, norm;
    const Weight* weight;
    const float* gain;
    float eps;
    nb::object call(In2 x) { return product(*on, x, *weight, gain, eps, nullptr, nullptr); }
};

struct PyFFN {
    std::shared_ptr<Backend> on;
    nb::object keep;
    FFN ffn;
    nb::object call(In2 x) {
        need_cols(x, ffn.gate->cols(), "x");
        float* y;
        nb::object out = new_array(y, {x.shape(0), x.shape(1)});
        on_turn(*on, [&] { ffn.run(*on, x.data(), int(x.shape(0)), y); });
        return out;
    }
};

struct PyQKV {
    std::shared_ptr<Backend> on;
    nb::object keep;
    QKV qkv;
    nb::object call(In2 x, Array<const int64_t, -1> positions) {
        need_cols(x, qkv.q->cols(), "x");
        if (positions.shape(0) != x.shape(0))
            throw InputError("NormQKV: " + std::to_string(positions.shape(0)) + " positions for " +
                             std::to_string(x.shape(0)) + " rows");
        const size_t n = x.shape(0), heads = size_t(qkv.n_heads), kv = size_t(qkv.n_kv_heads);
        float *q, *k, *v;
        nb::object qo = new_array(q, {n, heads, size_t(qkv.head_dim)});
        nb::object ko = new_array(k, {n, kv, size_t(qkv.head_dim)});
        nb::object vo = new_array(v, {n, kv, size_t(qkv.v->rows()) / kv});
        on_turn(*on, [&] { qkv.run(*on, x.data(), int(n), positions.data(), q, k, v); });
        return nb::make_tuple(qo, ko, vo);
    }
};

const float* optional_vector(nb::handle v, int size, const char* what) {
    return v.is_none() ? nullptr : vector_of(nb::cast<In1>(v, false), size, what);
}

PyHead make_head(PyBackend& on, nb::object norm, float eps, nb::object w) {
    const Weight& weight = nb::cast<const Weight&>(w);
    const float* gain = vector_of(nb::cast<In1>(norm, false), weight.cols(), "norm");
    return {on.shared, w, norm, &weight, gain, eps};
}

PyFFN make_ffn(PyBackend& on, nb::object norm, float eps, nb::object gate, nb::object up, nb::object down,
               nb::object gate_bias, nb::object up_bias, nb::object down_bias) {
    FFN f;
    f.gate = &nb::cast<const Weight&>(gate);
    f.up = &nb::cast<const Weight&>(up);
    f.down = &nb::cast<const Weight&>(down);
    f.eps = eps;
    f.norm = vector_of(nb::cast<In1>(norm, false), f.gate->cols(), "norm");
    need(f.up->rows() == f.gate->rows(), "up", f.up->rows(), f.gate->rows());
    need(f.up->cols() == f.gate->cols(), "up", f.up->cols(), f.gate->cols());
    need(f.down->cols() == f.gate->rows(), "down", f.down->cols(), f.gate->rows());
    need(f.down->rows() == f.gate->cols(), "down", f.down->rows(), f.gate->cols());
    f.gate_bias = optional_vector(gate_bias, f.gate->rows(), "gate_bias");
    f.up_bias = optional_vector(up_bias, f.up->rows(), "up_bias");
    f.down_bias = optional_vector(down_bias, f.down->rows(), "down_bias");
    return {on.shared, nb::make_tuple(norm, gate, up, down, gate_bias, up_bias, down_bias), f};
}

PyQKV make_qkv(PyBackend& on, nb::object norm, float eps, nb::object wq, nb::object wk, nb::object wv, nb::object bq,
               nb::object bk, nb::object bv, nb::object q_norm, nb::object k_norm, nb::object inv_freq, bool interleaved,
               double rope_scale, int n_heads, int n_kv_heads, int head_dim) {
    QKV f;
    f.q = &nb::cast<const Weight&>(wq);
    f.k = &nb::cast<const Weight&>(wk);
    f.v = &nb::cast<const Weight&>(wv);
    f.eps = eps;
    f.interleaved = interleaved;
    f.rope_scale = rope_scale;
    f.n_heads = n_heads;
    f.n_kv_heads = n_kv_heads;
    f.head_dim = head_dim;
    need(n_heads > 0 && n_kv_heads > 0 && head_dim > 0, "head count", n_heads, 1);
    need(f.q->rows() == n_heads * head_dim, "wq", f.q->rows(), n_heads * head_dim);
    need(f.k->rows() == n_kv_heads * head_dim, "wk", f.k->rows(), n_kv_heads * head_dim);
    need(f.v->rows() % n_kv_heads == 0, "wv", f.v->rows(), n_kv_heads * head_dim);
    need(f.k->cols() == f.q->cols(), "wk", f.k->cols(), f.q->cols());
    need(f.v->cols() == f.q->cols(), "wv", f.v->cols(), f.q->cols());
    f.norm = vector_of(nb::cast<In1>(norm, false), f.q->cols(), "norm");
    f.bq = optional_vector(bq, f.q->rows(), "bq");
    f.bk = optional_vector(bk, f.k->rows(), "bk");
    f.bv = optional_vector(bv, f.v->rows(), "bv");
    f.q_norm = optional_vector(q_norm, head_dim, "q_norm");
    f.k_norm = optional_vector(k_norm, head_dim, "k_norm");
    const In1 freq = nb::cast<In1>(inv_freq, false);
    need(int(freq.shape(0)) * 2 <= head_dim, "inv_freq", (long long)freq.shape(0), head_dim / 2);
    f.inv_freq.assign(freq.data(), freq.data() + freq.shape(0));
    return {on.shared, nb::make_tuple(norm, wq, wk, wv, bq, bk, bv, q_norm, k_norm), f};
}

// For tests: the integer dot products of each block, (n, blocks, 2, rows rounded up to 16) int32.
nb::object debug_idots(PyBackend& on, In2 x, const Weight& w) {
    need_cols(x, w.cols(), "x");
    need(!w.is_float(), "float weight", 0, 1);
    const int n = int(x.shape(0)), blocks = w.cols() / block_cols;
    int32_t* y;
    nb::object out = new_array(y, {size_t(w.groups()), size_t(n), size_t(blocks), 2, size_t(group_rows)});
    on_turn(*on, [&] {
        const Activations a = prepare(*on, x.data(), n, w.cols(), nullptr, 0, true, (*on).activations);
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
        const QuantX q = prepare(*on, x.data(), n, cols, nullptr, 0, true, (*on).activations).codes;
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
    nb::class_<PyQKV>(m, "NormQKV").def("__call__", &PyQKV::call, "x"_a.noconvert(), "positions"_a.noconvert());
    nb::class_<PyFFN>(m, "NormFFN").def("__call__", &PyFFN::call, "x"_a.noconvert());
    nb::class_<PyHead>(m, "Head").def("__call__", &PyHead::call, "x"_a.noconvert());
    backend
        .def("pack", &pack, "raw"_a.noconvert(), "ggml_type"_a, "cols"_a, "exact"_a = false, "dense"_a = false,
             "raw (rows, row_bytes) uint8 as in the file; packed in threads, `raw` is not kept.")
        .def("embed", &embed, "w"_a, "ids"_a.noconvert())
        .def("rms_norm", &rms_norm, "x"_a.noconvert(), "gain"_a.noconvert(), "eps"_a)
        .def("linear", &linear, "x"_a.noconvert(), "w"_a, "bias"_a = nb::none(), "residual"_a = nb::none())
        .def("NormQKV", &make_qkv, nb::kw_only(), "norm"_a, "eps"_a, "wq"_a, "wk"_a, "wv"_a, "bq"_a = nb::none(),
             "bk"_a = nb::none(), "bv"_a = nb::none(), "q_norm"_a = nb::none(), "k_norm"_a = nb::none(), "inv_freq"_a,
             "interleaved"_a, "rope_scale"_a = 1.0, "n_heads"_a, "n_kv_heads"_a, "head_dim"_a)
        .def("NormFFN", &make_ffn, nb::kw_only(), "norm"_a, "eps"_a, "gate"_a, "up"_a, "down"_a,
             "gate_bias"_a = nb::none(), "up_bias"_a = nb::none(), "down_bias"_a = nb::none())
        .def("Head", &make_head, nb::kw_only(), "norm"_a, "eps"_a, "w"_a)
        .def("debug_idots", &debug_idots, "x"_a.noconvert(), "w"_a)
        .def("debug_quantize", &debug_quantize, "x"_a.noconvert());
    m.def("weight_types", &weight_types, "(name, GGML type number) of every packed format.");
    m.def("packed_bytes", &Weight::packed_bytes, "ggml_type"_a, "rows"_a, "cols"_a, "Bytes of a packed weight.");
}
}  // namespace mixkv
