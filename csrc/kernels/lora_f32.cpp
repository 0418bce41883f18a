#include "kernels/kernel_list.h"
#include "simd/vec.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

// inner[0, kRanks) = the products of x with so many rows of `down`; each sum has sixteen lanes, which are then added.
template <int kRanks>
FA_INLINE void dot_rows(const float* x, const float* down, int k, float* inner) {
    Vec sums[kRanks];
    for (int r = 0; r < kRanks; ++r) sums[r] = zero();
    int i = 0;
    for (; i + kLanes <= k; i += kLanes) {
        const Vec v = load(x + i);
        for (int r = 0; r < kRanks; ++r) sums[r] = fma(v, load(down + int64_t{r} * k + i), sums[r]);
    }
    if (const int tail = k - i; tail > 0) {
        const Vec v = load_partial(x + i, tail);
        for (int r = 0; r < kRanks; ++r) sums[r] = fma(v, load_partial(down + int64_t{r} * k + i, tail), sums[r]);
    }
    for (int r = 0; r < kRanks; ++r) inner[r] = reduce_add(sums[r]);
}

// out[0, kVecs * 16) = y + the products of `inner` with as many columns of `up`, rank by rank.
template <int kVecs>
FA_INLINE void add_columns(const LoraF32Args& args, const float* inner, const float* up, const float* y, float* out) {
    Vec sums[kVecs];
    for (int v = 0; v < kVecs; ++v) sums[v] = load(y + v * kLanes);
    for (int r = 0; r < args.rank; ++r) {
        const Vec factor = broadcast(inner[r]);
        for (int v = 0; v < kVecs; ++v) sums[v] = fma(factor, load(up + int64_t{r} * args.n + v * kLanes), sums[v]);
    }
    for (int v = 0; v < kVecs; ++v) store(out + v * kLanes, sums[v]);
}

void add_tail(const LoraF32Args& args, const float* inner, const float* up, const float* y, float* out, int tail) {
    Vec sum = load_partial(y, tail);
    for (int r = 0; r < args.rank; ++r)
        sum = fma(broadcast(inner[r]), load_partial(up + int64_t{r} * args.n, tail), sum);
    store_partial(out, sum, tail);
}

}  // namespace

void lora_f32(const LoraF32Args& args) {
    constexpr int kRanks = 8, kVecs = 4;
    int rank = 0;
    for (; rank + kRanks <= args.rank; rank += kRanks)
        for (int row = 0; row < args.rows; ++row)
            dot_rows<kRanks>(args.x + row * args.x_stride, args.down + int64_t{rank} * args.k, args.k,
                             args.inner + int64_t{row} * args.rank + rank);
    for (; rank < args.rank; ++rank)
        for (int row = 0; row < args.rows; ++row)
            dot_rows<1>(args.x + row * args.x_stride, args.down + int64_t{rank} * args.k, args.k,
                        args.inner + int64_t{row} * args.rank + rank);
    const auto each_row = [&](int column, const auto& add) {
        for (int row = 0; row < args.rows; ++row)
            add(args.inner + int64_t{row} * args.rank, args.up + column, args.y + row * args.y_stride + column,
                args.out + row * args.out_stride + column);
    };
    int column = 0;
    for (; column + kVecs * kLanes <= args.n; column += kVecs * kLanes)
        each_row(column, [&](const float* inner, const float* up, const float* y, float* out) {
            add_columns<kVecs>(args, inner, up, y, out);
        });
    for (; column + kLanes <= args.n; column += kLanes)
        each_row(column, [&](const float* inner, const float* up, const float* y, float* out) {
            add_columns<1>(args, inner, up, y, out);
        });
    if (const int tail = args.n - column; tail > 0)
        each_row(column, [&](const float* inner, const float* up, const float* y, float* out) {
            add_tail(args, inner, up, y, out, tail);
        });
}

}  // namespace fastattn::FASTATTN_TARGET
