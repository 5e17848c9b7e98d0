#include "parts_bind.h"

#include <nanobind/stl/string.h>

#include <cstring>

namespace mixkv {
namespace {

template <class T>
T attribute(nb::handle part, const char* name, const char* what) {
    T value{};
    if (!nb::try_cast(part.attr(name), value))
        throw nb::type_error((std::string(what) + "." + name + " has a wrong type").c_str());
    return value;
}

}  // namespace

const float* optional_rows(const std::optional<In2>& x, size_t n, int cols, const char* what) {
    if (!x) return nullptr;
    need_cols(*x, cols, what);
    need(x->shape(0) == n, what, (long long)x->shape(0), (long long)n);
    return x->data();
}

const Weight* Parts::weight(nb::handle w, const char* what) {
    const Weight* pointer = nullptr;
    if (!nb::try_cast(w, pointer) || !pointer)
        throw nb::type_error((std::string(what) + " is not a weight that a native backend has packed").c_str());
    keep(w);
    return pointer;
}

AnyIn Parts::array(nb::handle v, const std::string& what) {
    AnyIn a;
    if (!nb::try_cast(v, a, false)) throw nb::type_error((what + " is not a C-contiguous float32 array").c_str());
    keep(v);
    return a;
}

const float* Parts::vector(nb::handle v, int size, const std::string& what) {
    if (v.is_none()) return nullptr;
    const AnyIn a = array(v, what);
    if (a.ndim() != 1) throw InputError(what + " has " + std::to_string(a.ndim()) + " dimensions, not 1");
    need(a.shape(0) == size_t(size), what, (long long)a.shape(0), size);
    return a.data();
}

std::optional<Norm> Parts::norm(nb::handle part, int dim, const char* what) {
    if (part.is_none()) return std::nullopt;
    const std::string name = what;
    Norm norm;
    norm.gain = vector(part.attr("gain"), dim, name + ".gain");
    norm.bias = vector(part.attr("bias"), dim, name + ".bias");
    norm.eps = float(attribute<double>(part, "eps", what));
    norm.centred = attribute<bool>(part, "centred", what);
    return norm;
}

std::optional<HeadNorm> Parts::head_norm(nb::handle part, int n_heads, int head_dim, bool whole, const char* what) {
    if (part.is_none()) return std::nullopt;
    HeadNorm n;
    n.norm.eps = float(attribute<double>(part, "eps", what));
    n.norm.centred = attribute<bool>(part, "centred", what);
    n.heads = n_heads, n.dim = head_dim;
    auto read = [&](const char* name, int& step) -> const float* {
        const nb::object v = part.attr(name);
        if (v.is_none()) return nullptr;
        const std::string full = std::string(what) + "." + name;
        const AnyIn a = array(v, full);
        if (a.ndim() == 2) {
            need(a.shape(0) == size_t(n_heads), full, (long long)a.shape(0), n_heads);
            need(a.shape(1) == size_t(n.dim), full, (long long)a.shape(1), n.dim);
            step = n.dim;
        } else if (whole && a.ndim() == 1 && n.heads == n_heads && a.shape(0) != size_t(head_dim) &&
                   std::strcmp(name, "gain") == 0) {
            need(a.shape(0) == size_t(n_heads) * size_t(head_dim), full, (long long)a.shape(0), n_heads * head_dim);
            n.heads = 1, n.dim = n_heads * head_dim;
        } else {
            if (a.ndim() != 1) throw InputError(full + " has " + std::to_string(a.ndim()) + " dimensions");
            need(a.shape(0) == size_t(n.dim), full, (long long)a.shape(0), n.dim);
        }
        return a.data();
    };
    n.norm.gain = read("gain", n.gain_step);
    n.norm.bias = read("bias", n.bias_step);
    return n;
}

Activation Parts::activation(nb::handle part) {
    static constexpr struct {
        const char* name;
        size_t numbers;
    } kinds[n_activations] = {{"silu", 0}, {"gelu", 0}, {"relu2", 0}, {"swiglu_oai", 2}, {"xielu", 4}};
    const auto kind = attribute<std::string>(part, "kind", "activation");
    const auto numbers = nb::cast<nb::sequence>(part.attr("numbers"));
    Activation a;
    for (int i = 0; i < n_activations; ++i) {
        if (kind != kinds[i].name) continue;
        a.kind = ActivationKind(i);
        need(nb::len(numbers) == kinds[i].numbers, "activation.numbers of " + kind, (long long)nb::len(numbers),
             (long long)kinds[i].numbers);
        for (size_t j = 0; j < kinds[i].numbers; ++j) a.numbers[j] = float(nb::cast<double>(numbers[j]));
        return a;
    }
    throw InputError("activation '" + kind + "' is none of silu, gelu, relu2, swiglu_oai and xielu");
}

Rotation Parts::rotation(nb::handle part, int head_dim) {
    Rotation r;
    if (part.is_none()) return r;
    const AnyIn freq = array(part.attr("inv_freq"), "rotation.inv_freq");
    if (freq.ndim() != 1) throw InputError("rotation.inv_freq has " + std::to_string(freq.ndim()) + " dimensions, not 1");
    need(2 * freq.shape(0) <= size_t(head_dim), "rotation.inv_freq", (long long)freq.shape(0), head_dim / 2);
    r.inv_freq.assign(freq.data(), freq.data() + freq.shape(0));
    r.interleaved = attribute<bool>(part, "interleaved", "rotation");
    r.scale = attribute<double>(part, "scale", "rotation");
    return r;
}

std::optional<Temperature> Parts::temperature(nb::handle part) {
    if (part.is_none()) return std::nullopt;
    const Temperature t{attribute<double>(part, "slope", "temperature"), attribute<int64_t>(part, "length", "temperature"),
                        attribute<int64_t>(part, "offset", "temperature")};
    if (t.length < 1) throw InputError("temperature.length is " + std::to_string(t.length) + ", and must be at least 1");
    return t;
}

}  // namespace mixkv
