// Ops that process each row independently.
#include <algorithm>

#include "ops/ops.h"

namespace fastattn::ops {
namespace {

// Calls run(first_row, rows) for chunks of at most about ten thousand elements. Each takes microseconds, so threads
// share evenly. Few rows are split into two chunks per thread, but not below about a thousand elements, which take
// about as long as taking a chunk.
template <class F>
void for_rows(Team& team, const View& x, const F& run) {
    if (x.rows == 0 || x.width == 0) return;
    const int64_t most = std::max<int64_t>(1, 16384 / x.width), least = std::max<int64_t>(1, 1024 / x.width);
    const int64_t chunks = int64_t{2} * team.size();
    const int64_t rows = std::clamp((x.rows + chunks - 1) / chunks, least, most);
    team.for_chunks((x.rows + rows - 1) / rows, [&](int64_t chunk) {
        const int64_t first = chunk * rows;
        run(first, static_cast<int32_t>(std::min(rows, x.rows - first)));
    });
}

}  // namespace

void layer_norm(Team& team, const KernelTable& kernels, View x, View out, const float* weight, const float* bias,
                float eps, const Rounded& rounded) {
    for_rows(team, x, [&](int64_t first, int32_t rows) {
        kernels.layer_norm_f32({.x = x.row(first),
                                .x_stride = x.stride,
                                .weight = weight,
                                .bias = bias,
                                .out = out.row(first),
                                .out_stride = out.stride,
                                .rows = rows,
                                .n = x.width,
                                .eps = eps});
        if (rounded.format != Format::kFloat32) round_rows(kernels, out, first, rows, rounded);
    });
}

void rms_norm(Team& team, const KernelTable& kernels, View x, View out, const float* weight, int32_t groups, float eps,
              const Rounded& rounded) {
    for_rows(team, x, [&](int64_t first, int32_t rows) {
        kernels.rms_norm_f32({.x = x.row(first),
                              .x_stride = x.stride,
                              .weight = weight,
                              .out = out.row(first),
                              .out_stride = out.stride,
                              .rows = rows,
                              .groups = groups,
                              .n = x.width / groups,
                              .eps = eps});
        if (rounded.format != Format::kFloat32) round_rows(kernels, out, first, rows, rounded);
    });
}

void round_rows(const KernelTable& kernels, View x, int64_t first, int64_t rows, const Rounded& rounded) {
    const int64_t stride = quantized_stride(rounded.words);
    kernels.quantize[static_cast<int>(rounded.format)]({.x = x.row(first),
                                                        .x_stride = x.stride,
                                                        .out = rounded.to.words + first * stride,
                                                        .out_stride = stride,
                                                        .scales = rounded.to.scales + first,
                                                        .rows = static_cast<int32_t>(rows),
                                                        .n = x.width,
                                                        .words = rounded.words,
                                                        .offset = kernels.int8_offset});
}

void combine(Team& team, void (*kernel)(const ElementwiseF32Args&), View a, View b, View out) {
    for_rows(team, a, [&](int64_t first, int32_t rows) {
        for (int64_t i = first; i < first + rows; ++i)
            kernel({.x = a.row(i), .y = b.row(i), .out = out.row(i), .n = a.width});
    });
}

void rotary(Team& team, const KernelTable& kernels, const RotaryOp& op) {
    for_rows(team, op.x, [&](int64_t first, int32_t rows) {
        kernels.rotary_f32({.x = op.x.row(first),
                            .x_stride = op.x.stride,
                            .table = op.table,
                            .positions = op.positions + first,
                            .out = op.out.row(first),
                            .out_stride = op.out.stride,
                            .rows = rows,
                            .n_head = op.n_head,
                            .head_dim = op.head_dim,
                            .dimensions = op.dimensions,
                            .interleaved = op.interleaved});
    });
}

void activation(Team& team, const KernelTable& kernels, View x, View out, Activation kind, bool rough) {
    for_rows(team, x, [&](int64_t first, int32_t rows) {
        for (int64_t i = first; i < first + rows; ++i)
            kernels.activation_f32(
                {.x = x.row(i), .out = out.row(i), .n = x.width, .activation = kind, .rough = rough});
    });
}

void l2_normalize(Team& team, const KernelTable& kernels, View x, View out, float eps) {
    for_rows(team, x, [&](int64_t first, int32_t rows) {
        kernels.l2_normalize_f32({.x = x.row(first),
                                  .x_stride = x.stride,
                                  .out = out.row(first),
                                  .out_stride = out.stride,
                                  .rows = rows,
                                  .n = x.width,
                                  .eps = eps});
    });
}

}  // namespace fastattn::ops
