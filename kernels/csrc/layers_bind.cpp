// Python's side of a layer's fused pieces. Each keeps its backend, and the Python objects whose memory it points to.
#include "parts_bind.h"

#include <nanobind/stl/optional.h>

#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace mixkv {
namespace {

nb::object optional_array(float*& data, bool wanted, std::initializer_list<size_t> shape) {
    data = nullptr;
    return wanted ? new_array(data, shape) : nb::none();
}

struct PyQKV {
    std::shared_ptr<Backend> on;
    Parts parts;
    QKV qkv;
    nb::object call(In2 x, Array<const int64_t, -1> positions) {
        need_cols(x, qkv.q->cols(), "x");
        if (positions.shape(0) != x.shape(0))
            throw InputError("NormQKV: " + std::to_string(positions.shape(0)) + " positions for " +
                             std::to_string(x.shape(0)) + " rows");
        const size_t n = x.shape(0), kv = size_t(qkv.n_kv_heads);
        const bool has_kv = qkv.k;
        float *q, *k, *v, *gate;
        nb::object qo = new_array(q, {n, size_t(qkv.n_heads), size_t(qkv.head_dim)});
        nb::object ko = optional_array(k, has_kv, {n, kv, size_t(qkv.head_dim)});
        nb::object vo = optional_array(v, has_kv, {n, kv, has_kv ? size_t(qkv.value_cols()) / kv : 0});
        nb::object go = optional_array(gate, qkv.gate, {n, qkv.gate ? size_t(qkv.gate->rows()) : 0});
        on_turn(*on, [&] { qkv.run(*on, x.data(), int(n), positions.data(), q, k, v, gate); });
        return nb::make_tuple(qo, ko, vo, go);
    }
};

PyQKV make_qkv(PyBackend& on, nb::handle norm, nb::handle wq, nb::handle wk, nb::handle wv, nb::handle gate, nb::handle bq,
               nb::handle bk, nb::handle bv, nb::handle q_norm, nb::handle k_norm, nb::handle v_norm, bool norms_last,
               nb::handle rotation, nb::handle temperature, int n_heads, int n_kv_heads, int head_dim) {
    need(n_heads > 0 && n_kv_heads > 0 && head_dim > 0, "head count", n_heads, 1);
    PyQKV made{on.shared, {}, {}};
    Parts& parts = made.parts;
    QKV& f = made.qkv;
    f.n_heads = n_heads, f.n_kv_heads = n_kv_heads, f.head_dim = head_dim, f.norms_last = norms_last;
    f.q = parts.weight(wq, "wq");
    f.k = parts.optional_weight(wk, "wk");
    f.v = f.k ? parts.optional_weight(wv, "wv") : nullptr;
    f.gate = parts.optional_weight(gate, "gate");
    const int dim = f.q->cols();
    need(f.q->rows() == n_heads * head_dim, "wq", f.q->rows(), n_heads * head_dim);
    f.norm = parts.norm(norm, dim, "norm");
    f.bq = parts.vector(bq, f.q->rows(), "bq");
    f.q_norm = parts.head_norm(q_norm, n_heads, head_dim, true, "q_norm");
    if (f.k) {
        need(f.k->rows() == n_kv_heads * head_dim, "wk", f.k->rows(), n_kv_heads * head_dim);
        need(f.k->cols() == dim, "wk", f.k->cols(), dim);
        f.bk = parts.vector(bk, f.k->rows(), "bk");
        f.k_norm = parts.head_norm(k_norm, n_kv_heads, head_dim, true, "k_norm");
        need(f.value_cols() % n_kv_heads == 0, "wv", f.value_cols(), n_kv_heads * head_dim);
        f.v_norm = parts.head_norm(v_norm, n_kv_heads, f.value_cols() / n_kv_heads, false, "v_norm");
    }
    if (f.v) {
        need(f.v->cols() == dim, "wv", f.v->cols(), dim);
        f.bv = parts.vector(bv, f.v->rows(), "bv");
    }
    if (f.gate) need(f.gate->cols() == dim, "gate", f.gate->cols(), dim);
    f.rotation = parts.rotation(rotation, head_dim);
    f.temperature = parts.temperature(temperature);
    return made;
}

struct PyNormLinear {
    std::shared_ptr<Backend> on;
    Parts parts;
    std::optional<Norm> norm;
    std::vector<const Weight*> weights;
    std::vector<const float*> biases;
    nb::object call(In2 x) {
        need_cols(x, weights[0]->cols(), "x");
        const int n = int(x.shape(0));
        std::vector<Product> products;
        nb::list out;
        bool codes = false;
        for (size_t i = 0; i < weights.size(); ++i) {
            const Weight& w = *weights[i];
            float* y;
            out.append(new_array(y, {size_t(n), size_t(w.rows())}));
            products.push_back({&w, {y, w.rows(), 0, biases[i], nullptr, 0}});
            codes = codes || !w.float_activations();
        }
        on_turn(*on, [&] {
            multiply(*on, prepare(*on, x.data(), n, int(x.shape(1)), pointer(norm), nullptr, codes, on->activations),
                     products);
        });
        return nb::tuple(out);
    }
};

PyNormLinear make_norm_linear(PyBackend& on, nb::handle norm, nb::sequence weights, nb::sequence biases) {
    PyNormLinear made{on.shared, {}, {}, {}, {}};
    const size_t n = nb::len(weights), n_biases = nb::len(biases);
    if (n == 0) throw InputError("NormLinear: there are no weights");
    if (n_biases != 0) need(n_biases == n, "biases", (long long)n_biases, (long long)n);
    for (size_t i = 0; i < n; ++i) {
        const Weight* w = made.parts.weight(weights[i], "a weight of NormLinear");
        made.weights.push_back(w);
        need(w->cols() == made.weights[0]->cols(), "a weight of NormLinear", w->cols(), made.weights[0]->cols());
        made.biases.push_back(n_biases ? made.parts.vector(biases[i], w->rows(), "bias") : nullptr);
    }
    made.norm = made.parts.norm(norm, made.weights[0]->cols(), "norm");
    return made;
}

struct PyProject {
    std::shared_ptr<Backend> on;
    Parts parts;
    const Weight* w;
    const float* bias;
    Ending end;
    nb::object call(In2 h, std::optional<In2> residual, std::optional<In2> gate) {
        need_cols(h, w->cols(), "h");
        const int n = int(h.shape(0));
        const float* plus = optional_rows(residual, h.shape(0), w->rows(), "residual");
        const float* by = optional_rows(gate, h.shape(0), w->cols(), "gate");
        float* y;
        nb::object out = new_array(y, {size_t(n), size_t(w->rows())});
        on_turn(*on, [&] {
            const bool codes = !w->float_activations();
            multiply_and_end(*on, prepare(*on, h.data(), n, w->cols(), nullptr, by, codes, on->activations), *w, bias,
                             nullptr, end, plus, y);
        });
        return out;
    }
};

PyProject make_project(PyBackend& on, nb::handle w, nb::handle bias, nb::handle out_norm, float scale) {
    PyProject made{on.shared, {}, nullptr, nullptr, {}};
    made.w = made.parts.weight(w, "w");
    made.bias = made.parts.vector(bias, made.w->rows(), "bias");
    made.end = {made.parts.norm(out_norm, made.w->rows(), "out_norm"), scale};
    return made;
}

struct PyFFN {
    std::shared_ptr<Backend> on;
    Parts parts;
    FFN ffn;
    nb::object call(In2 x, std::optional<In2> residual) {
        need_cols(x, ffn.up->cols(), "x");
        const float* plus = optional_rows(residual, x.shape(0), ffn.down->rows(), "residual");
        float* y;
        nb::object out = new_array(y, {x.shape(0), x.shape(1)});
        on_turn(*on, [&] { ffn.run(*on, x.data(), int(x.shape(0)), plus, y); });
        return out;
    }
};

PyFFN make_ffn(PyBackend& on, nb::handle norm, nb::handle gate, nb::handle up, nb::handle down, nb::handle gate_bias,
               nb::handle up_bias, nb::handle down_bias, nb::handle activation, nb::handle token_gate, nb::handle out_norm,
               float scale) {
    PyFFN made{on.shared, {}, {}};
    Parts& parts = made.parts;
    FFN& f = made.ffn;
    f.gate = parts.optional_weight(gate, "gate");
    f.up = parts.weight(up, "up");
    f.down = parts.weight(down, "down");
    const int dim = f.up->cols(), hidden = f.up->rows();
    if (f.gate) {
        need(f.gate->rows() == hidden, "gate", f.gate->rows(), hidden);
        need(f.gate->cols() == dim, "gate", f.gate->cols(), dim);
        f.gate_bias = parts.vector(gate_bias, hidden, "gate_bias");
    }
    need(f.down->cols() == hidden, "down", f.down->cols(), hidden);
    need(f.down->rows() == dim, "down", f.down->rows(), dim);
    f.up_bias = parts.vector(up_bias, hidden, "up_bias");
    f.down_bias = parts.vector(down_bias, dim, "down_bias");
    f.token_gate = parts.vector(token_gate, dim, "token_gate");
    f.norm = parts.norm(norm, dim, "norm");
    if (!activation.is_none()) f.activation = parts.activation(activation);
    f.end = {parts.norm(out_norm, dim, "out_norm"), scale};
    return made;
}

struct PyHead {
    std::shared_ptr<Backend> on;
    Parts parts;
    const Weight* w;
    const float* bias;
    std::optional<Norm> norm;
    float scale, softcap;
    nb::object call(In2 x) {
        need_cols(x, w->cols(), "x");
        const int n = int(x.shape(0));
        float* y;
        nb::object out = new_array(y, {size_t(n), size_t(w->rows())});
        on_turn(*on, [&] {
            const bool codes = !w->float_activations();
            multiply(*on, prepare(*on, x.data(), n, w->cols(), pointer(norm), nullptr, codes, on->activations),
                     {{w, {y, w->rows(), 0, bias, nullptr, 0}, {nullptr, scale, softcap, nullptr}}});
        });
        return out;
    }
};

PyHead make_head(PyBackend& on, nb::handle norm, nb::handle w, nb::handle bias, float scale, float softcap) {
    PyHead made{on.shared, {}, nullptr, nullptr, {}, scale, softcap};
    made.w = made.parts.weight(w, "w");
    made.bias = made.parts.vector(bias, made.w->rows(), "bias");
    made.norm = made.parts.norm(norm, made.w->cols(), "norm");
    return made;
}

}  // namespace

