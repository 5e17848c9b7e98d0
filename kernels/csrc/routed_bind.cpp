// Python's side of routed experts, and of what else has a matrix for each of some.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <memory>
#include <optional>
#include <string>

#include "head_linear.h"
#include "parts_bind.h"
#include "routed.h"

namespace mixkv {
namespace {

using Raw = nb::ndarray<const uint8_t, nb::ndim<3>, nb::device::cpu>;

std::unique_ptr<Experts> pack_experts(PyBackend& on, Raw raw, int ggml_type, int cols, bool exact, bool /*dense*/) {
    exact = exact || exact_by_default();
    const size_t n = raw.shape(0), rows = raw.shape(1), row_bytes = raw.shape(2);
    need(n > 0 && rows > 0, "experts", (long long)(n * rows), 1);
    if (raw.stride(2) != 1 || (rows > 1 && raw.stride(1) != int64_t(row_bytes)) || (n > 1 && raw.stride(0) < 0))
        throw InputError("the rows of an expert must follow each other in memory");
    std::unique_ptr<Experts> w;
    on_turn(*on, [&] {
        w = std::make_unique<Experts>(*on, raw.data(), size_t(raw.stride(0)), row_bytes, int(n), int(rows), cols,
                                      ggml_type, exact);
    });
    return w;
}

struct PyRoutedFFN {
    std::shared_ptr<Backend> on;
    Parts parts;
    nb::object keep;
    RoutedFFN ffn;
    nb::object call(In2 x, std::optional<In2> residual) {
        need_cols(x, ffn.up->cols(), "x");
        const float* plus = optional_rows(residual, x.shape(0), ffn.down->rows(), "residual");
        float* y;
        nb::object out = new_array(y, {x.shape(0), x.shape(1)});
        on_turn(*on, [&] { ffn.run(*on, x.data(), int(x.shape(0)), plus, y); });
        return out;
    }
};

const Experts* experts_of(nb::handle w, const char* what) {
    const Experts* pointer = nullptr;
    if (!nb::try_cast(w, pointer) || !pointer)
        throw nb::type_error((std::string(what) + " are not experts that a native backend has packed").c_str());
    return pointer;
}

// (n, size), or null for None.
const float* matrix(Parts& parts, nb::handle v, int n, int size, const std::string& what) {
    if (v.is_none()) return nullptr;
    const AnyIn a = parts.array(v, what);
    if (a.ndim() != 2) throw InputError(what + " has " + std::to_string(a.ndim()) + " dimensions, not 2");
    need(a.shape(0) == size_t(n), what, (long long)a.shape(0), n);
    need(a.shape(1) == size_t(size), what, (long long)a.shape(1), size);
    return a.data();
}

Routing routing_of(nb::handle v) {
    Routing r;
    r.n_experts = nb::cast<int>(v.attr("n_experts"));
    r.n_used = nb::cast<int>(v.attr("n_used"));
    r.n_groups = nb::cast<int>(v.attr("n_groups"));
    r.n_groups_used = nb::cast<int>(v.attr("n_groups_used"));
    r.normalize = nb::cast<bool>(v.attr("normalize"));
    r.on_input = nb::cast<bool>(v.attr("on_input"));
    r.scale = float(nb::cast<double>(v.attr("scale")));
    const std::string gating = nb::cast<std::string>(v.attr("gating"));
    if (gating == "softmax")
        r.gating = Gating::softmax;
    else if (gating == "sigmoid")
        r.gating = Gating::sigmoid;
    else if (gating == "softmax of chosen")
        r.gating = Gating::softmax_of_chosen;
    else
        throw InputError("routing: there is no gating '" + gating + "'");
    need(r.n_experts > 0, "routing.n_experts", r.n_experts, 1);
    need(r.n_groups > 0 && r.n_experts % r.n_groups == 0, "routing.n_groups", r.n_groups, 1);
    need(r.n_groups_used > 0 && r.n_groups_used <= r.n_groups, "routing.n_groups_used", r.n_groups_used, r.n_groups);
    const int to_choose_from = r.n_groups > 1 ? r.n_experts / r.n_groups * r.n_groups_used : r.n_experts;
    need(r.n_used > 0 && r.n_used <= to_choose_from, "routing.n_used", r.n_used, to_choose_from);
    return r;
}

PyRoutedFFN make_routed(PyBackend& on, nb::handle norm, nb::handle router, nb::handle routing, nb::handle gate,
                        nb::handle up, nb::handle down, nb::handle gate_bias, nb::handle up_bias, nb::handle down_bias,
                        nb::handle activation, nb::handle router_norm, nb::handle router_bias, nb::handle selection_bias,
                        nb::handle down_scale, nb::handle out_norm, float scale) {
    PyRoutedFFN made{on.shared, {}, nb::make_tuple(gate, up, down), {}};
    Parts& parts = made.parts;
    RoutedFFN& f = made.ffn;
    f.routing = routing_of(routing);
    const int n = f.routing.n_experts;
    f.router = parts.weight(router, "router");
    f.up = experts_of(up, "up");
    f.down = experts_of(down, "down");
    const int dim = f.up->cols(), width = f.up->rows();
    const auto of_shape = [n](const Experts& w, const std::string& what, int rows, int cols) {
        need(w.n() == n, what, w.n(), n);
        need(w.rows() == rows, what, w.rows(), rows);
        need(w.cols() == cols, what, w.cols(), cols);
    };
    if (!gate.is_none()) {
        f.gate = experts_of(gate, "gate");
        of_shape(*f.gate, "gate", width, dim);
        f.gate_bias = matrix(parts, gate_bias, n, width, "gate_bias");
    }
    of_shape(*f.up, "up", width, dim);
    of_shape(*f.down, "down", dim, width);
    need(f.router->rows() == n, "router", f.router->rows(), n);
    need(f.router->cols() == dim, "router", f.router->cols(), dim);
    f.up_bias = matrix(parts, up_bias, n, width, "up_bias");
    f.down_bias = matrix(parts, down_bias, n, dim, "down_bias");
    f.router_bias = parts.vector(router_bias, n, "router_bias");
    f.selection_bias = parts.vector(selection_bias, n, "selection_bias");
    f.down_scale = parts.vector(down_scale, n, "down_scale");
    f.norm = parts.norm(norm, dim, "norm");
    f.router_norm = parts.norm(router_norm, dim, "router_norm");
    if (!activation.is_none()) f.activation = parts.activation(activation);
    f.end = {parts.norm(out_norm, dim, "out_norm"), scale};
    return made;
}

struct PyHeadLinear {
    std::shared_ptr<Backend> on;
    nb::object keep;
    const Experts* w;
    nb::object call(In3 x) {
        need(x.shape(1) == size_t(w->n()), "x.shape[1]", (long long)x.shape(1), w->n());
        need(x.shape(2) == size_t(w->cols()), "x.shape[2]", (long long)x.shape(2), w->cols());
        float* y;
        nb::object out = new_array(y, {x.shape(0), x.shape(1), size_t(w->rows())});
        on_turn(*on, [&] { head_linear(*on, *w, x.data(), int(x.shape(0)), y); });
        return out;
    }
};

PyHeadLinear make_head_linear(PyBackend& on, nb::handle w) {
    return {on.shared, nb::borrow(w), experts_of(w, "w")};
}

// For tests: each token's experts and their weights from the router's products.
nb::object debug_route(PyBackend&, In2 p, nb::handle routing, nb::handle selection_bias) {
    const Routing r = routing_of(routing);
    need_cols(p, r.n_experts, "p");
    Parts parts;
    const float* bias = parts.vector(selection_bias, r.n_experts, "selection_bias");
    const size_t n = p.shape(0), n_used = size_t(r.n_used);
    int32_t* chosen;
    float* weights;
    nb::object c = new_array(chosen, {n, n_used}), w = new_array(weights, {n, n_used});
    std::vector<float> work(r.n_work());
    for (size_t t = 0; t < n; ++t)
        route(r, p.data() + t * size_t(r.n_experts), bias, chosen + t * n_used, weights + t * n_used, work.data());
    return nb::make_tuple(c, w);
}

}  // namespace

void bind_routed(nb::module_& m, nb::class_<PyBackend>& backend) {
    using namespace nb::literals;
    nb::class_<Experts>(m, "Experts", "Matrices (rows, cols) of n experts in the kernels' own layout.")
        .def_prop_ro("n", &Experts::n)
        .def_prop_ro("rows", &Experts::rows)
        .def_prop_ro("cols", &Experts::cols)
        .def_prop_ro("ggml_type", &Experts::ggml_type)
        .def_prop_ro("nbytes", &Experts::nbytes);
    nb::class_<PyRoutedFFN>(m, "RoutedFFN")
        .def("__call__", &PyRoutedFFN::call, "x"_a.noconvert(), "residual"_a.noconvert().none());
    nb::class_<PyHeadLinear>(m, "HeadLinear").def("__call__", &PyHeadLinear::call, "x"_a.noconvert());
    const auto none = nb::none();
    backend
        .def("HeadLinear", &make_head_linear, nb::kw_only(), "w"_a)
        .def("pack_experts", &pack_experts, "raw"_a.noconvert(), "ggml_type"_a, "cols"_a, "exact"_a = false,
             "dense"_a = false, "raw (n_experts, rows, row_bytes) uint8; experts may lie apart, their rows may not.")
        .def("RoutedFFN", &make_routed, nb::kw_only(), "norm"_a.none(), "router"_a, "routing"_a, "gate"_a.none(), "up"_a,
             "down"_a, "gate_bias"_a = none, "up_bias"_a = none, "down_bias"_a = none, "activation"_a = none,
             "router_norm"_a = none, "router_bias"_a = none, "selection_bias"_a = none, "down_scale"_a = none,
             "out_norm"_a = none, "scale"_a = 1.0f)
        .def("debug_route", &debug_route, "p"_a.noconvert(), "routing"_a, "selection_bias"_a.none());
}

}  // namespace mixkv
