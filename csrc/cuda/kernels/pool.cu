// One vector per sequence: pooling over its rows, in order, and division by the norm. The bits are the CPU's
// (csrc/kernels/pool_f32.cpp).
#include "cuda/kernels/device_math.h"

namespace fastattn::cuda {
namespace {

constexpr int kPoolThreads = 128;

template <bool kMax>
FA_DEVICE float pool_column(const float* x, int64_t stride, int rows) {
    float result = x[0];
#pragma unroll 8
    for (int r = 1; r < rows; ++r) {
        const float next = x[r * stride];
        if constexpr (kMax)
            result = result != result ? result : math::max(result, next);  // NaN stays NaN
        else
            result += next;
    }
    return result;
}

FA_KERNEL(kPoolThreads)
pool(const PoolArgs args) {
    const int sequence = block_x(), i = block_y() * kPoolThreads + thread_id();
    if (sequence >= count_of(args.io.rows) || i >= args.io.width) return;
    const int begin = args.cu_seqlens[sequence], rows = args.cu_seqlens[sequence + 1] - begin;
    float pooled = 0.0f;
    if (rows > 0) {
        const float* x = args.io.x + begin * args.io.x_stride + i;
        if (args.kind == PoolKind::kMax)
            pooled = pool_column<true>(x, args.io.x_stride, rows);
        else
            pooled = pool_column<false>(x, args.io.x_stride, rows) /
                     (args.kind == PoolKind::kMean ? static_cast<float>(rows) : square_root(static_cast<float>(rows)));
    }
    write(args.io.out, sequence, i, args.io.width, pooled);
}

// Sixteen threads per row, one lane of the sum each.
FA_KERNEL(kPoolThreads)
l2_normalize(const L2NormalizeArgs args) {
    constexpr int kLanes = 16, kRows = kPoolThreads / kLanes;
    const int t = thread_id() % kLanes, count = count_of(args.io.rows);
    const int64_t row = int64_t{block_x()} * kRows + thread_id() / kLanes;
    if (int64_t{block_x()} * kRows >= count) return;
    const float* x = args.io.x + (row < count ? row : count - 1) * args.io.x_stride;  // all lanes take part in shuffles
    float squares = 0.0f;
    for (int i = t; i < args.io.width; i += kLanes) squares = math::fma(x[i], x[i], squares);
#pragma unroll
    for (int mask : {8, 4, 2, 1}) squares += shuffle_xor(squares, mask);
    if (row >= count) return;
    const float norm = square_root(squares);
    const float divisor = args.eps > norm ? args.eps : norm;  // a NaN norm stays NaN
    for (int i = t; i < args.io.width; i += kLanes) write(args.io.out, row, i, args.io.width, x[i] / divisor);
}

}  // namespace

void launch_pool(const PoolArgs& args, Stream stream) {
    launch("pool", pool, {args.io.rows.most, divide_up(args.io.width, kPoolThreads)}, kPoolThreads,
           /*shared_bytes=*/0, args, stream);
}

void launch_l2_normalize(const L2NormalizeArgs& args, Stream stream) {
    launch("l2_normalize", l2_normalize, {divide_up(args.io.rows.most, kPoolThreads / 16)}, kPoolThreads,
           /*shared_bytes=*/0, args, stream);
}

}  // namespace fastattn::cuda
