// Layer norm with sixteen threads per row. Each thread has a sixteenth of the row's sums. Element i is added to sum i
// mod 64, and the 64 sums are added by the tree of csrc/kernels/layer_norm_f32.cpp, so the bits are the CPU's.
#include "cuda/kernels/device_math.h"

namespace fastattn::cuda {
namespace {

constexpr int kNormThreads = 128;
constexpr int kRowThreads = 16;
constexpr int kSums = 64;  // four vectors of sixteen lanes
constexpr int kLanes = 16;

template <bool kFour>
FA_DEVICE Four columns(const float* p, int i) {
    if constexpr (kFour) return load_four(p + i);
    return {{p[i], p[i + 1], p[i + 2], p[i + 3]}};
}

template <bool kSquares>
FA_DEVICE void accumulate(float (&sum)[4], const Four& v, float center) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
        const float d = v.x[c] - center;
        sum[c] = kSquares ? math::fma(d, d, sum[c]) : sum[c] + v.x[c];
    }
}

// Sum of x [n], or of (x - center)^2. `t` is the thread's place in its row. All threads of the row get the result.
template <bool kSquares, bool kFour>
FA_DEVICE float sum_of_row(const float* x, int n, float center, int t) {
    float sum[4] = {};
    int i = 0;
#pragma unroll 4
    for (; i + kSums <= n; i += kSums) accumulate<kSquares>(sum, columns<kFour>(x, i + 4 * t), center);
    for (; i + kLanes <= n; i += kLanes)  // the remaining whole vectors go to the first vector of sums
        if (t < 4) accumulate<kSquares>(sum, columns<kFour>(x, i + 4 * t), center);
    if (i < n && t / 4 == 1) {  // a partial vector goes to the second
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            const int at = i + 4 * (t - 4) + c;
            if (at >= n) continue;
            const float d = x[at] - center;
            sum[c] = kSquares ? math::fma(d, d, sum[c]) : sum[c] + x[at];
        }
    }
#pragma unroll
    for (int mask : {4, 8, 2, 1})
#pragma unroll
        for (int c = 0; c < 4; ++c) sum[c] += shuffle_xor(sum[c], mask);
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

template <bool kFour>
FA_KERNEL(kNormThreads)
layer_norm(const LayerNormArgs args) {
    constexpr int kRows = kNormThreads / kRowThreads;
    const int t = thread_id() % kRowThreads, n = args.width;
    const int64_t row = int64_t{block_x()} * kRows + thread_id() / kRowThreads;
    const int count = count_of(args.rows);
    if (int64_t{block_x()} * kRows >= count) return;
    // Threads without a row repeat the last one, because all lanes take part in shuffles.
    const float* x = args.x + (row < count ? row : count - 1) * args.x_stride;
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
            write_four(args.out, row, i, n, v);
        }
    } else {
        for (int i = t; i < n; i += kRowThreads) write(args.out, row, i, n, normalize(x[i], i));
    }
}

}  // namespace

void launch_layer_norm(const LayerNormArgs& args, Stream stream) {
    const bool fours = by_four(args.x, args.x_stride) && by_four(args.out, args.width);
    const Grid grid{divide_up(args.rows.most, kNormThreads / kRowThreads)};
    launch("layer_norm", fours ? layer_norm<true> : layer_norm<false>, grid, kNormThreads, /*shared_bytes=*/0, args,
           stream);
}

}  // namespace fastattn::cuda
