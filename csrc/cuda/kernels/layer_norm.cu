// Layer norm with sixteen threads per row and the CPU's bits.
#include "cuda/kernels/row_sum.h"

namespace fastattn::cuda {
namespace {

template <bool kFour>
FA_KERNEL(kNormThreads)
layer_norm(const LayerNormArgs args) {
    const int t = thread_id() % kRowThreads, n = args.io.width;
    const int64_t row = int64_t{block_x()} * kRowsOfBlock + thread_id() / kRowThreads;
    const int count = count_of(args.io.rows);
    if (int64_t{block_x()} * kRowsOfBlock >= count) return;
    // Threads without a row repeat the last one, because all lanes take part in shuffles.
    const float* x = args.io.x + (row < count ? row : count - 1) * args.io.x_stride;
    const float mean = sum_of_row<false, kFour>(x, n, 0.0f, t) / static_cast<float>(n);
    const float variance = sum_of_row<true, kFour>(x, n, mean, t) / static_cast<float>(n);
    const float scale = 1.0f / square_root(variance + args.eps);
    if (row >= count) return;
    const auto normalize = [&](float v, int i) {
        const float y = (v - mean) * scale;
        if (args.weight && args.bias) return math::fma(y, args.weight[i], args.bias[i]);
        if (args.weight) return y * args.weight[i];
        if (args.bias) return y + args.bias[i];
        return y;
    };
    if constexpr (kFour) {
        for (int i = 4 * t; i < n; i += kSums) {
            Four v = load_four(x + i);
#pragma unroll
            for (int c = 0; c < 4; ++c) v.x[c] = normalize(v.x[c], i + c);
            write_four(args.io.out, row, i, n, v);
        }
    } else {
        for (int i = t; i < n; i += kRowThreads) write(args.io.out, row, i, n, normalize(x[i], i));
    }
}

}  // namespace

void launch_layer_norm(const LayerNormArgs& args, Stream stream) {
    const bool fours = by_four(args.io.x, args.io.x_stride) && by_four(args.io.out, args.io.width);
    const Grid grid{divide_up(args.io.rows.most, kRowsOfBlock)};
    launch("layer_norm", fours ? layer_norm<true> : layer_norm<false>, grid, kNormThreads, /*shared_bytes=*/0, args,
           stream);
}

}  // namespace fastattn::cuda
