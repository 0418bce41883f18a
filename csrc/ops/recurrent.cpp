// lstm and gru: every sequence in its own order, without padding. All sequences take a step together; the product with
// the weights of the state is one linear over the rows of the sequences that are not at their end.
#include <algorithm>
#include <cstring>

#include "ops/ops.h"

namespace fastattn::ops {
namespace {

void copy(float* to, const float* from, int64_t n) {
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
}

// The states of the sequences, [n_sequences, .] each. A sequence has the row of its place in `order`.
struct States {
    View gates, h, c, y;

    States(const RecurrentOp& op, float* room) {
        const auto take = [&](int64_t width) {
            const View view{room, op.n_sequences, recurrent_stride(width), static_cast<int32_t>(width)};
            room += view.rows * view.stride;
            return view;
        };
        gates = take(op.x.width);
        h = take(op.width);
        c = op.gru ? h : take(op.hidden);
        y = op.projection.panels != nullptr ? take(op.hidden) : View{};
    }
};

// Some sequences that take their steps together: rows [first, first + count) of the states. All threads of the team
// work on them or, if `alone`, only the calling thread.
class Recurrence {
public:
    Recurrence(Team& team, const KernelTable& kernels, const RecurrentOp& op, bool alone)
        : team_(team), kernels_(kernels), op_(op), states_(op, op.room), alone_(alone) {}

    void run(int64_t first, int64_t count) {
        first_ = first;
        each(count, [&](int64_t i) { begin(i); });
        for (int32_t t = 0;; ++t) {
            while (count > 0 && length(first + count - 1) <= t) --count;
            if (count == 0) return;
            product(states_.h, states_.gates, op_.weights, op_.bias, count);
            each(count, [&](int64_t i) { cell(i, t); });
            if (op_.projection.panels == nullptr) continue;
            product(states_.y, states_.h, op_.projection, nullptr, count);
            each(count, [&](int64_t i) { finish(i, t); });
        }
    }

private:
    int32_t begin_of(int64_t i) const { return op_.begins != nullptr ? op_.begins[op_.order[i]] : op_.order[i]; }
    int32_t length(int64_t i) const {
        return op_.begins != nullptr ? op_.begins[op_.order[i] + 1] - op_.begins[op_.order[i]] : 1;
    }
    int64_t row(int64_t i, int32_t t) const { return begin_of(i) + (op_.reverse ? length(i) - 1 - t : t); }

    void begin(int64_t i) const {
        float *h = states_.h.row(i), *c = states_.c.row(i);
        if (op_.state.data == nullptr) {
            std::fill_n(h, op_.width, 0.0f);
            std::fill_n(c, op_.hidden, 0.0f);
            return;
        }
        const float* state = op_.state.row(op_.order[i]);
        copy(h, state, op_.width);
        if (!op_.gru) copy(c, state + op_.width, op_.hidden);
    }

    // Calls work(i) for the rows of the states, and waits for all threads.
    template <class F>
    void each(int64_t count, const F& work) {
        if (alone_) {
            for (int64_t i = first_; i < first_ + count; ++i) work(i);
            return;
        }
        team_.for_chunks(count, [&](int64_t i) { work(first_ + i); });
        team_.barrier();
    }

    void product(View x, View out, const Matrix& weights, const float* bias, int64_t count) {
        x.data = x.row(first_), out.data = out.row(first_);
        x.rows = out.rows = count;
        const LinearOp op{
            .x = x, .out = out, .weights = weights, .bias = bias, .quantized = op_.quantized, .scratch = op_.scratch};
        if (alone_) return linear_alone(team_.index(), kernels_, op);
        linear(team_, kernels_, op);
        team_.barrier();
    }

