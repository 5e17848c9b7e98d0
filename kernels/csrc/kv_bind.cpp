// KVStore and attend_segment for Python (docs/architecture.md has the contract). kv_args.h says what arguments must be.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "attn_run.h"
#include "kv_args.h"

namespace mixkv {
namespace {

// A pool as Python holds it; the stores on it share it.
struct PyPagePool {
    std::shared_ptr<PagePool> shared;
};

using InBytes = Array<const uint8_t, -1, -1, -1>;

CacheType cache_type(const std::string& name) {
    const char* names[] = {"f32", "f16", "q8_0", "q4_0"};
    for (int i = 0; i < n_cache_types; ++i)
        if (name == names[i]) return CacheType(i);
    throw ConfigError("unknown cache type '" + name + "': use one of f32, f16, q8_0, q4_0");
}

PyPagePool page_pool(PyBackend&, std::optional<Whole> budget) {
    if (budget && *budget < 0) throw ConfigError("a page pool's budget is a number of bytes, 0 or more, or None");
    return {std::make_shared<PagePool>(budget ? int64_t(*budget) : -1)};
}

std::unique_ptr<KVStore> make_store(PyBackend& on, nb::sequence layers, Whole n_kv_heads, Whole head_dim_k,
                                    Whole head_dim_v, Whole n_ctx, Whole sink_tokens, Whole hot_tiles,
                                    PyPagePool* pool, bool v_in_k) {
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
    return std::make_unique<KVStore>(on.shared, pool ? pool->shared : std::make_shared<PagePool>(-1), formats, n_kv_heads,
                                     head_dim_k, head_dim_v, n_ctx, sink_tokens, hot_tiles, v_in_k);
}

nb::object attend(KVStore& s, Whole at, nb::handle q_, Whole pos, nb::handle hot_from_, float scale, float softcap,
                  float max_bias, Whole window, nb::handle sinks_) {
    const int layer = check_layer(s, at, "attend");
    const Heads q = numbers<float, 3>(q_, "attend", "q");
    const HotFrom hot_from = numbers<int64_t, 1>(hot_from_, "attend", "hot_from");
    check_queries(s, q, pos, hot_from, window, "attend");
    const SinkLogits sinks = sink_logits(sinks_, q, "attend");
    StepOrder order{&s, pos, q.shape[0]};
    order.q = q.data, order.hot_from = hot_from.data;
    nb::object result = new_array(order.out, {size_t(q.shape[0]), size_t(q.shape[1]), size_t(s.head_dim(side_v))});
    on_turn(s.backend(), [&] {
        KVStore::attend(s.backend(), layer, {order}, int(q.shape[1]), {scale, softcap, max_bias, window, sinks.data});
    });
    return result;
}

StepOrder checked_order(KVStore& s, const Heads& q, const Heads& k, const Heads& v, int64_t pos, const HotFrom& hot_from,
                        int64_t cold_from, int64_t cold_to, int64_t window, const char* what) {
    check_kv(s, k, v, pos, what);
    check_queries(s, q, pos, hot_from, window, what);
    check_tiles(s, cold_from, cold_to, what);
    require(q.shape[0] == k.shape[0], what, "q and k differ in length");
    return {&s, pos, q.shape[0], cold_from, cold_to, q.data, k.data, v.data, hot_from.data};
}

nb::object step(KVStore& s, Whole at, nb::handle q_, nb::handle k_, nb::handle v_, Whole pos, nb::handle hot_from_,
                Whole cold_from, Whole cold_to, float scale, float softcap, float max_bias, Whole window, nb::handle sinks_) {
    const int layer = check_layer(s, at, "step");
    const Heads k = numbers<float, 3>(k_, "step", "k"), v = numbers<float, 3>(v_, "step", "v");
    const Heads q = numbers<float, 3>(q_, "step", "q");
    const HotFrom hot_from = numbers<int64_t, 1>(hot_from_, "step", "hot_from");
    StepOrder order = checked_order(s, q, k, v, pos, hot_from, cold_from, cold_to, window, "step");
    const SinkLogits sinks = sink_logits(sinks_, q, "step");
    nb::object result = new_array(order.out, {size_t(q.shape[0]), size_t(q.shape[1]), size_t(s.head_dim(side_v))});
    on_turn(s.backend(), [&] {
        KVStore::step(s.backend(), layer, {order}, int(q.shape[1]), {scale, softcap, max_bias, window, sinks.data});
    });
    return result;
}

template <class T>
T item(nb::handle from, const char* why) {
    T value{};
    if (!nb::try_cast(from, value)) throw nb::type_error(why);
    return value;
}

Heads rows_of(const Heads& a, int64_t start, int64_t n) {
    return {a.data + start * a.shape[1] * a.shape[2], {n, a.shape[1], a.shape[2]}, a.keep};
}

nb::object step_batch(PyBackend& on, Whole at, nb::sequence stores, nb::handle q_, nb::handle k_, nb::handle v_,
                      nb::sequence orders_, float scale, float softcap, float max_bias, Whole window,
                      nb::handle sinks_) {
    const char* const what = "step_batch";
    const Heads q = numbers<float, 3>(q_, what, "q"), k = numbers<float, 3>(k_, what, "k");
    const Heads v = numbers<float, 3>(v_, what, "v");
    require(q.shape[0] == k.shape[0] && k.shape[0] == v.shape[0], what, "q, k and v differ in length");
    const SinkLogits sinks = sink_logits(sinks_, q, what);
    StepOrders orders;
    std::vector<HotFrom> keep;
    int64_t start = 0, width = v.shape[2];
    const size_t n_stores = nb::len(stores);
    require(n_stores == nb::len(orders_), what, "there are not as many orders as stores");
    for (size_t i = 0; i < n_stores; ++i) {
        const char* const no_store = "step_batch: a store is not one of this backend's";
        auto* const pointer = item<KVStore*>(stores[i], no_store);
        if (!pointer) throw nb::type_error(no_store);  // None
        KVStore& s = *pointer;
        require(&s.backend() == on.shared.get(), what, "a store is another backend's");
        check_layer(s, at, what);
        require(i == 0 || width == s.head_dim(side_v), what, "the stores' values are not equally wide");
        width = s.head_dim(side_v);
        for (const StepOrder& o : orders) require(o.store != &s, what, "a store is there twice");
        const auto order = item<nb::tuple>(orders_[i], "step_batch: an order is (pos, hot_from, cold_from, cold_to)");
        require(nb::len(order) == 4, what, "an order is (pos, hot_from, cold_from, cold_to)");
        auto whole = [&](int which) { return item<Whole>(order[which], "step_batch: an order has whole numbers"); };
        keep.push_back(numbers<int64_t, 1>(order[1], what, "hot_from"));
        const int64_t n = keep.back().shape[0];
        require(n <= q.shape[0] - start, what, "the orders have more queries than q has");
        orders.push_back(checked_order(s, rows_of(q, start, n), rows_of(k, start, n), rows_of(v, start, n), whole(0),
                                       keep.back(), whole(2), whole(3), window, what));
        start += n;
    }
    require(start == q.shape[0], what, "the orders have fewer queries than q has");
    float* out;
    nb::object result = new_array(out, {size_t(q.shape[0]), size_t(q.shape[1]), size_t(width)});
    for (StepOrder& o : orders) o.out = out, out += o.n * q.shape[1] * width;
    on_turn(*on, [&] {
        KVStore::step(*on, int(at), orders, int(q.shape[1]), {scale, softcap, max_bias, window, sinks.data});
    });
    return result;
}

void write(KVStore& s, Whole at, nb::handle k_, nb::handle v_, Whole pos) {
    const int layer = check_layer(s, at, "write");
    const Heads k = numbers<float, 3>(k_, "write", "k"), v = numbers<float, 3>(v_, "write", "v");
    check_kv(s, k, v, pos, "write");
    StepOrder order{&s, pos, k.shape[0]};
    order.k = k.data, order.v = v.data;
    on_turn(s.backend(), [&] { KVStore::write(s.backend(), layer, {order}); });
}

void quantize(KVStore& s, Whole at, Whole start, Whole stop) {
    const int layer = check_layer(s, at, "quantize");
    check_tiles(s, start, stop, "quantize");
    on_turn(s.backend(), [&] { KVStore::quantize(s.backend(), layer, {{&s, 0, 0, start, stop}}); });
}

void rehydrate(KVStore& s, Whole at, Whole start, Whole stop) {
    const int layer = check_layer(s, at, "rehydrate");
    check_tiles(s, start, stop, "rehydrate");
    on_turn(s.backend(), [&] { s.rehydrate(layer, start, stop); });
}

void reserve(KVStore& s, Whole hot_start, Whole hot_stop, Whole cold_start, Whole cold_stop) {
    if (hot_start < hot_stop) {
        check_span(s, hot_start, 0, "reserve");
        check_span(s, hot_stop, 0, "reserve");
    }
    check_tiles(s, cold_start, cold_stop, "reserve");
    on_turn(s.backend(), [&] { s.reserve({hot_start, hot_stop, cold_start, cold_stop}); });
}

void trim(KVStore& s, Whole hot_stop, Whole cold_stop) {
    require(hot_stop >= 0 && cold_stop >= 0, "trim", "positions are not negative");
    on_turn(s.backend(), [&] { s.trim(hot_stop, cold_stop); });
}

// An uninitialised array (n, heads, width) for rows of a type: float dtype, or uint8 for cold rows.
nb::object rows_array(uint8_t*& data, CacheType type, bool raw, size_t n, size_t heads, int head_dim) {
    if (raw) return new_array(data, {n, heads, row_bytes(type, head_dim)});
    data = static_cast<uint8_t*>(take_array_memory(n * heads * row_bytes(type, head_dim)));
    nb::capsule owner(data, [](void* p) noexcept { give_array_memory(p); });
    const size_t shape[] = {n, heads, size_t(head_dim)};
    const nb::dlpack::dtype dtype{uint8_t(nb::dlpack::dtype_code::Float), uint8_t(type == cache_f32 ? 32 : 16), 1};
    return nb::cast(nb::ndarray<nb::numpy>(data, 3, shape, owner, nullptr, dtype), nb::rv_policy::reference);
}

nb::tuple get_rows(const KVStore& s, int64_t at, bool cold, int64_t start, int64_t stop) {
    const char* what = cold ? "get_cold" : "get_hot";
    const int layer = check_layer(s, at, what);
    stop = std::max(start, stop);  // an empty range may come the wrong way round
    if (start < stop) {
        check_span(s, start, 0, what);
        check_span(s, stop, 0, what);
        require(!cold || start >= s.sink_tokens(), what, "sinks have no cold form");
    }
    const LayerFormat& f = s.format(layer);
    const size_t n = start < stop ? size_t(stop - start) : 0, heads = size_t(s.n_kv_heads());
    uint8_t *k, *v;
    nb::object k_rows = rows_array(k, cold ? f.type_k : f.hot_k, cold, n, heads, s.width(side_k));
    nb::object v_rows = rows_array(v, cold ? f.type_v : f.hot_v, cold, n, heads, s.width(side_v));
    on_turn(s.backend(), [&] { s.get_rows(layer, cold, start, stop, k, v); });
    return nb::make_tuple(k_rows, v_rows);
}

// Rows must have the shape and dtype that get_hot or get_cold gives.
const uint8_t* checked_rows(const KVStore& s, const nb::ndarray<nb::ro>& rows, CacheType type, bool cold, Side side,
                            size_t n, const char* what) {
    const size_t width = row_bytes(type, s.width(side)), item = rows.itemsize();
    const bool dtype_ok = cold ? rows.dtype() == nb::dtype<uint8_t>()
                               : rows.dtype().code == uint8_t(nb::dlpack::dtype_code::Float) &&
                                     item == (type == cache_f32 ? 4u : 2u);
    require(dtype_ok && rows.shape(0) == n && rows.shape(1) == size_t(s.n_kv_heads()) && rows.shape(2) * item == width,
            what, "rows " + shape_text({int64_t(rows.shape(0)), int64_t(rows.shape(1)), int64_t(rows.shape(2))}) + " of " +
                      std::to_string(item) + "-byte items do not fit this layer's format");
    return static_cast<const uint8_t*>(rows.data());
}

void set_rows(KVStore& s, int64_t at, bool cold, int64_t start, nb::handle k_, nb::handle v_) {
    const char* what = cold ? "set_cold" : "set_hot";
    const int layer = check_layer(s, at, what);
    const nb::ndarray<nb::ro> k = contiguous(k_, 3, what, "k"), v = contiguous(v_, 3, what, "v");
    const size_t n = k.shape(0);
    const LayerFormat& f = s.format(layer);
    const uint8_t* k_bytes = checked_rows(s, k, cold ? f.type_k : f.hot_k, cold, side_k, n, what);
    const uint8_t* v_bytes = checked_rows(s, v, cold ? f.type_v : f.hot_v, cold, side_v, n, what);
    check_span(s, start, int64_t(n), what);
    require(!cold || n == 0 || start >= s.sink_tokens(), what, "sinks have no cold form");
    on_turn(s.backend(), [&] { s.set_rows(layer, cold, start, start + int64_t(n), k_bytes, v_bytes); });
}

std::unique_ptr<KVStore> copy(const KVStore& s) {
    std::unique_ptr<KVStore> twin;
    on_turn(s.backend(), [&] { twin = std::make_unique<KVStore>(s); });
    return twin;
}

std::unique_ptr<KVStore> copy_ring(const KVStore& s, Whole start, Whole stop) {
    require(start >= 0 && stop >= 0, "copy_ring", "positions are not negative");
    std::unique_ptr<KVStore> twin;
    on_turn(s.backend(), [&] { twin = s.copy_ring(start, stop); });
    return twin;
}

void take_ring(KVStore& s, const KVStore& other) {
    require(s.same_kind(other), "take_ring", "the other store is of another kind or pool");
    on_turn(s.backend(), [&] { s.take_ring(other); });
}

nb::dict ring_pages(const KVStore& s) {
    std::vector<std::pair<const Page*, size_t>> pages;
    on_turn(s.backend(), [&] { pages = s.ring_pages(); });
    nb::dict found;
    for (const auto& [page, bytes] : pages) found[nb::int_(reinterpret_cast<uintptr_t>(page))] = bytes;
    return found;
}

nb::tuple segment(PyBackend& on, In3 q, InBytes k, const std::string& type_k, InBytes v, const std::string& type_v,
                  int head_dim_v, std::optional<In2> mask, In2 m, In2 s, In3 acc, float scale, std::optional<In1> slopes,
                  float softcap) {
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
    if (n > 0 && n_keys > 0) on_turn(*on, [&] { attend_segment(*on, p, keys, values); });
    return nb::make_tuple(m_out, s_out, acc_out);
}

}  // namespace

void bind_kv(nb::module_& m, nb::class_<PyBackend>& backend) {
    using namespace nb::literals;
    nb::class_<PyPagePool>(m, "PagePool", "Pages that stores share, under one budget.")
        .def_prop_ro("budget", [](const PyPagePool& p) -> std::optional<int64_t> {
            return p.shared->budget() < 0 ? std::nullopt : std::optional(p.shared->budget());
        })
        .def_prop_ro("nbytes", [](const PyPagePool& p) { return p.shared->nbytes(); })
        .def_prop_ro("peak_nbytes", [](const PyPagePool& p) { return p.shared->peak_nbytes(); });
    nb::class_<KVStore>(m, "KVStore", "Keys and values of all layers: sinks, a ring of recent tiles, cold tiles.")
        .def("step", &step, "layer"_a, "q"_a.none(), "k"_a.none(), "v"_a.none(), "pos"_a, "hot_from"_a.none(),
             "cold_from"_a, "cold_to"_a, nb::kw_only(), "scale"_a, "softcap"_a = 0.0f, "max_bias"_a = 0.0f, "window"_a = 0,
             "sinks"_a = nb::none())
        .def("attend", &attend, "layer"_a, "q"_a.none(), "pos"_a, "hot_from"_a.none(), nb::kw_only(),
             "scale"_a, "softcap"_a = 0.0f, "max_bias"_a = 0.0f, "window"_a = 0,
             "sinks"_a = nb::none())
        .def("write", &write, "layer"_a, "k"_a.none(), "v"_a.none(), "pos"_a)
        .def("quantize", &quantize, "layer"_a, "start"_a, "stop"_a)
        .def("rehydrate", &rehydrate, "layer"_a, "start"_a, "stop"_a)
        .def("get_hot", [](const KVStore& s, Whole l, Whole a, Whole b) { return get_rows(s, l, false, a, b); },
             "layer"_a, "start"_a, "stop"_a)
        .def("get_cold", [](const KVStore& s, Whole l, Whole a, Whole b) { return get_rows(s, l, true, a, b); },
             "layer"_a, "start"_a, "stop"_a)
        .def("set_hot", [](KVStore& s, Whole l, Whole a, nb::handle k, nb::handle v) { set_rows(s, l, false, a, k, v); },
             "layer"_a, "start"_a, "k"_a.none(), "v"_a.none())
        .def("set_cold", [](KVStore& s, Whole l, Whole a, nb::handle k, nb::handle v) { set_rows(s, l, true, a, k, v); },
             "layer"_a, "start"_a, "k"_a.none(), "v"_a.none())
        .def("reserve", &reserve, "hot_start"_a, "hot_stop"_a, "cold_start"_a, "cold_stop"_a)
        .def("trim", &trim, "hot_stop"_a, "cold_stop"_a)
        .def("copy", &copy)
        .def("copy_ring", &copy_ring, "start"_a, "stop"_a)
        .def("take_ring", &take_ring, "other"_a)
        .def("ring_pages", &ring_pages)
        .def("__deepcopy__", [](const KVStore& s, nb::handle) { return copy(s); }, "memo"_a);
    backend
        .def("KVStore", &make_store, "layers"_a, nb::kw_only(), "n_kv_heads"_a, "head_dim_k"_a, "head_dim_v"_a, "n_ctx"_a,
             "sink_tokens"_a, "hot_tiles"_a, "pool"_a.none() = nb::none(), "v_in_k"_a = false)
        .def("page_pool", &page_pool, "budget"_a.none() = nb::none())
        .def("step_batch", &step_batch, "layer"_a, "stores"_a, "q"_a.none(), "k"_a.none(), "v"_a.none(), "orders"_a,
             nb::kw_only(), "scale"_a, "softcap"_a = 0.0f, "max_bias"_a = 0.0f, "window"_a = 0,
             "sinks"_a = nb::none())
        .def("attend_segment_rows", &segment, "q"_a.noconvert(), "k"_a.noconvert(), "type_k"_a, "v"_a.noconvert(),
             "type_v"_a, "head_dim_v"_a, "mask"_a.noconvert().none(), "m"_a.noconvert(), "s"_a.noconvert(),
             "acc"_a.noconvert(), "scale"_a, "slopes"_a.noconvert().none(), "softcap"_a)
        .def("poison_scratch", [](PyBackend& on, bool yes) { on_turn(*on, [&] { (*on).attention.poison = yes; }); },
             "on"_a, "Fill attention's scratch memory and fresh pages with NaN before each use (tests).");
}

}  // namespace mixkv
