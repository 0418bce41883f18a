// Rotary position embeddings: a thread rotates one pair of a head, or copies one element that does not rotate. The bits
// are those of csrc/kernels/rotary_f32.cpp.
#include "cuda/kernels/device_math.h"

namespace fastattn::cuda {
namespace {

constexpr int kRotaryThreads = 128;

// A thread reads both elements of its pair before it writes either, so the result may be x.
FA_KERNEL(kRotaryThreads)
rotary(const RotaryArgs args) {
    const int half = args.dimensions / 2, items = args.head_dim - half;  // of a head
    const int row = block_x(), item = block_y() * kRotaryThreads + thread_id(), width = args.n_head * args.head_dim;
    if (row >= count_of(args.rows) || item >= args.n_head * items) return;
    const int head = item / items * args.head_dim, i = item % items;
    const float* x = args.x + row * args.x_stride;
    if (i >= half) return write(args.out, row, head + half + i, width, x[head + half + i]);
    const int first = args.interleaved ? 2 * i : i, second = args.interleaved ? first + 1 : half + i;
    const int token = args.tokens ? args.tokens[row] : row;  // below 0: the row of an empty sequence, which is 0
    const float* table = args.table + int64_t{token < 0 ? 0 : args.positions[token]} * args.table_stride;
    const float a = x[head + first], b = x[head + second], cosine = table[first], sine = table[second];
    write(args.out, row, head + first, width, math::fma(a, cosine, -(b * sine)));
    write(args.out, row, head + second, width, math::fma(b, cosine, a * sine));
}

}  // namespace

void launch_rotary(const RotaryArgs& args, Stream stream) {
    const int64_t items = int64_t{args.n_head} * (args.head_dim - args.dimensions / 2);
    launch("rotary", rotary, {args.rows.most, divide_up(items, kRotaryThreads)}, kRotaryThreads, /*shared_bytes=*/0,
           args, stream);
}

}  // namespace fastattn::cuda
