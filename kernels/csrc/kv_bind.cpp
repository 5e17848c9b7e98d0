// KVStore and attend_segment for Python (docs/architecture.md has the contract). Shapes are checked here, because a
// wrong one would read past an array; policy is not. Python's lock is released before the store's own is taken.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "attn_ops.h"
#include "attn_run.h"
#include "bind.h"
#include "errors.h"
#include "kv_store.h"

namespace mixkv {
namespace {

using In1Int64 = Array<const int64_t, -1>;
using InBytes = Array<const uint8_t, -1, -1, -1>;
using InRows = nb::ndarray<nb::c_contig, nb::ndim<3>, nb::device::cpu, nb::ro>;

CacheType cache_type(const std::string& name) {
    const char* names[] = {"f32", "f16", "q8_0", "q4_0"};
    for (int i = 0; i < n_cache_types; ++i)
        if (name == names[i]) return CacheType(i);
    throw ConfigError("unknown cache type '" + name + "': use one of f32, f16, q8_0, q4_0");
}

void require(bool ok, const char* what, const std::string& why) {
    if (!ok) throw InputError(std::string("KVStore.") + what + ": " + why);
}

std::string shape_text(std::initializer_list<int64_t> shape) {
    std::string s = "(";
    for (int64_t n : shape) s += (s.size() > 1 ? ", " : "") + std::to_string(n);
    return s + ")";
}

void construct(KVStore* self, nb::sequence layers, int n_kv_heads, int head_dim_k, int head_dim_v, int64_t n_ctx,
               int64_t sink_tokens, int64_t hot_tiles) {
    std::vector<LayerFormat> formats;
    for (nb::handle l : layers) {
        auto type = [&](const char* name) { return cache_type(nb::cast<std::string>(l.attr(name))); };
        LayerFormat f{type("type_k"), type("type_v"), type("hot_k"), type("hot_v"), nb::cast<bool>(l.attr("rotate_k")),
                      nb::cast<bool>(l.attr("rotate_v"))};
        const auto scale = nb::cast<std::string>(l.attr("q4_scale"));
        if (scale != "plain" && scale != "unbiased")
            throw ConfigError("q4_scale '" + scale + "' must be one of plain, unbiased");
        f.q4_unbiased = scale == "unbiased";
        if (!is_float_type(f.hot_k) || !is_float_type(f.hot_v)) throw ConfigError("hot cache types are f16 or f32");
        formats.push_back(f);
    }
    new (self) KVStore(formats, n_kv_heads, head_dim_k, head_dim_v, n_ctx, sink_tokens, hot_tiles);
}

void check_layer(const KVStore& s, int layer, const char* what) {
    require(0 <= layer && layer < s.n_layers(), what,
            "layer " + std::to_string(layer) + " of " + std::to_string(s.n_layers()));
}

void check_span(const KVStore& s, int64_t start, int64_t stop, const char* what) {
    require(0 <= start && start <= stop && stop <= s.n_ctx(), what,
            "positions [" + std::to_string(start) + ", " + std::to_string(stop) + ") of a context of " +
                std::to_string(s.n_ctx()));
}

// Whole tiles that lie between the sinks and the end of the last tile of the context.
void check_tiles(const KVStore& s, int64_t start, int64_t stop, const char* what) {
    const int64_t sinks = s.sink_tokens();
    require(stop <= start || (start >= sinks && (start - sinks) % tile_tokens == 0 && (stop - start) % tile_tokens == 0 &&
                              stop < s.n_ctx() + tile_tokens),
            what, "[" + std::to_string(start) + ", " + std::to_string(stop) + ") are not whole tiles of this cache");
}

void check_kv(const KVStore& s, const In3& k, const In3& v, int64_t pos, const char* what) {
    const int64_t n = int64_t(k.shape(0)), heads = s.n_kv_heads();
    require(int64_t(k.shape(1)) == heads && int(k.shape(2)) == s.head_dim(side_k) && int64_t(v.shape(0)) == n &&
                int64_t(v.shape(1)) == heads && int(v.shape(2)) == s.head_dim(side_v),
            what, "k " + shape_text({n, int64_t(k.shape(1)), int64_t(k.shape(2))}) + " or v " +
                      shape_text({int64_t(v.shape(0)), int64_t(v.shape(1)), int64_t(v.shape(2))}) + " has a wrong shape");
    check_span(s, pos, pos + n, what);
}

void check_queries(const KVStore& s, const In3& q, int64_t pos, const In1Int64& hot_from, const char* what) {
    const int64_t n = int64_t(q.shape(0)), sinks = s.sink_tokens();
    require(q.shape(1) > 0 && int64_t(q.shape(1)) % s.n_kv_heads() == 0 && int(q.shape(2)) == s.head_dim(side_k) &&
                int64_t(hot_from.shape(0)) == n,
            what, "q " + shape_text({n, int64_t(q.shape(1)), int64_t(q.shape(2))}) + " with " +
                      std::to_string(hot_from.shape(0)) + " hot_from has a wrong shape");
    check_span(s, pos, pos + n, what);
    for (int64_t i = 0; i < n; ++i) {
        const int64_t from = hot_from.data()[i];
        require(from <= sinks || from > pos + i || (from - sinks) % tile_tokens == 0, what,
                "hot_from " + std::to_string(from) + " is not the start of a tile");
    }
}

// All arguments of one locked, GIL-free call.
template <class F>
void locked(const KVStore& s, F&& f) {
    nb::gil_scoped_release nogil;
    std::lock_guard lock(s.mutex());
    f();
}

nb::object attend(KVStore& s, int layer, In3 q, int64_t pos, In1Int64 hot_from, float scale, float softcap,
                  float max_bias, int64_t window) {
    check_layer(s, layer, "attend");
    check_queries(s, q, pos, hot_from, "attend");
    float* out;
    nb::object result = new_array(out, {q.shape(0), q.shape(1), size_t(s.head_dim(side_v))});
    locked(s, [&] {
        s.attend(layer, q.data(), int64_t(q.shape(0)), int(q.shape(1)), pos, hot_from.data(),
                 {scale, softcap, max_bias, window}, out);
    });
    return result;
}

nb::object step(KVStore& s, int layer, In3 q, In3 k, In3 v, int64_t pos, In1Int64 hot_from, int64_t cold_from,
                int64_t cold_to, float scale, float softcap, float max_bias, int64_t window) {
    check_layer(s, layer, "step");
    check_kv(s, k, v, pos, "step");
    check_queries(s, q, pos, hot_from, "step");
    check_tiles(s, cold_from, cold_to, "step");
    require(q.shape(0) == k.shape(0), "step", "q and k differ in length");
    float* out;
    nb::object result = new_array(out, {q.shape(0), q.shape(1), size_t(s.head_dim(side_v))});
    locked(s, [&] {
        const int64_t n = int64_t(q.shape(0));
        s.write(layer, k.data(), v.data(), n, pos);
        s.quantize(layer, cold_from, cold_to);
        s.attend(layer, q.data(), n, int(q.shape(1)), pos, hot_from.data(), {scale, softcap, max_bias, window}, out);
    });
    return result;
}

void write(KVStore& s, int layer, In3 k, In3 v, int64_t pos) {
    check_layer(s, layer, "write");
    check_kv(s, k, v, pos, "write");
    locked(s, [&] { s.write(layer, k.data(), v.data(), int64_t(k.shape(0)), pos); });
}

void quantize(KVStore& s, int layer, int64_t start, int64_t stop) {
    check_layer(s, layer, "quantize");
    check_tiles(s, start, stop, "quantize");
    locked(s, [&] { s.quantize(layer, start, stop); });
}

void rehydrate(KVStore& s, int layer, int64_t start, int64_t stop) {
    check_layer(s, layer, "rehydrate");
    check_tiles(s, start, stop, "rehydrate");
    locked(s, [&] { s.rehydrate(layer, start, stop); });
}

// An uninitialised array (n, heads, width) for rows of a type: float dtype, or uint8 for cold rows.
nb::object rows_array(uint8_t*& data, CacheType type, bool raw, size_t n, size_t heads, int head_dim) {
    if (raw) return new_array(data, {n, heads, row_bytes(type, head_dim)});
    const size_t bytes = n * heads * row_bytes(type, head_dim);
    data = static_cast<uint8_t*>(std::aligned_alloc(64, bytes / 64 * 64 + 64));
    if (!data) throw std::bad_alloc();
    nb::capsule owner(data, [](void* p) noexcept { std::free(p); });
    const size_t shape[] = {n, heads, size_t(head_dim)};
    const nb::dlpack::dtype dtype{uint8_t(nb::dlpack::dtype_code::Float), uint8_t(type == cache_f32 ? 32 : 16), 1};
    return nb::cast(nb::ndarray<nb::numpy>(data, 3, shape, owner, nullptr, dtype), nb::rv_policy::reference);
}

nb::tuple get_rows(const KVStore& s, int layer, bool cold, int64_t start, int64_t stop) {
    const char* what = cold ? "get_cold" : "get_hot";
    check_layer(s, layer, what);
    stop = std::max(start, stop);  // an empty range may come the wrong way round
    if (start < stop) {
        check_span(s, start, stop, what);
        require(!cold || start >= s.sink_tokens(), what, "sinks have no cold form");
    }
    const LayerFormat& f = s.format(layer);
    const size_t n = size_t(stop - start), heads = size_t(s.n_kv_heads());
    uint8_t *k, *v;
    nb::object k_rows = rows_array(k, cold ? f.type_k : f.hot_k, cold, n, heads, s.head_dim(side_k));
    nb::object v_rows = rows_array(v, cold ? f.type_v : f.hot_v, cold, n, heads, s.head_dim(side_v));
    locked(s, [&] { s.get_rows(layer, cold, start, stop, k, v); });
    return nb::make_tuple(k_rows, v_rows);
}

// Rows must have the shape and item size that get_hot or get_cold gives.
const uint8_t* checked_rows(const KVStore& s, const InRows& rows, CacheType type, bool cold, Side side, size_t n,
                            const char* what) {
    const size_t width = row_bytes(type, s.head_dim(side)), item = rows.itemsize();
    const bool dtype_ok = cold ? rows.dtype() == nb::dtype<uint8_t>()
                               : rows.dtype().code == uint8_t(nb::dlpack::dtype_code::Float) &&
                                     item == (type == cache_f32 ? 4u : 2u);
    require(dtype_ok && rows.shape(0) == n && rows.shape(1) == size_t(s.n_kv_heads()) && rows.shape(2) * item == width,
            what, "rows " + shape_text({int64_t(rows.shape(0)), int64_t(rows.shape(1)), int64_t(rows.shape(2))}) + " of " +
                      std::to_string(item) + "-byte items do not fit this layer's format");
    return static_cast<const uint8_t*>(rows.data());
}

void set_rows(KVStore& s, int layer, bool cold, int64_t start, InRows k, InRows v) {
    const char* what = cold ? "set_cold" : "set_hot";
    const size_t n = k.shape(0);
    check_layer(s, layer, what);
    check_span(s, start, start + int64_t(n), what);
    require(!cold || n == 0 || start >= s.sink_tokens(), what, "sinks have no cold form");
    const LayerFormat& f = s.format(layer);
    const uint8_t* k_bytes = checked_rows(s, k, cold ? f.type_k : f.hot_k, cold, side_k, n, what);
    const uint8_t* v_bytes = checked_rows(s, v, cold ? f.type_v : f.hot_v, cold, side_v, n, what);
    locked(s, [&] { s.set_rows(layer, cold, start, start + int64_t(n), k_bytes, v_bytes); });
}

nb::tuple segment(In3 q, InBytes k, const std::string& type_k, InBytes v, const std::string& type_v, int head_dim_v,
                  std::optional<In2> mask, In2 m, In2 s, In3 acc, float scale, std::optional<In1> slopes, float softcap) {
    AttnProblem p;
    const size_t n = q.shape(0), heads = q.shape(1), n_keys = k.shape(0), n_kv = k.shape(1);
    const SegmentRows keys{cache_type(type_k), k.data()}, values{cache_type(type_v), v.data()};
    const bool fits = n_kv > 0 && heads % n_kv == 0 && v.shape(0) == n_keys && v.shape(1) == n_kv && head_dim_v >= 1 &&
                      head_dim_v <= max_head_dim && q.shape(2) >= 1 && q.shape(2) <= size_t(max_head_dim) &&
                      k.shape(2) == row_bytes(keys.type, int(q.shape(2))) &&
                      v.shape(2) == row_bytes(values.type, head_dim_v) && m.shape(0) == n && m.shape(1) == heads &&
                      s.shape(0) == n && s.shape(1) == heads && acc.shape(0) == n && acc.shape(1) == heads &&
                      acc.shape(2) == size_t(head_dim_v) && (!mask || (mask->shape(0) == n && mask->shape(1) == n_keys)) &&
                      (!slopes || slopes->shape(0) == heads);
    if (!fits) throw InputError("attend_segment: the shapes of queries, rows, mask and state do not fit each other");
    p.n_queries = int64_t(n), p.n_heads = int(heads), p.n_kv_heads = int(n_kv), p.n_keys = int64_t(n_keys);
    p.head_dim_k = int(q.shape(2)), p.head_dim_v = head_dim_v, p.q = q.data(), p.scale = scale, p.softcap = softcap;
    p.mask = mask ? mask->data() : nullptr, p.mask_pitch = int64_t(n_keys);
    p.slopes = mask && slopes ? slopes->data() : nullptr;  // slopes multiply the mask and nothing else
    nb::object m_out = new_array(p.m, {n, heads}), s_out = new_array(p.s, {n, heads});
    nb::object acc_out = new_array(p.acc, {n, heads, size_t(head_dim_v)});
    memcpy(p.m, m.data(), n * heads * 4);
    memcpy(p.s, s.data(), n * heads * 4);
    memcpy(p.acc, acc.data(), n * heads * size_t(head_dim_v) * 4);
    nb::gil_scoped_release nogil;
    if (n > 0 && n_keys > 0) attend_segment(p, keys, values);
    nb::gil_scoped_acquire gil;
    return nb::make_tuple(m_out, s_out, acc_out);
}

}  // namespace

void bind_kv(nb::module_& m) {
    using namespace nb::literals;
    nb::class_<KVStore>(m, "KVStore", "Keys and values of all layers: sinks, a ring of recent tiles, cold tiles.")
        .def("__init__", &construct, "layers"_a, nb::kw_only(), "n_kv_heads"_a, "head_dim_k"_a, "head_dim_v"_a, "n_ctx"_a,
             "sink_tokens"_a, "hot_tiles"_a)
        .def("step", &step, "layer"_a, "q"_a.noconvert(), "k"_a.noconvert(), "v"_a.noconvert(), "pos"_a,
             "hot_from"_a.noconvert(), "cold_from"_a, "cold_to"_a, nb::kw_only(), "scale"_a, "softcap"_a = 0.0f,
             "max_bias"_a = 0.0f, "window"_a = 0)
        .def("attend", &attend, "layer"_a, "q"_a.noconvert(), "pos"_a, "hot_from"_a.noconvert(), nb::kw_only(), "scale"_a,
             "softcap"_a = 0.0f, "max_bias"_a = 0.0f, "window"_a = 0)
        .def("write", &write, "layer"_a, "k"_a.noconvert(), "v"_a.noconvert(), "pos"_a)
        .def("quantize", &quantize, "layer"_a, "start"_a, "stop"_a)
        .def("rehydrate", &rehydrate, "layer"_a, "start"_a, "stop"_a)
        .def("get_hot", [](const KVStore& s, int l, int64_t a, int64_t b) { return get_rows(s, l, false, a, b); },
             "layer"_a, "start"_a, "stop"_a)
        .def("get_cold", [](const KVStore& s, int l, int64_t a, int64_t b) { return get_rows(s, l, true, a, b); },
             "layer"_a, "start"_a, "stop"_a)
        .def("set_hot", [](KVStore& s, int l, int64_t a, InRows k, InRows v) { set_rows(s, l, false, a, k, v); },
             "layer"_a, "start"_a, "k"_a.noconvert(), "v"_a.noconvert())
        .def("set_cold", [](KVStore& s, int l, int64_t a, InRows k, InRows v) { set_rows(s, l, true, a, k, v); },
             "layer"_a, "start"_a, "k"_a.noconvert(), "v"_a.noconvert())
        .def("copy", [](const KVStore& s) {
            nb::gil_scoped_release nogil;
            std::lock_guard lock(s.mutex());
            return new KVStore(s);
        }, nb::rv_policy::take_ownership)
        .def("__deepcopy__", [](const KVStore& s, nb::object) {
            nb::gil_scoped_release nogil;
            std::lock_guard lock(s.mutex());
            return new KVStore(s);
        }, nb::rv_policy::take_ownership, "memo"_a);
    m.def("attend_segment_rows", &segment, "q"_a.noconvert(), "k"_a.noconvert(), "type_k"_a, "v"_a.noconvert(), "type_v"_a,
          "head_dim_v"_a, "mask"_a.noconvert().none(), "m"_a.noconvert(), "s"_a.noconvert(), "acc"_a.noconvert(), "scale"_a,
          "slopes"_a.noconvert().none(), "softcap"_a);
    m.def("poison_scratch", &set_poison, "on"_a, "Fill attention's scratch memory with NaN before each use (tests).");
}

}  // namespace mixkv