    void cell(int64_t i, int32_t t) const {
        float* out = op_.out.row(row(i, t));
        const bool projects = op_.projection.panels != nullptr;
        const CellF32Args args{.x = op_.x.row(row(i, t)),
                               .sums = states_.gates.row(i),
                               .state = states_.c.row(i),
                               .out = projects ? states_.y.row(i) : out,
                               .n = op_.hidden,
                               .clip = op_.cell_clip};
        if (op_.gru) return kernels_.gru_cell_f32(args);
        kernels_.lstm_cell_f32(args);
        if (!projects) copy(states_.h.row(i), out, op_.width);
        if (op_.cells) copy(out + op_.width, states_.c.row(i), op_.hidden);
    }

    void finish(int64_t i, int32_t t) const {
        float* h = states_.h.row(i);
        if (op_.projection_clip > 0.0f)
            kernels_.clip_f32({.x = h, .out = h, .n = op_.width, .clip = op_.projection_clip});
        copy(op_.out.row(row(i, t)), h, op_.width);
    }

    Team& team_;
    const KernelTable& kernels_;
    const RecurrentOp& op_;
    States states_;
    bool alone_;
    int64_t first_ = 0;
};

}  // namespace

int64_t recurrent_stride(int64_t width) {
    return (width + 15) / 16 * 16 + 16;
}

int64_t recurrent_room(int64_t n_sequences, int64_t gates, int64_t width, int64_t hidden) {
    return n_sequences *
           (recurrent_stride(gates) + recurrent_stride(width) + recurrent_stride(hidden) + recurrent_stride(hidden));
}

// If the weights are small, every thread takes some sequences for itself, because a step is not much longer than a
// barrier. Otherwise all threads share the weights in each step, which come from memory.
void recurrent(Team& team, const KernelTable& kernels, const RecurrentOp& op) {
    constexpr int64_t kSmallBytes = int64_t{2} << 20;
    const int64_t bytes = op.weights.count * op.weights.panel_bytes + op.projection.count * op.projection.panel_bytes;
    if (op.n_sequences == 0) return;
    int64_t most = most_alone(op.weights);
    if (op.projection.panels != nullptr) most = std::min(most, most_alone(op.projection));
    if (bytes > kSmallBytes || most < 1) return Recurrence(team, kernels, op, /*alone=*/false).run(0, op.n_sequences);
    const int64_t shares = int64_t{2} * team.size();
    const int64_t size = std::clamp<int64_t>((op.n_sequences + shares - 1) / shares, 1, most);
    team.for_chunks((op.n_sequences + size - 1) / size, [&](int64_t chunk) {
        const int64_t first = chunk * size;
        Recurrence(team, kernels, op, /*alone=*/true).run(first, std::min(size, op.n_sequences - first));
    });
}

void sequence_probs(Team& team, const KernelTable& kernels, const SequenceProbsOp& op) {
    team.for_chunks(op.queries.rows, [&](int64_t s) {
        const int32_t begin = op.begins[s], rows = op.begins[s + 1] - begin;
        float* scores = op.room + begin;
        kernels.query_scores_f32({.query = op.queries.row(s),
                                  .keys = op.keys.row(begin),
                                  .keys_stride = op.keys.stride,
                                  .weight = op.weight,
                                  .out = scores,
                                  .rows = rows,
                                  .n = op.keys.width});
        kernels.softmax_f32(
            {.x = scores, .x_stride = rows, .out = scores, .out_stride = rows, .rows = 1, .n = rows, .log = false});
        for (int32_t r = 0; r < rows; ++r) *op.out.row(begin + r) = scores[r];
    });
}

void weighted_sum(Team& team, const KernelTable& kernels, View weights, View x, View out, const int32_t* begins) {
    team.for_chunks(out.rows, [&](int64_t s) {
        kernels.weighted_sum_f32({.weights = weights.row(begins[s]),
                                  .weights_stride = weights.stride,
                                  .x = x.row(begins[s]),
                                  .x_stride = x.stride,
                                  .out = out.row(s),
                                  .rows = begins[s + 1] - begins[s],
                                  .n = x.width});
    });
}

}  // namespace fastattn::ops
