#include "kv_args.h"

namespace mixkv {

void require(bool ok, const char* what, const std::string& why) {
    if (!ok) throw InputError(std::string("KVStore.") + what + ": " + why);
}

std::string shape_text(std::initializer_list<int64_t> shape) {
    std::string s = "(";
    for (int64_t n : shape) s += (s.size() > 1 ? ", " : "") + std::to_string(n);
    return s + ")";
}

nb::ndarray<nb::ro> contiguous(nb::handle a, size_t dims, const char* what, const char* name) {
    nb::ndarray<nb::ro> out;
    require(nb::try_cast(a, out, false) && out.device_type() == nb::device::cpu::value, what,
            std::string(name) + " is not an array of numbers");
    require(out.ndim() == dims, what, std::string(name) + " has " + std::to_string(out.ndim()) + " dimensions, not " +
                                          std::to_string(dims));
    int64_t step = 1;
    for (size_t i = dims; i-- > 0; step *= int64_t(out.shape(i)))
        require(out.shape(i) <= 1 || out.stride(i) == step || out.size() == 0, what,
                std::string(name) + " is not C-contiguous");
    return out;
}

int check_layer(const KVStore& s, int64_t layer, const char* what) {
    require(0 <= layer && layer < s.n_layers(), what,
            "layer " + std::to_string(layer) + " of " + std::to_string(s.n_layers()));
    return int(layer);
}

void check_span(const KVStore& s, int64_t start, int64_t n, const char* what) {
    require(0 <= start && start <= s.n_ctx() && n <= s.n_ctx() - start, what,
            std::to_string(n) + " positions from " + std::to_string(start) + " on, of a context of " +
                std::to_string(s.n_ctx()));
}

void check_tiles(const KVStore& s, int64_t start, int64_t stop, const char* what) {
    const int64_t sinks = s.sink_tokens();
    require(stop <= start || (start >= sinks && stop <= s.n_ctx() && (start - sinks) % tile_tokens == 0 &&
                              (stop - start) % tile_tokens == 0),
            what, "[" + std::to_string(start) + ", " + std::to_string(stop) + ") are not whole tiles of this cache");
}

void check_kv(const KVStore& s, const Heads& k, const Heads& v, int64_t pos, const char* what) {
    const int64_t n = k.shape[0], heads = s.n_kv_heads();
    require(k.shape[1] == heads && k.shape[2] == s.head_dim(side_k) && v.shape[0] == n && v.shape[1] == heads &&
                v.shape[2] == s.width(side_v),
            what, "k " + shape_text({n, k.shape[1], k.shape[2]}) + " or v " +
                      shape_text({v.shape[0], v.shape[1], v.shape[2]}) + " has a wrong shape");
    check_span(s, pos, n, what);
}

SinkLogits sink_logits(nb::handle a, const Heads& q, const char* what) {
    if (a.is_none()) return {};
    const SinkLogits logits = numbers<float, 1>(a, what, "sinks");
    require(logits.shape[0] == q.shape[1], what,
            std::to_string(logits.shape[0]) + " sinks for " + std::to_string(q.shape[1]) + " query heads");
    return logits;
}

void check_queries(const KVStore& s, const Heads& q, int64_t pos, const HotFrom& hot_from, int64_t window,
                   const char* what) {
    const int64_t n = q.shape[0], sinks = s.sink_tokens();
    require(q.shape[1] > 0 && q.shape[1] % s.n_kv_heads() == 0 && q.shape[1] <= (1 << 20) &&
                q.shape[2] == s.head_dim(side_k) && hot_from.shape[0] == n,
            what, "q " + shape_text({n, q.shape[1], q.shape[2]}) + " with " + std::to_string(hot_from.shape[0]) +
                      " hot_from has a wrong shape");
    require(window >= 0, what, "window " + std::to_string(window) + " is negative");
    check_span(s, pos, n, what);
    for (int64_t i = 0; i < n; ++i) {
        const int64_t from = hot_from.data[i];
        require(from <= sinks || from > pos + i || (from - sinks) % tile_tokens == 0, what,
                "hot_from " + std::to_string(from) + " is not the start of a tile");
    }
}

}  // namespace mixkv