void bind_layers(nb::module_& m, nb::class_<PyBackend>& backend) {
    using namespace nb::literals;
    nb::class_<PyQKV>(m, "NormQKV").def("__call__", &PyQKV::call, "x"_a.noconvert(), "positions"_a.noconvert());
    nb::class_<PyNormLinear>(m, "NormLinear").def("__call__", &PyNormLinear::call, "x"_a.noconvert());
    nb::class_<PyProject>(m, "Project").def("__call__", &PyProject::call, "h"_a.noconvert(),
                                            "residual"_a.noconvert().none(), "gate"_a.noconvert() = nb::none());
    nb::class_<PyFFN>(m, "NormFFN").def("__call__", &PyFFN::call, "x"_a.noconvert(), "residual"_a.noconvert().none());
    nb::class_<PyHead>(m, "Head").def("__call__", &PyHead::call, "x"_a.noconvert());
    const auto none = nb::none();
    backend
        .def("NormQKV", &make_qkv, nb::kw_only(), "norm"_a.none(), "wq"_a, "wk"_a.none(), "wv"_a.none(), "gate"_a = none,
             "bq"_a = none, "bk"_a = none, "bv"_a = none, "q_norm"_a = none, "k_norm"_a = none, "v_norm"_a = none,
             "norms_last"_a = false, "rotation"_a = none, "temperature"_a = none, "n_heads"_a, "n_kv_heads"_a, "head_dim"_a)
        .def("NormLinear", &make_norm_linear, nb::kw_only(), "norm"_a.none(), "weights"_a, "biases"_a = nb::make_tuple())
        .def("Project", &make_project, nb::kw_only(), "w"_a, "bias"_a = none, "out_norm"_a = none, "scale"_a = 1.0f)
        .def("NormFFN", &make_ffn, nb::kw_only(), "norm"_a.none(), "gate"_a.none(), "up"_a, "down"_a, "gate_bias"_a = none,
             "up_bias"_a = none, "down_bias"_a = none, "activation"_a = none, "token_gate"_a = none, "out_norm"_a = none,
             "scale"_a = 1.0f)
        .def("Head", &make_head, nb::kw_only(), "norm"_a.none(), "w"_a, "bias"_a = none, "scale"_a = 1.0f,
             "softcap"_a = 0.0f);
}

}  // namespace mixkv
