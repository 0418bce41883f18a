// _core.kernels: every kernel of every target, only for tests/kernels.
#include "bindings/bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "program/names.h"
#include "runtime/cpu.h"
#include "weights/pack.h"

namespace fastattn {
namespace {

using MaybeArray = std::optional<py::array>;

Activation activation_of(const std::string& name) {
    return value_of(kActivationNames, name, "activation", ErrorKind::kInput);
}

// A float32 array of one or two dimensions with contiguous rows and any row stride.
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

// Packs weight [n, k] as a matrix of a format: by rows or, from a transposed copy, by columns.
Weight packed_matrix(const KernelTable& kernels, const Rows& w, Format format, bool transposed = false) {
    Weight weight;
    weight.use = WeightUse::kMatrix, weight.format = format, weight.rows = w.rows, weight.columns = w.n;
    allocate(weight, "weight", kernels);
    std::vector<float> values(static_cast<size_t>(w.rows) * static_cast<size_t>(w.n));
    for (int64_t j = 0; j < w.rows; ++j)
        for (int64_t p = 0; p < w.n; ++p) values[transposed ? p * w.rows + j : j * w.n + p] = w.data[j * w.stride + p];
    std::vector<float> room(static_cast<size_t>(pack_room(w.n)));
    if (transposed)
        pack_columns(values.data(), w.rows, w.rows, kernels, weight, 0);
    else
        pack_rows(values.data(), w.n, w.rows, kernels, weight, 0, room.data());
    return weight;
}

// Returns x as int32 words [rows, words], and scales [rows] (int8 only).
py::tuple quantize(const std::string& target, const py::array& x, const std::string& format) {
    const Rows in = rows_of("x", x);
    const Format kept = format_from(format);
    const int32_t words = words_of(kept, in.n);
    py::array_t<int32_t> out(
        {static_cast<py::ssize_t>(in.rows), static_cast<py::ssize_t>(ops::quantized_stride(words))});
    py::array_t<float> scales(static_cast<py::ssize_t>(in.rows));
    kernels_of(target).quantize[static_cast<int>(kept)]({.x = in.data,
                                                         .x_stride = in.stride,
                                                         .out = out.mutable_data(),
                                                         .out_stride = ops::quantized_stride(words),
                                                         .scales = scales.mutable_data(),
                                                         .rows = in.rows,
                                                         .n = in.n,
                                                         .words = words,
                                                         .offset = 0});
    return py::make_tuple(out[py::make_tuple(py::ellipsis(), py::slice(0, words, 1))], scales);
}

// Packs weight [n, k] in a format and returns it as floats.
py::array dequantized(const std::string& target, const py::array& weight, const std::string& format, bool transposed) {
    const Rows w = rows_of("weight", weight);
    const Weight packed = packed_matrix(kernels_of(target), w, format_from(format), transposed);
    auto out = matrix(w.rows, w.n);
    for (int j = 0; j < w.rows; ++j) read_row(packed, j, out.mutable_data(j));
    return out;
}

py::array linear(const std::string& target, const py::array& a, const py::array& weight, const MaybeArray& bias,
                 const MaybeArray& residual, const std::string& activation, const std::string& format,
                 bool bfloat16_output) {
    const Rows x = rows_of("a", a);
    const Rows w = rows_of("weight", weight, -1, x.n);
    const Rows b = rows_of("bias", bias, 1, w.rows), r = rows_of("residual", residual, x.rows, w.rows);
    const KernelTable& kernels = kernels_of(target);
    const Weight packed = packed_matrix(kernels, w, format_from(format));
    const ops::Matrix panels = packed.matrix();
    const int64_t stride = ops::quantized_stride(panels.words);
    std::vector<int32_t> words(static_cast<size_t>(x.rows * stride));
    std::vector<float> scales(static_cast<size_t>(x.rows)), scratch(kLinearScratch);
    const bool plain = packed.format == Format::kFloat32;
    if (!plain)
        ops::round_rows(kernels, {x.data, x.rows, x.stride, x.n}, 0, x.rows,
                        {packed.format, panels.words, {words.data(), scales.data()}});
    if (bfloat16_output && (packed.format != Format::kBfloat16 || w.rows % 16 != 0))
        throw py::value_error("bfloat16_output: expected format bfloat16 and a multiple of 16 columns");
    const py::array out = bfloat16_output ? py::array(py::array_t<uint16_t>({x.rows, w.rows})) : matrix(x.rows, w.rows);
    kernels.linear[static_cast<int>(packed.format)]({.a = plain ? static_cast<const void*>(x.data) : words.data(),
                                                     .a_stride = plain ? x.stride : stride,
                                                     .a_scales = scales.data(),
                                                     .panels = panels.panels,
                                                     .scales = panels.scales,
                                                     .sums = panels.sums,
                                                     .bias = b.data,
                                                     .residual = r.data,
                                                     .residual_stride = r.stride,
                                                     .c = static_cast<float*>(const_cast<void*>(out.data())),
                                                     .c_stride = bfloat16_output ? w.rows / 2 : w.rows,
                                                     .scratch = scratch.data(),
                                                     .m = x.rows,
                                                     .words = panels.words,
                                                     .n = w.rows,
                                                     .panel_begin = 0,
                                                     .panel_end = static_cast<int32_t>(panels.count),
                                                     .activation = activation_of(activation),
                                                     .c_bfloat16 = bfloat16_output});
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

// x [rows, groups * n] with weight [n]
py::array rms_norm_f32(const std::string& target, const py::array& x, const py::array& weight, float eps) {
    const Rows in = rows_of("x", x), w = rows_of("weight", weight, 1);
    if (w.n == 0 ? in.n != 0 : in.n % w.n != 0) throw py::value_error("weight: expected a divisor of the width of x");
    auto out = matrix(in.rows, in.n);
    kernels_of(target).rms_norm_f32({.x = in.data,
                                     .x_stride = in.stride,
                                     .weight = w.data,
                                     .out = out.mutable_data(),
                                     .out_stride = in.n,
                                     .rows = in.rows,
                                     .groups = w.n == 0 ? 0 : in.n / w.n,
                                     .n = w.n,
                                     .eps = eps});
    return out;
}

// y [rows, n] + (x [rows, k] down^T [k, rank]) up [rank, n]
py::array lora_f32(const std::string& target, const py::array& x, const py::array& down, const py::array& up,
                   const py::array& y) {
    const Rows in = rows_of("x", x), of_down = rows_of("down", down), of_up = rows_of("up", up), to = rows_of("y", y);
    if (of_down.n != in.n || of_up.rows != of_down.rows || to.rows != in.rows || of_up.n != to.n)
        throw py::value_error("expected x [rows, k], down [rank, k], up [rank, n] and y [rows, n]");
    auto out = matrix(to.rows, to.n);
    std::vector<float> inner(static_cast<size_t>(in.rows) * static_cast<size_t>(of_down.rows));
    kernels_of(target).lora_f32({.x = in.data,
                                 .x_stride = in.stride,
                                 .down = of_down.data,
                                 .up = of_up.data,
                                 .y = to.data,
                                 .y_stride = to.stride,
                                 .out = out.mutable_data(),
                                 .out_stride = to.n,
                                 .inner = inner.data(),
                                 .rows = in.rows,
                                 .rank = of_down.rows,
                                 .k = in.n,
                                 .n = to.n});
    return out;
}

// With in_place the result is x.
py::array rotary_f32(const std::string& target, const py::array& x, const py::array& table, const py::array& positions,
                     int n_head, bool interleaved, bool in_place) {
    const Rows in = rows_of("x", x), t = rows_of("table", table);
    if (!py::isinstance<py::array_t<int32_t>>(positions) || !(positions.flags() & py::array::c_style) ||
        positions.ndim() != 1 || positions.shape(0) != in.rows)
        throw py::value_error("positions: expected C-contiguous int32 [" + std::to_string(in.rows) + "]");
    const auto* rows = static_cast<const int32_t*>(positions.data());
    for (int r = 0; r < in.rows; ++r)
        if (rows[r] < 0 || rows[r] >= t.rows) throw py::value_error("positions: expected rows of the table");
    if (t.stride != t.n || n_head < 1 || in.n % n_head != 0 || t.n % 2 != 0 || t.n > in.n / n_head)
        throw py::value_error("x, table, n_head: expected [rows, n_head * head_dim] and [positions, dimensions]");
    const py::array out = in_place ? x : py::array(matrix(in.rows, in.n));
    kernels_of(target).rotary_f32({.x = in.data,
                                   .x_stride = in.stride,
                                   .table = t.data,
                                   .positions = rows,
                                   .out = static_cast<float*>(const_cast<void*>(out.data())),
                                   .out_stride = in_place ? in.stride : in.n,
                                   .rows = in.rows,
                                   .n_head = n_head,
                                   .head_dim = in.n / n_head,
                                   .dimensions = t.n,
                                   .interleaved = interleaved});
    return out;
}

// blocks: bytes [n_blocks, heads * kv_head_bytes]
std::vector<std::byte*> blocks_of(const py::array& blocks, Format format, int heads, int head_dim, int64_t positions) {
    const int64_t bytes = heads * kv_head_layout(format, head_dim).bytes;
    if (!py::isinstance<py::array_t<uint8_t>>(blocks) || blocks.ndim() != 2 || blocks.shape(1) != bytes ||
        !(blocks.flags() & py::array::c_style))
        throw py::value_error("blocks: expected C-contiguous uint8 [n, " + std::to_string(bytes) + "]");
    if (head_dim > kMaxHeadDim) throw py::value_error("head_dim is too large");
    if (positions > blocks.shape(0) * kBlockLen) throw py::value_error("blocks: too few for the positions");
    auto* data = static_cast<std::byte*>(const_cast<void*>(blocks.data()));
    std::vector<std::byte*> pointers;
    for (py::ssize_t i = 0; i < blocks.shape(0); ++i) pointers.push_back(data + i * bytes);
    return pointers;
}

void kv_store(const std::string& target, const py::array& k, const py::array& v, const py::array& blocks, int position,
              const std::string& format) {
    const Rows keys = rows_of("k", k), values = rows_of("v", v, keys.rows, keys.n);
    const Format kept = kv_format_from(format);
    const auto pointers = blocks_of(blocks, kept, 1, keys.n, int64_t{position} + keys.rows);
    kernels_of(target).kv_store[static_cast<int>(kept)]({.k = keys.data,
                                                         .v = values.data,
                                                         .k_stride = keys.stride,
                                                         .v_stride = values.stride,
                                                         .blocks = pointers.data(),
                                                         .rows = keys.rows,
                                                         .position = position,
                                                         .head_dim = keys.n});
}

// attention [q_len, head_dim], or its probs [q_len, kv_len]. bias [1, or a row per
// head, columns]: a column for each relative position, up to 0 if causal, otherwise as many above 0 as below.
template <bool kProbs>
py::array attention(const std::string& target, const py::array& q, const py::array& blocks, int kv_len, int q_position,
                    bool causal, float scale, const MaybeArray& mask, const std::string& format, int rows_per_head,
                    int window, const MaybeArray& bias, float softcap) {
    const Rows queries = rows_of("q", q), m = rows_of("mask", mask, queries.rows, kv_len);
    const Format kept = kv_format_from(format);
    if (mask && kept != Format::kFloat32) throw py::value_error("mask: only with float32");
    if (rows_per_head < 0 || (rows_per_head > 0 && queries.rows % rows_per_head != 0))
        throw py::value_error("rows_per_head: expected a divisor of the rows");
    const int heads = rows_per_head > 0 ? queries.rows / rows_per_head : 1;
    if (window < 0) throw py::value_error("window: expected at least 0");
    if (softcap != 0.0f && (mask || bias)) throw py::value_error("softcap: only without mask and bias");
    const Rows biases = rows_of("bias", bias, rows_per_head > 0 ? queries.rows : 1, -1);
    const int bias_positions = causal ? biases.n : (biases.n + 1) / 2;
    if (bias && bias_positions < kv_len) throw py::value_error("bias: expected one for each relative position");
    const auto pointers = blocks_of(blocks, kept, heads, queries.n, kv_len);
    std::vector<float> scratch(kAttentionScratch);
    auto out = matrix(queries.rows, kProbs ? kv_len : queries.n);
    const KernelTable& kernels = kernels_of(target);
    (kProbs ? kernels.attention_probs
            : kernels.attention)[static_cast<int>(kept)]({.q = queries.data,
                                                          .q_stride = queries.stride,
                                                          .blocks = pointers.data(),
                                                          .mask = m.data,
                                                          .mask_stride = m.stride,
                                                          .out = out.mutable_data(),
                                                          .out_stride = kProbs ? kv_len : queries.n,
                                                          .scratch = scratch.data(),
                                                          .q_len = queries.rows,
                                                          .q_position = q_position,
                                                          .kv_len = kv_len,
                                                          .head_dim = queries.n,
                                                          .rows_per_head = rows_per_head,
                                                          .causal = causal,
                                                          .scale = scale,
                                                          .window = window,
                                                          .bias = bias ? biases.data + bias_positions - 1 : nullptr,
                                                          .bias_stride = biases.stride,
                                                          .softcap = softcap});
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

py::array activation_f32(const std::string& target, const py::array& x, const std::string& activation, bool rough) {
    const Rows in = rows_of("x", x, 1);
    py::array_t<float> out(in.n);
    kernels_of(target).activation_f32(
        {.x = in.data, .out = out.mutable_data(), .n = in.n, .activation = activation_of(activation), .rough = rough});
    return out;
}

// add_f32 or multiply_f32
template <void (*KernelTable::*kKernel)(const ElementwiseF32Args&)>
py::array combine(const std::string& target, const py::array& x, const py::array& y) {
    const Rows a = rows_of("x", x, 1), b = rows_of("y", y, 1, a.n);
    py::array_t<float> out(a.n);
    (kernels_of(target).*kKernel)({.x = a.data, .y = b.data, .out = out.mutable_data(), .n = a.n});
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
                                 .kind = value_of(kPoolNames, kind, "kind", ErrorKind::kInput)});
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

// (e^(x - shift), their sum, the sum if they are not written, the logarithm of the sum)
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

// One step of a cell: (output, new state).
template <auto kernel, int gates>
py::tuple cell(const std::string& target, const py::array& x, const py::array& sums, const py::array& state,
               float clip) {
    const Rows in = rows_of("x", x, 1), added = rows_of("sums", sums, 1, in.n);
    const Rows before = rows_of("state", state, 1, in.n / gates);
    py::array_t<float> out(before.n), after(before.n);
    std::copy(before.data, before.data + before.n, after.mutable_data());
    (kernels_of(target).*kernel)({.x = in.data,
                                  .sums = added.data,
                                  .state = after.mutable_data(),
                                  .out = out.mutable_data(),
                                  .n = before.n,
                                  .clip = clip});
    return py::make_tuple(out, after);
}

py::array clip_f32(const std::string& target, const py::array& x, float clip) {
    const Rows in = rows_of("x", x, 1);
    py::array_t<float> out(in.n);
    kernels_of(target).clip_f32({.x = in.data, .out = out.mutable_data(), .n = in.n, .clip = clip});
    return out;
}

py::array query_scores_f32(const std::string& target, const py::array& query, const py::array& keys,
                           const MaybeArray& weight) {
    const Rows rows = rows_of("keys", keys), q = rows_of("query", query, 1, rows.n);
    const Rows w = rows_of("weight", weight, 1, rows.n);
    py::array_t<float> out(rows.rows);
    kernels_of(target).query_scores_f32({.query = q.data,
                                         .keys = rows.data,
                                         .keys_stride = rows.stride,
                                         .weight = w.data,
                                         .out = out.mutable_data(),
                                         .rows = rows.rows,
                                         .n = rows.n});
    return out;
}

py::array weighted_sum_f32(const std::string& target, const py::array& weights, const py::array& x) {
    const Rows rows = rows_of("x", x), w = rows_of("weights", weights, 1, rows.rows);
    py::array_t<float> out(rows.n);
    kernels_of(target).weighted_sum_f32({.weights = w.data,
                                         .weights_stride = 1,
                                         .x = rows.data,
                                         .x_stride = rows.stride,
                                         .out = out.mutable_data(),
                                         .rows = rows.rows,
                                         .n = rows.n});
    return out;
}

}  // namespace

void register_kernels(py::module_& module) {
    py::module_ m = module.def_submodule("kernels", "Single-thread kernels by target, for tests.");
    const py::arg target("target"), x("x"), q("q"), blocks("blocks"), kv_len("kv_len");
    const auto none = py::none();
    m.attr("BLOCK_LEN") = kBlockLen;
    m.def("targets", &available_targets, "Targets that are built and that this machine can run.");
    m.def("linear", &linear, target, py::arg("a"), py::arg("weight"), py::kw_only(), py::arg("bias") = none,
          py::arg("residual") = none, py::arg("activation") = "none", py::arg("format") = "float32",
          py::arg("bfloat16_output") = false);
    m.def("quantize", &quantize, target, x, py::arg("format"));
    m.def("dequantized", &dequantized, target, py::arg("weight"), py::arg("format"), py::kw_only(),
          py::arg("transposed") = false);
    m.def("layer_norm_f32", &layer_norm_f32, target, x, py::kw_only(), py::arg("weight") = none, py::arg("bias") = none,
          py::arg("eps"));
    m.def("lora_f32", &lora_f32, target, x, py::arg("down"), py::arg("up"), py::arg("y"));
    m.def("rms_norm_f32", &rms_norm_f32, target, x, py::arg("weight"), py::kw_only(), py::arg("eps"));
    m.def("rotary_f32", &rotary_f32, target, x, py::arg("table"), py::arg("positions"), py::kw_only(),
          py::arg("n_head"), py::arg("interleaved") = false, py::arg("in_place") = false);
    m.def("kv_head_bytes",
          [](const std::string& name, int head_dim) { return kv_head_layout(kv_format_from(name), head_dim).bytes; });
    m.def("kv_store", &kv_store, target, py::arg("k"), py::arg("v"), blocks, py::kw_only(), py::arg("position"),
          py::arg("format") = "float32");
    for (const auto& [name, kernel] :
         {std::pair{"attention", &attention<false>}, std::pair{"attention_probs", &attention<true>}})
        m.def(name, kernel, target, q, blocks, py::kw_only(), kv_len, py::arg("q_position") = 0,
              py::arg("causal") = false, py::arg("scale") = 1.0f, py::arg("mask") = none, py::arg("format") = "float32",
              py::arg("rows_per_head") = 0, py::arg("window") = 0, py::arg("bias") = none, py::arg("softcap") = 0.0f);
    m.def("softmax_f32", &softmax_f32, target, x, py::kw_only(), py::arg("log") = false);
    m.def("activation_f32", &activation_f32, target, x, py::kw_only(), py::arg("activation"), py::arg("rough") = false);
    m.def("add_f32", &combine<&KernelTable::add_f32>, target, x, py::arg("y"));
    m.def("multiply_f32", &combine<&KernelTable::multiply_f32>, target, x, py::arg("y"));
    m.def("pool_f32", &pool_f32, target, x, py::kw_only(), py::arg("kind"));
    m.def("l2_normalize_f32", &l2_normalize_f32, target, x, py::kw_only(), py::arg("eps"));
    const py::arg sums("sums"), state("state");
    m.def("lstm_cell_f32", &cell<&KernelTable::lstm_cell_f32, 4>, target, x, sums, state, py::arg("clip") = 0.0f);
    m.def("gru_cell_f32", &cell<&KernelTable::gru_cell_f32, 3>, target, x, sums, state, py::arg("clip") = 0.0f);
    m.def("clip_f32", &clip_f32, target, x, py::kw_only(), py::arg("clip"));
    m.def("query_scores_f32", &query_scores_f32, target, py::arg("query"), py::arg("keys"), py::kw_only(),
          py::arg("weight") = none);
    m.def("weighted_sum_f32", &weighted_sum_f32, target, py::arg("weights"), x);
    m.def("argmax_f32", &argmax_f32, target, x);
    m.def("find_f32", &find_f32, target, x, py::kw_only(), py::arg("threshold"));
    m.def("exp_sum_f32", &exp_sum_f32, target, x, py::kw_only(), py::arg("shift"));
}

}  // namespace fastattn
