// _core.kernels: every kernel of every target, for tests/kernels. Nothing else uses it.
#include "bindings/bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "runtime/cpu.h"

namespace fastattn {
namespace {

using MaybeArray = std::optional<py::array>;

Activation activation_of(const std::string& name) {
    const char* names[] = {"none", "gelu_erf", "gelu_tanh", "relu", "tanh", "silu"};
    for (int i = 0; i < 6; ++i)
        if (name == names[i]) return static_cast<Activation>(i);
    throw py::value_error("activation: unknown name " + name);
}

PoolKind pool_kind_of(const std::string& name) {
    const char* names[] = {"mean", "max", "mean_sqrt_len"};
    for (int i = 0; i < 3; ++i)
        if (name == names[i]) return static_cast<PoolKind>(i);
    throw py::value_error("kind: unknown name " + name);
}

// A float32 array of one or two dimensions whose rows are contiguous; the distance between rows is free.
struct Rows {
    float* data = nullptr;
    int64_t stride = 0;
    int rows = 0, n = 0;
};

Rows rows_of(const char* name, const py::array& a, int rows = -1, int n = -1) {
    const bool ok = a.dtype().is(py::dtype::of<float>()) && (a.ndim() == 1 || a.ndim() == 2);
    if (!ok) throw py::value_error(std::string(name) + ": expected a float32 array of one or two dimensions");
    const auto last = a.ndim() - 1;
    Rows r;
    r.rows = a.ndim() == 2 ? static_cast<int>(a.shape(0)) : 1;
    r.n = static_cast<int>(a.shape(last));
    r.stride = a.ndim() == 2 ? a.strides(0) / 4 : r.n;
    r.data = const_cast<float*>(static_cast<const float*>(a.data()));
    if (r.n > 1 && a.strides(last) != 4) throw py::value_error(std::string(name) + ": rows must be contiguous");
    if ((rows >= 0 && r.rows != rows) || (n >= 0 && r.n != n))
        throw py::value_error(std::string(name) + ": expected [" + std::to_string(rows) + ", " + std::to_string(n) +
                              "], got [" + std::to_string(r.rows) + ", " + std::to_string(r.n) + "]");
    return r;
}

Rows rows_of(const char* name, const MaybeArray& a, int rows, int n) {
    return a ? rows_of(name, *a, rows, n) : Rows{};
}

py::array_t<float> matrix(int rows, int n) {
    return py::array_t<float>(std::vector<py::ssize_t>{rows, n});
}

py::array linear_f32(const std::string& target, const py::array& a, const py::array& weight, const MaybeArray& bias,
                     const MaybeArray& residual, const std::string& activation) {
    const Rows x = rows_of("a", a);
    const Rows w = rows_of("weight", weight, -1, x.n);
    const Rows b = rows_of("bias", bias, 1, w.rows), r = rows_of("residual", residual, x.rows, w.rows);
    const int panels = (w.rows + kPanelWidth - 1) / kPanelWidth;
    std::vector<float> packed(static_cast<size_t>(panels) * x.n * kPanelWidth), scratch(kLinearScratch);
    for (int j = 0; j < w.rows; ++j)
        for (int k = 0; k < x.n; ++k)
            packed[(static_cast<size_t>(j / kPanelWidth) * x.n + k) * kPanelWidth + j % kPanelWidth] =
                w.data[j * w.stride + k];
    auto out = matrix(x.rows, w.rows);
    kernels_of(target).linear_f32({.a = x.data,
                                   .a_stride = x.stride,
                                   .panels = packed.data(),
                                   .bias = b.data,
                                   .residual = r.data,
                                   .residual_stride = r.stride,
                                   .c = out.mutable_data(),
                                   .c_stride = w.rows,
                                   .scratch = scratch.data(),
                                   .next_panel = nullptr,
                                   .m = x.rows,
                                   .k = x.n,
                                   .n = w.rows,
                                   .panel_begin = 0,
                                   .panel_end = panels,
                                   .activation = activation_of(activation)});
    return out;
}

py::array layer_norm_f32(const std::string& target, const py::array& x, const MaybeArray& weight,
                         const MaybeArray& bias, float eps) {
    const Rows in = rows_of("x", x);
    auto out = matrix(in.rows, in.n);
    kernels_of(target).layer_norm_f32({.x = in.data,
                                       .x_stride = in.stride,
                                       .weight = rows_of("weight", weight, 1, in.n).data,
                                       .bias = rows_of("bias", bias, 1, in.n).data,
                                       .out = out.mutable_data(),
                                       .out_stride = in.n,
                                       .rows = in.rows,
                                       .n = in.n,
                                       .eps = eps});
    return out;
}

// blocks [n_blocks, 2 * kBlockLen * head_dim]: keys, then values
std::vector<float*> blocks_of(const py::array& blocks, int head_dim, int64_t positions) {
    const Rows r = rows_of("blocks", blocks, -1, 2 * kBlockLen * head_dim);
    if (positions > int64_t{r.rows} * kBlockLen) throw py::value_error("blocks: too few for the positions");
    std::vector<float*> pointers;
    for (int i = 0; i < r.rows; ++i) pointers.push_back(r.data + i * r.stride);
    return pointers;
}

void kv_store_f32(const std::string& target, const py::array& k, const py::array& v, const py::array& blocks,
                  int position) {
    const Rows keys = rows_of("k", k), values = rows_of("v", v, keys.rows, keys.n);
    const auto pointers = blocks_of(blocks, keys.n, int64_t{position} + keys.rows);
    kernels_of(target).kv_store_f32({.k = keys.data,
                                     .v = values.data,
                                     .k_stride = keys.stride,
                                     .v_stride = values.stride,
                                     .blocks = pointers.data(),
                                     .k_offset = 0,
                                     .v_offset = int64_t{kBlockLen} * keys.n,
                                     .rows = keys.rows,
                                     .position = position,
                                     .head_dim = keys.n});
}

struct AttentionCall {
    std::vector<float*> blocks;
    std::vector<float> scratch = std::vector<float>(kAttentionScratch);
    AttentionF32Args args;
};

AttentionCall attention_call(const py::array& q, const py::array& blocks, int kv_len, int q_position, bool causal,
                             float scale, const MaybeArray& mask) {
    const Rows queries = rows_of("q", q), m = rows_of("mask", mask, queries.rows, kv_len);
    if (queries.n > kMaxHeadDim) throw py::value_error("q: head_dim is too large");
    AttentionCall call{.blocks = blocks_of(blocks, queries.n, kv_len), .args = {}};
    call.args = {.q = queries.data,
                 .q_stride = queries.stride,
                 .blocks = call.blocks.data(),
                 .k_offset = 0,
                 .v_offset = int64_t{kBlockLen} * queries.n,
                 .mask = m.data,
                 .mask_stride = m.stride,
                 .out = nullptr,
                 .out_stride = 0,
                 .scratch = call.scratch.data(),
                 .q_len = queries.rows,
                 .q_position = q_position,
                 .kv_len = kv_len,
                 .head_dim = queries.n,
                 .causal = causal,
                 .scale = scale};
    return call;
}

py::array attention_f32(const std::string& target, const py::array& q, const py::array& blocks, int kv_len,
                        int q_position, bool causal, float scale, const MaybeArray& mask) {
    AttentionCall call = attention_call(q, blocks, kv_len, q_position, causal, scale, mask);
    auto out = matrix(call.args.q_len, call.args.head_dim);
    call.args.out = out.mutable_data();
    call.args.out_stride = call.args.head_dim;
    kernels_of(target).attention_f32(call.args);
    return out;
}

py::array attention_probs_f32(const std::string& target, const py::array& q, const py::array& blocks, int kv_len,
                              int q_position, bool causal, float scale, const MaybeArray& mask) {
    AttentionCall call = attention_call(q, blocks, kv_len, q_position, causal, scale, mask);
    auto out = matrix(call.args.q_len, kv_len);
    call.args.out = out.mutable_data();
    call.args.out_stride = kv_len;
    kernels_of(target).attention_probs_f32({.attention = call.args});
    return out;
}

py::array softmax_f32(const std::string& target, const py::array& x, bool log) {
    const Rows in = rows_of("x", x);
    auto out = matrix(in.rows, in.n);
    kernels_of(target).softmax_f32({.x = in.data,
                                    .x_stride = in.stride,
                                    .out = out.mutable_data(),
                                    .out_stride = in.n,
                                    .rows = in.rows,
                                    .n = in.n,
                                    .log = log});
    return out;
}

py::array activation_f32(const std::string& target, const py::array& x, const std::string& activation) {
    const Rows in = rows_of("x", x, 1);
    py::array_t<float> out(in.n);
    kernels_of(target).activation_f32(
        {.x = in.data, .y = nullptr, .out = out.mutable_data(), .n = in.n, .activation = activation_of(activation)});
    return out;
}

py::array add_f32(const std::string& target, const py::array& x, const py::array& y) {
    const Rows a = rows_of("x", x, 1), b = rows_of("y", y, 1, a.n);
    py::array_t<float> out(a.n);
    kernels_of(target).add_f32(
        {.x = a.data, .y = b.data, .out = out.mutable_data(), .n = a.n, .activation = Activation::kNone});
    return out;
}

py::array pool_f32(const std::string& target, const py::array& x, const std::string& kind) {
    const Rows in = rows_of("x", x);
    py::array_t<float> out(in.n);
    kernels_of(target).pool_f32({.x = in.data,
                                 .x_stride = in.stride,
                                 .out = out.mutable_data(),
                                 .rows = in.rows,
                                 .n = in.n,
                                 .kind = pool_kind_of(kind)});
    return out;
}

py::array l2_normalize_f32(const std::string& target, const py::array& x, float eps) {
    const Rows in = rows_of("x", x);
    auto out = matrix(in.rows, in.n);
    kernels_of(target).l2_normalize_f32({.x = in.data,
                                         .x_stride = in.stride,
                                         .out = out.mutable_data(),
                                         .out_stride = in.n,
                                         .rows = in.rows,
                                         .n = in.n,
                                         .eps = eps});
    return out;
}

py::tuple argmax_f32(const std::string& target, const py::array& x) {
    const Rows in = rows_of("x", x, 1);
    int32_t index = 0;
    float value = 0;
    kernels_of(target).argmax_f32({.x = in.data, .n = in.n, .index = &index, .value = &value});
    return py::make_tuple(index, value);
}

int32_t find_f32(const std::string& target, const py::array& x, float threshold) {
    const Rows in = rows_of("x", x, 1);
    return kernels_of(target).find_f32({.x = in.data, .n = in.n, .threshold = threshold});
}

// (e^(x - shift), their sum, the sum when they are not written, its logarithm)
py::tuple exp_sum_f32(const std::string& target, const py::array& x, float shift) {
    const Rows in = rows_of("x", x, 1);
    py::array_t<float> out(in.n);
    float sum = 0, log_sum = 0;
    kernels_of(target).exp_sum_f32(
        {.x = in.data, .out = out.mutable_data(), .n = in.n, .shift = shift, .sum = &sum, .log_sum = &log_sum});
    float sum_alone = 0;
    kernels_of(target).exp_sum_f32(
        {.x = in.data, .out = nullptr, .n = in.n, .shift = shift, .sum = &sum_alone, .log_sum = &log_sum});
    return py::make_tuple(out, sum, sum_alone, log_sum);
}

}  // namespace

void register_kernels(py::module_& module) {
    py::module_ m = module.def_submodule("kernels", "Single-thread kernels by target, for tests.");
    const py::arg target("target"), x("x"), q("q"), blocks("blocks"), kv_len("kv_len");
    const auto none = py::none();
    m.attr("BLOCK_LEN") = kBlockLen;
    m.def("targets", &available_targets, "Targets that this build has and this machine can run.");
    m.def("linear_f32", &linear_f32, target, py::arg("a"), py::arg("weight"), py::kw_only(), py::arg("bias") = none,
          py::arg("residual") = none, py::arg("activation") = "none");
    m.def("layer_norm_f32", &layer_norm_f32, target, x, py::kw_only(), py::arg("weight") = none, py::arg("bias") = none,
          py::arg("eps"));
    m.def("kv_store_f32", &kv_store_f32, target, py::arg("k"), py::arg("v"), blocks, py::kw_only(),
          py::arg("position"));
    m.def("attention_f32", &attention_f32, target, q, blocks, py::kw_only(), kv_len, py::arg("q_position") = 0,
          py::arg("causal") = false, py::arg("scale") = 1.0f, py::arg("mask") = none);
    m.def("attention_probs_f32", &attention_probs_f32, target, q, blocks, py::kw_only(), kv_len,
          py::arg("q_position") = 0, py::arg("causal") = false, py::arg("scale") = 1.0f, py::arg("mask") = none);
    m.def("softmax_f32", &softmax_f32, target, x, py::kw_only(), py::arg("log") = false);
    m.def("activation_f32", &activation_f32, target, x, py::kw_only(), py::arg("activation"));
    m.def("add_f32", &add_f32, target, x, py::arg("y"));
    m.def("pool_f32", &pool_f32, target, x, py::kw_only(), py::arg("kind"));
    m.def("l2_normalize_f32", &l2_normalize_f32, target, x, py::kw_only(), py::arg("eps"));
    m.def("argmax_f32", &argmax_f32, target, x);
    m.def("find_f32", &find_f32, target, x, py::kw_only(), py::arg("threshold"));
    m.def("exp_sum_f32", &exp_sum_f32, target, x, py::kw_only(), py::arg("shift"));
}

}  // namespace fastattn
