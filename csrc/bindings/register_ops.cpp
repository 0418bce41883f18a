// fastattn.ops: the kernels on numpy arrays. ops.py checks shapes; this file checks only what memory safety needs.
#include <algorithm>
#include <mutex>

#include "bindings/bindings.h"
#include "core/buffer.h"
#include "ops/ops.h"
#include "program/names.h"
#include "runtime/cpu.h"
#include "runtime/owned_mutex.h"
#include "runtime/thread_pool.h"
#include "weights/pack.h"

namespace fastattn {
namespace {

// Threads, lock and memory shared by all calls of this process. Recreated in the child of a fork.
struct OpsRuntime {
    OpsRuntime() : pool(default_threads()) {}
    OwnedMutex mutex;
    ThreadPool pool;
    Buffer workspace;

    float* room(int64_t floats) {
        workspace.grow(static_cast<size_t>(floats) * sizeof(float));
        return workspace.floats();
    }
};

OpsRuntime& ops_runtime() {
    const std::lock_guard lock(start_mutex());
    // Never destroyed: threads may still sleep in it when the process ends.
    static auto& runtime = *new ForkLocal<OpsRuntime>;
    return runtime.get([] { return std::make_unique<OpsRuntime>(); });
}

// Calls work(runtime, poll), which runs a region on runtime.pool and returns its result.
template <class F>
void with_runtime(const F& work) {
    without_gil([&](const std::function<bool()>& poll) {
        OpsRuntime& runtime = ops_runtime();
        const std::lock_guard lock(runtime.mutex);
        if (!work(runtime, poll)) throw Error(ErrorKind::kCancelled, "the call was cancelled");
    });
}

// Runs `body` in a region, for ops that need no workspace.
template <class F>
void in_region(const F& body) {
    with_runtime([&](OpsRuntime& runtime, const std::function<bool()>& poll) { return runtime.pool.run(body, poll); });
}

std::vector<float*> scratch_of(float* at, int threads) {
    std::vector<float*> scratch;
    for (int i = 0; i < threads; ++i) scratch.push_back(at + i * ops::kScratchFloats);
    return scratch;
}

View view_of(const float* data, int64_t rows, int64_t width) {
    return {const_cast<float*>(data), rows, width, static_cast<int32_t>(width)};
}

const float* optional_vector(const char* name, const py::object& object, int64_t n) {
    if (object.is_none()) return nullptr;
    const auto array = object.cast<py::array>();
    const float* data = data_of<float>(name, array, 1);
    if (array.shape(0) != n) throw Error(ErrorKind::kInput, std::string(name) + ": expected one number per column");
    return data;
}

// out [m, n] = x [m, k] times b, which is a weight [n, k] or, with k_major, a matrix [k, n].
py::array product(const py::array& x, const py::array& b, bool k_major, const py::object& bias, const py::object& out) {
    const float* a = data_of<float>("input", x, 2);
    const float* w = data_of<float>(k_major ? "other" : "weight", b, 2);
    const int64_t m = x.shape(0), k = x.shape(1), n = b.shape(k_major ? 1 : 0);
    if (b.shape(k_major ? 0 : 1) != k)
        throw Error(ErrorKind::kInput, std::string(k_major ? "input, other" : "input, weight") +
                                           ": expected equal inner sizes, got " + std::to_string(k) + " and " +
                                           std::to_string(b.shape(k_major ? 0 : 1)));
    const float* bias_data = optional_vector("bias", bias, n);
    py::array result = out.is_none() ? py::array(py::array_t<float>({m, n})) : out.cast<py::array>();
    float* c = writable<float>("out", result, 2);
    if (result.shape(0) != m || result.shape(1) != n)
        throw Error(ErrorKind::kInput, "out: expected shape [" + std::to_string(m) + ", " + std::to_string(n) + "]");
    if (m == 0 || n == 0) return result;
    with_runtime([&](OpsRuntime& runtime, const std::function<bool()>& poll) {
        const int64_t panels = (n + kPanelWidth - 1) / kPanelWidth;
        const int64_t scratch_floats = runtime.pool.size() * ops::kScratchFloats;
        float* room = runtime.room(scratch_floats + panels * kPanelWidth * k);
        const auto scratch = scratch_of(room, runtime.pool.size());
        float* packed = room + scratch_floats;
        return runtime.pool.run(
            [&](Team& team) {
                team.for_chunks(panels, [&](int64_t panel) {
                    const int64_t first = panel * kPanelWidth, width = std::min<int64_t>(kPanelWidth, n - first);
                    if (k_major)
                        for (int64_t p = 0; p < k; ++p)
                            std::copy_n(w + p * n + first, width, packed + (panel * k + p) * kPanelWidth);
                    else
                        pack_float32(w + first * k, k, width, packed, first);
                });
                team.barrier();
                ops::linear(team, active_kernels(),
                            {.x = view_of(a, m, k),
                             .out = view_of(c, m, n),
                             .weights = {.panels = reinterpret_cast<const std::byte*>(packed),
                                         .words = static_cast<int32_t>(k),
                                         .panel_bytes = k * kPanelWordBytes,
                                         .count = panels},
                             .bias = bias_data,
                             .scratch = scratch.data()});
            },
            poll);
    });
    return result;
}

py::array layer_norm(const py::array& x, const py::object& weight, const py::object& bias, float eps) {
    const float* data = data_of<float>("input", x, 2);
    const int64_t rows = x.shape(0), n = x.shape(1);
    const float* w = optional_vector("weight", weight, n);
    const float* b = optional_vector("bias", bias, n);
    py::array_t<float> out({rows, n});
    const View result = view_of(out.mutable_data(), rows, n);
    in_region(
        [&](Team& team) { ops::layer_norm(team, active_kernels(), view_of(data, rows, n), result, w, b, eps, {}); });
    return out;
}

py::array softmax(const py::array& x, bool log) {
    const float* data = data_of<float>("input", x, 2);
    const int64_t rows = x.shape(0), n = x.shape(1);
    py::array_t<float> out({rows, n});
    float* result = out.mutable_data();
    if (rows == 0 || n == 0) return out;
    in_region([&](Team& team) {
        team.for_chunks(rows, [&](int64_t row) {
            active_kernels().softmax_f32({.x = data + row * n,
                                          .x_stride = n,
                                          .out = result + row * n,
                                          .out_stride = n,
                                          .rows = 1,
                                          .n = static_cast<int32_t>(n),
                                          .log = log});
        });
    });
    return out;
}

py::array activation(const py::array& x, const std::string& kind) {
    const float* data = data_of<float>("input", x, 1);
    const int64_t n = x.shape(0);
    const Activation which = value_of(kActivationNames, kind, "kind", ErrorKind::kInput);
    py::array_t<float> out(n);
    float* result = out.mutable_data();
    constexpr int64_t kChunk = 16384;
    in_region([&](Team& team) {
        team.for_chunks((n + kChunk - 1) / kChunk, [&](int64_t i) {
            active_kernels().activation_f32({.x = data + i * kChunk,
                                             .out = result + i * kChunk,
                                             .n = std::min(kChunk, n - i * kChunk),
                                             .activation = which});
        });
    });
    return out;
}

// One head of one batch entry at a time: stores its keys and values in separate blocks, then runs its query rows.
struct HeadShape {
    int64_t batch, n_head, n_kv_head, q_len, kv_len, head_dim;
};

void attention_head(const HeadShape& s, int64_t index, const float* q, const float* k, const float* v,
                    const float* mask, const int64_t (&mask_strides)[2], bool causal, float scale,
                    std::byte* blocks_memory, std::byte** blocks, float* scratch, float* out) {
    const int64_t batch = index / s.n_head, head = index % s.n_head;
    const int64_t kv = batch * s.n_kv_head + head / (s.n_head / s.n_kv_head);
    constexpr int kFormat = static_cast<int>(Format::kFloat32);
    const auto d = static_cast<int32_t>(s.head_dim);
    const int64_t block_bytes = kv_head_layout(Format::kFloat32, d).bytes;
    for (int64_t b = 0; b * kBlockLen < s.kv_len; ++b) blocks[b] = blocks_memory + b * block_bytes;
    active_kernels().kv_store[kFormat]({.k = k + kv * s.kv_len * d,
                                        .v = v + kv * s.kv_len * d,
                                        .k_stride = d,
                                        .v_stride = d,
                                        .blocks = blocks,
                                        .rows = static_cast<int32_t>(s.kv_len),
                                        .position = 0,
                                        .head_dim = d});
    active_kernels().attention[kFormat](
        {.q = q + index * s.q_len * d,
         .q_stride = d,
         .blocks = blocks,
         .mask = mask ? mask + batch * mask_strides[0] + head * mask_strides[1] : nullptr,
         .mask_stride = s.kv_len,
         .out = out + index * s.q_len * d,
         .out_stride = d,
         .scratch = scratch,
         .q_len = static_cast<int32_t>(s.q_len),
         .q_position = 0,
         .kv_len = static_cast<int32_t>(s.kv_len),
         .head_dim = d,
         .causal = causal,
         .scale = scale});
}

py::array attention(const py::array& q, const py::array& k, const py::array& v, const py::object& mask, bool causal,
                    float scale) {
    const float* q_data = data_of<float>("query", q, 4);
    const float* k_data = data_of<float>("key", k, 4);
    const float* v_data = data_of<float>("value", v, 4);
    const HeadShape s{q.shape(0), q.shape(1), k.shape(1), q.shape(2), k.shape(2), q.shape(3)};
    if (k.shape(0) != s.batch || k.shape(3) != s.head_dim || v.shape(0) != s.batch || v.shape(1) != s.n_kv_head ||
        v.shape(2) != s.kv_len || v.shape(3) != s.head_dim)
        throw Error(ErrorKind::kInput, "key, value: the shapes do not fit the query's");
    if (s.head_dim > kMaxHeadDim)
        throw Error(ErrorKind::kInput, "query: expected a head_dim of at most 256, got " + std::to_string(s.head_dim));
    const float* mask_data = nullptr;
    int64_t mask_strides[2] = {0, 0};
    if (!mask.is_none()) {
        const auto array = mask.cast<py::array>();
        mask_data = data_of<float>("attn_mask", array, 4);
        if (array.shape(2) != s.q_len || array.shape(3) != s.kv_len ||
            (array.shape(0) != 1 && array.shape(0) != s.batch) || (array.shape(1) != 1 && array.shape(1) != s.n_head))
            throw Error(ErrorKind::kInput, "attn_mask: expected [batch or 1, n_head or 1, q_len, kv_len]");
        mask_strides[1] = array.shape(1) == 1 ? 0 : s.q_len * s.kv_len;
        mask_strides[0] = array.shape(0) == 1 ? 0 : array.shape(1) * s.q_len * s.kv_len;
    }
    py::array_t<float> out({s.batch, s.n_head, s.q_len, s.head_dim});
    float* result = out.mutable_data();
    if (out.size() == 0) return out;
    if (s.n_kv_head == 0 || s.n_head % s.n_kv_head != 0)
        throw Error(ErrorKind::kInput, "query, key: expected n_head as a multiple of n_kv_head, got " +
                                           std::to_string(s.n_head) + " and " + std::to_string(s.n_kv_head));
    with_runtime([&](OpsRuntime& runtime, const std::function<bool()>& poll) {
        const int threads = runtime.pool.size();
        const int64_t n_blocks = (s.kv_len + kBlockLen - 1) / kBlockLen;
        const int64_t per_thread = n_blocks * kv_head_layout(Format::kFloat32, static_cast<int32_t>(s.head_dim)).bytes /
                                   static_cast<int64_t>(sizeof(float));
        float* room = runtime.room(threads * (ops::kScratchFloats + per_thread));
        const auto scratch = scratch_of(room, threads);
        float* memory = room + threads * ops::kScratchFloats;
        std::vector<std::vector<std::byte*>> blocks(threads, std::vector<std::byte*>(n_blocks));
        return runtime.pool.run(
            [&](Team& team) {
                team.for_chunks(s.batch * s.n_head, [&](int64_t index) {
                    attention_head(s, index, q_data, k_data, v_data, mask_data, mask_strides, causal, scale,
                                   reinterpret_cast<std::byte*>(memory + team.index() * per_thread),
                                   blocks[team.index()].data(), scratch[team.index()], result);
                });
            },
            poll);
    });
    return out;
}

}  // namespace

void register_ops(py::module_& m) {
    m.def(
        "linear",
        [](const py::array& x, const py::array& weight, const py::object& bias, const py::object& out) {
            return product(x, weight, false, bias, out);
        },
        py::arg("x"), py::arg("weight"), py::arg("bias") = py::none(), py::arg("out") = py::none());
    m.def(
        "matmul",
        [](const py::array& a, const py::array& b, const py::object& out) {
            return product(a, b, true, py::none(), out);
        },
        py::arg("a"), py::arg("b"), py::arg("out") = py::none());
    m.def("layer_norm", layer_norm, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("eps"));
    m.def("softmax", softmax, py::arg("x"), py::arg("log"));
    m.def("activation", activation, py::arg("x"), py::arg("kind"));
    m.def("attention", attention, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("mask"), py::arg("causal"),
          py::arg("scale"));
}

}  // namespace fastattn
