// The run function of every kind of op. A kind without one does not compile (see run_op).
#include "program/run_op.h"

#include <algorithm>
#include <cstring>

#include "program/op_kind.h"
#include "weights/adapter.h"

namespace fastattn {
namespace {

void run(const SliceAttrs&, const OpRun&) {}

void run(const EmbeddingAttrs& attrs, const OpRun& op) {
    const Weight& table = op.weight(0);
    const View out = op.out();
    const int32_t* index = index_of(op.step, attrs.index);
    op.team.for_chunks(out.rows,
                       [&](int64_t i) { read_row(table, (index ? index[i] : 0) + attrs.offset, out.row(i)); });
}

void run(const AddAttrs&, const OpRun& op) {
    ops::combine(op.team, op.model.kernels.add_f32, op.in(0), op.in(1), op.out());
}

void run(const MultiplyAttrs&, const OpRun& op) {
    ops::combine(op.team, op.model.kernels.multiply_f32, op.in(0), op.in(1), op.out());
}

// A row of the second input is always the weight.
void run(const ScaleAttrs&, const OpRun& op) {
    const View x = op.in(0);
    const View factors{.data = const_cast<float*>(op.vector(0)), .rows = x.rows, .stride = 0, .width = x.width};
    ops::combine(op.team, op.model.kernels.multiply_f32, x, factors, op.out());
}

void run(const ActivationAttrs& attrs, const OpRun& op) {
    ops::activation(op.team, op.model.kernels, op.in(0), op.out(), attrs.activation, attrs.rough);
}

void run(const LayerNormAttrs& attrs, const OpRun& op) {
    ops::layer_norm(op.team, op.model.kernels, op.in(0), op.out(), op.vector(0), op.vector(1), attrs.eps, op.rounded());
}

void run(const RmsNormAttrs& attrs, const OpRun& op) {
    ops::rms_norm(op.team, op.model.kernels, op.in(0), op.out(), op.vector(0), attrs.groups, attrs.eps, op.rounded());
}

void run(const RotaryAttrs& attrs, const OpRun& op) {
    ops::rotary(op.team, op.model.kernels,
                {.x = op.in(0),
                 .out = op.out(),
                 .table = op.vector(0),
                 .positions = op.memory.positions(attrs.rows),
                 .n_head = attrs.n_head,
                 .head_dim = attrs.head_dim,
                 .dimensions = attrs.dimensions,
                 .interleaved = attrs.interleaved});
}

void run(const L2NormalizeAttrs& attrs, const OpRun& op) {
    ops::l2_normalize(op.team, op.model.kernels, op.in(0), op.out(), attrs.eps);
}

void run(const LinearAttrs& attrs, const OpRun& op) {
    const Plan& plan = op.model.plan;
    const Rounding& rounding = plan.rounding(op.index);
    const int32_t next = plan.next_linear(op.index);
    const bool draws = plan.sampled_op() == static_cast<int32_t>(op.index);
    ops::linear(op.team, op.model.kernels,
                {.x = op.in(0),
                 .out = op.out(),
                 .weights = op.weight(0).matrix(),
                 .next = next < 0 ? ops::Matrix{} : op.model.weights[op.model.spec.ops[next].weights[0]]->matrix(),
                 .bias = attrs.has_bias ? op.vector(1) : nullptr,
                 .residual = attrs.has_residual ? op.in(1) : View{},
                 .activation = attrs.activation,
                 .quantized = op.memory.quantized(rounding.input_buffer),
                 .x_rounded = rounding.input_done,
                 .rounded = op.rounded(),
                 .scratch = op.memory.scratch(),
                 .sink = draws ? op.sampler : nullptr});
}

// A chunk is some rows of one sequence. Its thread computes both products, so their rank-wide result stays in its
// cache.
void run(const LoraAttrs& attrs, const OpRun& op) {
    const View y = op.in(0), x = op.in(1), out = op.out();
    const ops::SequenceBlocks* sequences = op.memory.sequences(attrs.rows);
    const auto chunks_of = [&](int32_t s) {
        return (sequences[s].q_end - sequences[s].q_begin + ops::kLoraRows - 1) / ops::kLoraRows;
    };
    int64_t chunks = 0;
    for (int32_t s = 0; s < op.step.n_sequences; ++s) chunks += chunks_of(s);
    op.team.for_chunks(chunks, [&](int64_t chunk) {
        int32_t s = 0;
        for (; chunk >= chunks_of(s); ++s) chunk -= chunks_of(s);
        const int64_t first = sequences[s].q_begin + chunk * ops::kLoraRows;
        const int64_t rows = std::min<int64_t>(ops::kLoraRows, sequences[s].q_end - first);
        const Adapter* adapter = op.step.caches.empty() ? nullptr : op.step.caches[static_cast<size_t>(s)]->adapter();
        const AdapterPart* part = adapter != nullptr ? adapter->find(attrs.target) : nullptr;
        if (part != nullptr) {
            op.model.kernels.lora_f32({.x = x.row(first),
                                       .x_stride = x.stride,
                                       .down = part->down.floats(),
                                       .up = part->up.floats(),
                                       .y = y.row(first),
                                       .y_stride = y.stride,
                                       .out = out.row(first),
                                       .out_stride = out.stride,
                                       .inner = op.memory.scratch()[op.team.index()],
                                       .rows = static_cast<int32_t>(rows),
                                       .rank = part->rank,
                                       .k = part->in_features,
                                       .n = part->out_features});
        } else if (out.data != y.data) {
            for (int64_t i = first; i < first + rows; ++i)
                std::memcpy(out.row(i), y.row(i), static_cast<size_t>(out.width) * sizeof(float));
        }
    });
}

void run(const GatherRowsAttrs& attrs, const OpRun& op) {
    const View x = op.in(0), out = op.out();
    const int32_t *tokens = op.memory.query_tokens(attrs.which), *cu_seqlens = op.step.cu_seqlens;
    op.team.for_chunks(out.rows, [&](int64_t i) {
        const bool empty = attrs.which != Gather::kWanted && cu_seqlens[i] == cu_seqlens[i + 1];
        const size_t bytes = static_cast<size_t>(out.width) * sizeof(float);
        if (empty)
            std::memset(out.row(i), 0, bytes);
        else
            std::memcpy(out.row(i), x.row(tokens[i]), bytes);
    });
}

void run(const PoolAttrs& attrs, const OpRun& op) {
    const View x = op.in(0), out = op.out();
    op.team.for_chunks(out.rows, [&](int64_t s) {
        op.model.kernels.pool_f32({.x = x.row(op.step.cu_seqlens[s]),
                                   .x_stride = x.stride,
                                   .out = out.row(s),
                                   .rows = op.step.length(static_cast<int32_t>(s)),
                                   .n = x.width,
                                   .kind = attrs.pool});
    });
}

// Row i has the rows i - size / 2 to i + size / 2 of x next to each other; zeros outside of its sequence. Inside: the
// rows from i on, or the last ones of the sequence.
void run(const WindowRowsAttrs& attrs, const OpRun& op) {
    const View x = op.in(0), out = op.out();
    const int32_t* begins = op.step.cu_seqlens;
    const size_t bytes = static_cast<size_t>(x.width) * sizeof(float);
    op.team.for_chunks(out.rows, [&](int64_t i) {
        const int32_t* end = std::upper_bound(begins, begins + op.step.n_sequences, i);
        const int64_t first =
            attrs.inside ? std::max<int64_t>(end[-1], std::min<int64_t>(i, *end - attrs.size)) : i - attrs.size / 2;
        for (int64_t j = 0; j < attrs.size; ++j) {
            const int64_t row = first + j;
            float* to = out.row(i) + j * x.width;
            if (row < end[-1] || row >= *end)
                std::memset(to, 0, bytes);
            else
                std::memcpy(to, x.row(row), bytes);
        }
    });
}

void run(const FeaturesAttrs& attrs, const OpRun& op) {
    const float* from = op.step.features[static_cast<size_t>(attrs.index)].data;
    const View out = op.out();
    op.team.for_chunks(out.rows, [&](int64_t i) {
        std::memcpy(out.row(i), from + i * out.width, static_cast<size_t>(out.width) * sizeof(float));
    });
}

void run(const ConcatAttrs&, const OpRun& op) {
    const View a = op.in(0), b = op.in(1), out = op.out();
    op.team.for_chunks(out.rows, [&](int64_t i) {
        std::memcpy(out.row(i), a.row(i), static_cast<size_t>(a.width) * sizeof(float));
        std::memcpy(out.row(i) + a.width, b.row(i), static_cast<size_t>(b.width) * sizeof(float));
    });
}

// What lstm and gru share.
ops::RecurrentOp recurrent_of(const RecurrentAttrs& attrs, const OpRun& op) {
    const bool tokens = op.model.spec.in(op.op(), 0).rows == Rows::kTokens;
    return {.x = op.in(0),
            .out = op.out(),
            .state = attrs.has_state ? op.in(1) : View{},
            .weights = op.weight(0).matrix(),
            .bias = attrs.has_bias ? op.vector(1) : nullptr,
            .begins = tokens ? op.step.cu_seqlens : nullptr,
            .order = op.memory.by_length(),
            .n_sequences = op.step.n_sequences,
            .hidden = attrs.hidden,
            .width = attrs.hidden,
            .gru = true,
            .reverse = attrs.reverse,
            .quantized = op.memory.quantized(0),
            .room = op.memory.recurrent_room(),
            .scratch = op.memory.scratch()};
}

void run(const GruAttrs& attrs, const OpRun& op) {
    ops::recurrent(op.team, op.model.kernels, recurrent_of(attrs, op));
}

void run(const LstmAttrs& attrs, const OpRun& op) {
    ops::RecurrentOp args = recurrent_of(attrs, op);
    args.gru = false;
    args.width = attrs.width;
    args.cells = attrs.cells;
    args.cell_clip = attrs.cell_clip;
    args.projection_clip = attrs.projection_clip;
    if (attrs.has_projection) args.projection = op.weight(attrs.has_bias ? 2 : 1).matrix();
    ops::recurrent(op.team, op.model.kernels, args);
}

void run(const SequenceProbsAttrs& attrs, const OpRun& op) {
    ops::sequence_probs(op.team, op.model.kernels,
                        {.queries = op.in(0),
                         .keys = op.in(1),
                         .out = op.out(),
                         .weight = attrs.has_weight ? op.vector(0) : nullptr,
                         .begins = op.step.cu_seqlens,
                         .room = op.memory.recurrent_room()});
}

void run(const WeightedSumAttrs&, const OpRun& op) {
    ops::weighted_sum(op.team, op.model.kernels, op.in(0), op.in(1), op.out(), op.step.cu_seqlens);
}

ops::AttentionOp attention_of(const AttentionAttrs& attrs, const OpRun& op, View v) {
    const bool cached = !op.step.caches.empty();
    ops::PositionTables positions = position_tables(op.model, op.op());
    positions.room = op.memory.position_room();
    return {.q = op.in(0),
            .k = op.in(1),
            .v = v,
            .out = op.out(),
            .sequences = op.memory.sequences(attrs.q_rows),
            .query_tokens = op.memory.query_tokens(attrs.q_rows),
            .n_sequences = op.step.n_sequences,
            .n_head = attrs.n_head,
            .n_kv_head = attrs.n_kv_head,
            .head_dim = attrs.head_dim,
            .kv_format = op.model.kv.format,
            .block_offset = cached ? attrs.layer * op.model.kv.layer_bytes() : 0,
            .causal = attrs.causal,
            .scale = attrs.scale,
            .scratch = op.memory.scratch(),
            .thread_blocks = cached ? nullptr : op.memory.thread_blocks(),
            .window = attrs.window,
            .softcap = attrs.softcap,
            .bias = attrs.has_bias ? op.vector(0) + attrs.bias_positions - 1 : nullptr,
            .bias_stride = attrs.bias_columns(),
            .positions = positions,
            .rounded = op.rounded()};
}

void run(const AttentionAttrs& attrs, const OpRun& op) {
    ops::attention(op.team, op.model.kernels, attention_of(attrs, op, op.in(2)));
}

// Maps need no values. Keys stand in for them until the attention of the same layer stores both.
void run(const AttentionProbsAttrs& attrs, const OpRun& op) {
    ops::AttentionOp args = attention_of(attrs, op, op.in(1));
    args.probs = args.out.data;
    args.first_head = attrs.first_head;
    args.n_maps = attrs.n_maps;
    ops::attention_probs(op.team, op.model.kernels, args);
}

}  // namespace

ops::Rounded OpRun::rounded() const {
    const int32_t reader = model.plan.rounding(index).output_reader;
    if (reader < 0) return {};
    const ops::Matrix matrix = model.weights[model.spec.ops[reader].weights[0]]->matrix();
    return {.format = matrix.format,
            .words = matrix.words,
            .to = memory.quantized(model.plan.rounding(static_cast<size_t>(reader)).input_buffer)};
}

void run_op(const OpRun& op) {
    std::visit([&op](const auto& attrs) { run(attrs, op); }, op.op().attrs);
}

}  // namespace fastattn
