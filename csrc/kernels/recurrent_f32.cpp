// Cells of LSTM and GRU, and attention of one query per sequence (Bahdanau, Luong).
#include "kernels/kernel_list.h"
#include "kernels/math.h"
#include "simd/vec.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

// min(high, max(-high, x)); NaN stays NaN.
FA_INLINE Vec clipped(Vec x, float high) {
    return min(broadcast(high), max(broadcast(-high), x));
}

// Calls run(i, count) for up to sixteen elements at a time.
template <class F>
FA_INLINE void for_lanes(int n, const F& run) {
    for (int i = 0; i < n; i += kLanes) run(i, n - i < kLanes ? n - i : kLanes);
}

}  // namespace

void lstm_cell_f32(const CellF32Args& args) {
    const int n = args.n;
    for_lanes(n, [&](int i, int count) {
        const auto gate = [&](int g) {
            return add(load_partial(args.x + int64_t{g} * n + i, count),
                       load_partial(args.sums + int64_t{g} * n + i, count));
        };
        const Vec input = sigmoid(gate(0)), forget = sigmoid(gate(1)), fresh = tanh(gate(2)), output = sigmoid(gate(3));
        Vec c = fma(input, fresh, mul(forget, load_partial(args.state + i, count)));
        if (args.clip > 0.0f) c = clipped(c, args.clip);
        store_partial(args.state + i, c, count);
        store_partial(args.out + i, mul(output, tanh(c)), count);
    });
}

void gru_cell_f32(const CellF32Args& args) {
    const int n = args.n;
    for_lanes(n, [&](int i, int count) {
        const auto from_x = [&](int g) { return load_partial(args.x + int64_t{g} * n + i, count); };
        const auto from_h = [&](int g) { return load_partial(args.sums + int64_t{g} * n + i, count); };
        const Vec reset = sigmoid(add(from_x(0), from_h(0))), update = sigmoid(add(from_x(1), from_h(1)));
        const Vec fresh = tanh(fma(reset, from_h(2), from_x(2)));
        const Vec h = fma(update, sub(load_partial(args.state + i, count), fresh), fresh);
        store_partial(args.state + i, h, count);
        store_partial(args.out + i, h, count);
    });
}

void clip_f32(const ClipF32Args& args) {
    for_lanes(args.n, [&](int i, int count) {
        store_partial(args.out + i, clipped(load_partial(args.x + i, count), args.clip), count);
    });
}

void query_scores_f32(const QueryScoresF32Args& args) {
    for (int r = 0; r < args.rows; ++r) {
        const float* key = args.keys + r * args.keys_stride;
        const float *q = args.query, *v = args.weight;
        const auto part = [&](const float* p, int at, int count) { return load_partial(p + at, count); };
        Vec sum = zero();
        for_lanes(args.n, [&](int i, int count) {
            const Vec a = part(q, i, count), b = part(key, i, count);
            sum = v != nullptr ? fma(part(v, i, count), tanh(add(a, b)), sum) : fma(a, b, sum);
        });
        args.out[r] = reduce_add(sum);
    }
}

void weighted_sum_f32(const WeightedSumF32Args& args) {
    for_lanes(args.n, [&](int i, int count) {
        Vec sum = zero();
        for (int r = 0; r < args.rows; ++r)
            sum = fma(broadcast(args.weights[r * args.weights_stride]),
                      load_partial(args.x + r * args.x_stride + i, count), sum);
        store_partial(args.out + i, sum, count);
    });
}

}  // namespace fastattn::FASTATTN_TARGET
