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

class Recurrence {
public:
    Recurrence(Team& team, const KernelTable& kernels, const RecurrentOp& op)
        : team_(team), kernels_(kernels), op_(op), states_(op, op.room) {}

    void run() {
        team_.for_chunks(op_.n_sequences, [&](int64_t i) { begin(i); });
        team_.barrier();
        int64_t running = op_.n_sequences;
        for (int32_t t = 0;; ++t) {
            while (running > 0 && length(running - 1) <= t) --running;
            if (running == 0) return;
            product(states_.h, states_.gates, op_.weights, op_.bias, running);
            team_.for_chunks(running, [&](int64_t i) { cell(i, t); });
            team_.barrier();
            if (op_.projection.panels == nullptr) continue;
            product(states_.y, states_.h, op_.projection, nullptr, running);
            team_.for_chunks(running, [&](int64_t i) { finish(i, t); });
            team_.barrier();
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

    void product(View x, View out, const Matrix& weights, const float* bias, int64_t rows) const {
        x.rows = out.rows = rows;
        linear(
            team_, kernels_,
            {.x = x, .out = out, .weights = weights, .bias = bias, .quantized = op_.quantized, .scratch = op_.scratch});
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
};

}  // namespace

int64_t recurrent_stride(int64_t width) {
    return (width + 15) / 16 * 16 + 16;
}

int64_t recurrent_room(int64_t n_sequences, int64_t gates, int64_t width, int64_t hidden) {
    return n_sequences *
           (recurrent_stride(gates) + recurrent_stride(width) + recurrent_stride(hidden) + recurrent_stride(hidden));
}

void recurrent(Team& team, const KernelTable& kernels, const RecurrentOp& op) {
    if (op.n_sequences > 0) Recurrence(team, kernels, op).run();
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
