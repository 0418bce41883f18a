// The run function of every kind of op. A kind without one does not compile (see run_op).
#include "program/run_op.h"

#include <algorithm>
#include <cstring>

#include "program/op_kind.h"

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

// Row i has the rows i - size / 2 to i + size / 2 of x next to each other; zeros outside of its sequence.
void run(const WindowRowsAttrs& attrs, const OpRun& op) {
    const View x = op.in(0), out = op.out();
    const int32_t* begins = op.step.cu_seqlens;
    const size_t bytes = static_cast<size_t>(x.width) * sizeof(float);
    op.team.for_chunks(out.rows, [&](int64_t i) {
        const int32_t* end = std::upper_bound(begins, begins + op.step.n_sequences, i);
        for (int64_t j = 0; j < attrs.size; ++j) {
            const int64_t row = i + j - attrs.size / 2;
            float* to = out.row(i) + j * x.width;
            if (row < end[-1] || row >= *end)
                std::memset(to, 0, bytes);
            else
                std::memcpy(to, x.row(row), bytes);
        }
    });
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

// The output is the number of positions of each sequence.
void run(const StoreMemoryAttrs& attrs, const OpRun& op) {
    const View out = op.out();
    ops::store_memory(op.team, op.model.kernels,
                      {.q = {},
                       .k = op.in(0),
                       .v = op.in(1),
                       .out = {},
                       .sequences = op.memory.sequences(Gather::kTokens),
                       .query_tokens = nullptr,
                       .n_sequences = op.step.n_sequences,
                       .n_head = attrs.n_kv_head,
                       .n_kv_head = attrs.n_kv_head,
                       .head_dim = attrs.head_dim,
                       .kv_format = op.model.kv.format,
                       .block_offset = attrs.layer * op.model.kv.layer_bytes(),
                       .causal = false,
                       .scale = 1.0f,
                       .scratch = op.memory.scratch(),
                       .thread_blocks = nullptr});
    if (op.team.index() != 0) return;
    for (int32_t s = 0; s < op.step.n_sequences; ++s) *out.row(s) = static_cast<float>(op.step.length(s));
}

void run(const CrossAttentionAttrs& attrs, const OpRun& op) {
    ops::attention(op.team, op.model.kernels,
                   {.q = op.in(0),
                    .k = {},
                    .v = {},
                    .out = op.out(),
                    .sequences = op.memory.memories(attrs.rows),
                    .query_tokens = op.memory.query_tokens(attrs.rows),
                    .n_sequences = op.step.n_sequences,
                    .n_head = attrs.n_head,
                    .n_kv_head = attrs.n_kv_head,
                    .head_dim = attrs.head_dim,
                    .kv_format = op.model.kv.format,
                    .block_offset = attrs.layer * op.model.kv.layer_bytes(),
                    .causal = false,
                    .scale = attrs.scale,
                    .scratch = op.memory.scratch(),
                    .thread_blocks = nullptr});
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
