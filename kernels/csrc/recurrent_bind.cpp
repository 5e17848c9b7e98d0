// Python's side of the recurrent mixers. Each keeps its backend, and the Python objects whose memory it points to.
#include "parts_bind.h"
#include "recurrent.h"

#include <memory>
#include <string>
#include <vector>

namespace mixkv {
namespace {

using Out = nb::ndarray<float, nb::c_contig, nb::device::cpu>;

// The arrays of a state, each of as many numbers as `sizes` says.
template <class A>
std::vector<A> arrays_of(nb::tuple given, const std::vector<size_t>& sizes, const char* what) {
    need(given.size() == sizes.size(), what, (long long)given.size(), (long long)sizes.size());
    std::vector<A> found;
    for (size_t i = 0; i < sizes.size(); ++i) {
        found.push_back(nb::cast<A>(given[i], false));
        need(found[i].size() == sizes[i], std::string(what) + "[" + std::to_string(i) + "]", (long long)found[i].size(),
             (long long)sizes[i]);
    }
    return found;
}

struct State {
    std::vector<AnyIn> before;
    std::vector<Out> after;
    const float* from[2] = {nullptr, nullptr};
    float* to[2] = {nullptr, nullptr};
    State(nb::tuple b, nb::tuple a, const std::vector<size_t>& sizes)
        : before(arrays_of<AnyIn>(b, sizes, "before")), after(arrays_of<Out>(a, sizes, "after")) {
        for (size_t i = 0; i < sizes.size(); ++i) {
            from[i] = before[i].data();
            to[i] = after[i].data();
            if (from[i] == to[i] && sizes[i]) throw InputError("after[" + std::to_string(i) + "] is one of before");
        }
    }
};

std::vector<In2> inputs_of(nb::tuple given, const std::vector<int>& widths) {
    need(given.size() == widths.size(), "inputs", (long long)given.size(), (long long)widths.size());
    std::vector<In2> found;
    for (size_t i = 0; i < widths.size(); ++i) {
        found.push_back(nb::cast<In2>(given[i], false));
        need_cols(found[i], widths[i], "inputs");
        need(found[i].shape(0) == found[0].shape(0), "inputs", (long long)found[i].shape(0), (long long)found[0].shape(0));
    }
    return found;
}

size_t conv_size(const Taps& taps) { return size_t(taps.conv.kernel - 1) * size_t(taps.conv.channels); }

template <class Mixer>
struct Made {
    std::shared_ptr<Backend> on;
    Parts parts;
    Mixer mixer;
};

nb::object call_mamba2(Made<Mamba2>& m, nb::tuple inputs, nb::tuple before, nb::tuple after) {
    const Mamba2& x = m.mixer;
    const std::vector<In2> in = inputs_of(inputs, {x.width()});
    State state(before, after, {conv_size(x.taps), size_t(x.inner()) * size_t(x.d_state)});
    float* y;
    nb::object out = new_array(y, {in[0].shape(0), size_t(x.inner())});
    on_turn(*m.on, [&] { x.run(*m.on, in[0].data(), int(in[0].shape(0)), state.from, state.to, y); });
    return out;
}

nb::object call_delta_net(Made<DeltaNet>& m, nb::tuple inputs, nb::tuple before, nb::tuple after) {
    const DeltaNet& x = m.mixer;
    const int out_dim = x.n_heads * x.head_dim;
    const std::vector<In2> in = inputs_of(inputs, {x.taps.conv.channels, out_dim, x.n_heads, x.n_heads});
    State state(before, after, {conv_size(x.taps), size_t(out_dim) * size_t(x.head_dim)});
    float* y;
    nb::object out = new_array(y, {in[0].shape(0), size_t(out_dim)});
    on_turn(*m.on, [&] {
        x.run(*m.on, in[0].data(), in[1].data(), in[2].data(), in[3].data(), int(in[0].shape(0)), state.from, state.to, y);
    });
    return out;
}

nb::object call_short_conv(Made<ShortConv>& m, nb::tuple inputs, nb::tuple before, nb::tuple after) {
    const ShortConv& x = m.mixer;
    const int dim = x.taps.conv.channels;
    const std::vector<In2> in = inputs_of(inputs, {3 * dim});
    State state(before, after, {conv_size(x.taps)});
    float* y;
    nb::object out = new_array(y, {in[0].shape(0), size_t(dim)});
    on_turn(*m.on, [&] { x.run(*m.on, in[0].data(), int(in[0].shape(0)), state.from[0], state.to[0], y); });
    return out;
}

Taps taps_of(Parts& parts, nb::handle conv, nb::handle bias, int channels) {
    const In2 weight = nb::cast<In2>(conv, false);
    need(weight.shape(0) == size_t(channels), "conv", (long long)weight.shape(0), channels);
    need(weight.shape(1) >= 1 && weight.shape(1) <= 1024, "conv's kernel", (long long)weight.shape(1), 4);
    return Taps(weight.data(), parts.vector(bias, channels, "conv_bias"), channels, int(weight.shape(1)));
}

std::vector<float> numbers(Parts& parts, nb::handle v, int n, const char* what) {
    const float* from = parts.vector(v, n, what);
    if (!from) throw InputError(std::string(what) + " is missing");
    return std::vector<float>(from, from + n);
}

Made<Mamba2> make_mamba2(PyBackend& on, nb::handle conv, nb::handle conv_bias, nb::handle a, nb::handle d, nb::handle dt_bias,
                         nb::handle gain, float eps, int n_heads, int head_dim, int n_groups, int d_state) {
    need(n_heads > 0 && head_dim > 0 && n_groups > 0 && d_state > 0, "n_heads", n_heads, 1);
    need(n_heads % n_groups == 0, "n_heads", n_heads, n_groups);
    Made<Mamba2> made{on.shared, {}, {}};
    Mamba2& m = made.mixer;
    m.n_heads = n_heads, m.head_dim = head_dim, m.n_groups = n_groups, m.d_state = d_state;
    m.taps = taps_of(made.parts, conv, conv_bias, m.inner() + 2 * n_groups * d_state);
    m.a = numbers(made.parts, a, n_heads, "a");
    m.d = numbers(made.parts, d, n_heads, "d");
    m.dt_bias = numbers(made.parts, dt_bias, n_heads, "dt_bias");
    m.norm = Norm{};
    m.norm.gain = made.parts.vector(gain, m.inner(), "gain");
    m.norm.eps = eps;
    m.normed = m.norm.gain != nullptr;
    return made;
}

Made<DeltaNet> make_delta_net(PyBackend& on, nb::handle conv, nb::handle a, nb::handle dt_bias, nb::handle gain, float eps,
                              int n_heads, int n_k_heads, int head_dim, bool tiled) {
    need(n_heads > 0 && n_k_heads > 0 && head_dim > 0, "n_heads", n_heads, 1);
    need(n_heads % n_k_heads == 0, "n_heads", n_heads, n_k_heads);
    Made<DeltaNet> made{on.shared, {}, {}};
    DeltaNet& m = made.mixer;
    m.n_heads = n_heads, m.n_k_heads = n_k_heads, m.head_dim = head_dim, m.tiled = tiled, m.eps = eps;
    m.taps = taps_of(made.parts, conv, nb::none(), (2 * n_k_heads + n_heads) * head_dim);
    m.a = numbers(made.parts, a, n_heads, "a");
    m.dt_bias = numbers(made.parts, dt_bias, n_heads, "dt_bias");
    m.norm = Norm{};
    m.norm.gain = made.parts.vector(gain, head_dim, "gain");
    m.norm.eps = eps;
    return made;
}

Made<ShortConv> make_short_conv(PyBackend& on, nb::handle conv) {
    Made<ShortConv> made{on.shared, {}, {}};
    made.mixer.taps = taps_of(made.parts, conv, nb::none(), int(nb::cast<In2>(conv, false).shape(0)));
    return made;
}

}  // namespace

void bind_recurrent(nb::module_& m, nb::class_<PyBackend>& backend) {
    using namespace nb::literals;
    nb::class_<Made<Mamba2>>(m, "Mamba2").def("__call__", &call_mamba2, "inputs"_a, "before"_a, "after"_a);
    nb::class_<Made<DeltaNet>>(m, "DeltaNet").def("__call__", &call_delta_net, "inputs"_a, "before"_a, "after"_a);
    nb::class_<Made<ShortConv>>(m, "ShortConv").def("__call__", &call_short_conv, "inputs"_a, "before"_a, "after"_a);
    backend
        .def("Mamba2", &make_mamba2, nb::kw_only(), "conv"_a, "conv_bias"_a = nb::none(), "a"_a, "d"_a, "dt_bias"_a,
             "gain"_a = nb::none(), "eps"_a, "n_heads"_a, "head_dim"_a, "n_groups"_a, "d_state"_a)
        .def("DeltaNet", &make_delta_net, nb::kw_only(), "conv"_a, "a"_a, "dt_bias"_a, "gain"_a, "eps"_a, "n_heads"_a,
             "n_k_heads"_a, "head_dim"_a, "tiled"_a)
        .def("ShortConv", &make_short_conv, nb::kw_only(), "conv"_a);
}

}  // namespace mixkv
