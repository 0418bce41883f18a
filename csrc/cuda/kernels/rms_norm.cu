// RMS norm with sixteen threads per row, or per head's part of one, and the CPU's bits.
#include "cuda/kernels/row_sum.h"

namespace fastattn::cuda {
namespace {

template <bool kFour>
FA_KERNEL(kNormThreads)
rms_norm(const RmsNormArgs args) {
    const int t = thread_id() % kRowThreads, n = args.io.width / args.groups;
    const int64_t part = int64_t{block_x()} * kRowsOfBlock + thread_id() / kRowThreads;
    const int64_t count = int64_t{count_of(args.io.rows)} * args.groups;
    if (int64_t{block_x()} * kRowsOfBlock >= count) return;
    // Threads without a part repeat the last one, because all lanes take part in shuffles.
    const int64_t own = part < count ? part : count - 1, row = own / args.groups;
    const int begin = static_cast<int>(own % args.groups) * n;
    const float* x = args.io.x + row * args.io.x_stride + begin;
    const float squares = sum_of_row</*kSquares=*/true, kFour>(x, n, /*center=*/0.0f, t);
    const float scale = 1.0f / square_root(squares / static_cast<float>(n) + args.eps);
    if (part >= count) return;
    if constexpr (kFour) {
        for (int i = 4 * t; i < n; i += kSums) {
            Four v = load_four(x + i);
#pragma unroll
            for (int c = 0; c < 4; ++c) v.x[c] = v.x[c] * scale * args.weight[i + c];
            write_four(args.io.out, row, begin + i, args.io.width, v);
        }
    } else {
        for (int i = t; i < n; i += kRowThreads)
            write(args.io.out, row, begin + i, args.io.width, x[i] * scale * args.weight[i]);
    }
}

}  // namespace

void launch_rms_norm(const RmsNormArgs& args, Stream stream) {
    const int32_t n = args.io.width / args.groups;
    const bool fours = by_four(args.io.x, args.io.x_stride) && by_four(args.io.out, n);
    const Grid grid{divide_up(int64_t{args.io.rows.most} * args.groups, kRowsOfBlock)};
    launch("rms_norm", fours ? rms_norm<true> : rms_norm<false>, grid, kNormThreads, /*shared_bytes=*/0, args, stream);
}

}  // namespace fastattn::cuda
