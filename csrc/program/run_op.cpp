// Runs one op of a Program on every thread of the region.
#include <algorithm>
#include <cstring>

#include "program/executor.h"

namespace fastattn {

void Executor::run_op(const OpSpec& op, Team& team, const StepInput& step, Sampler* sampler) const {
    const Rounding& rounding = roundings_[&op - spec_.ops.data()];
    const auto weight = [&](size_t i) { return weights_[op.weights[i]]->data.floats(); };
    switch (op.kind) {
        case OpKind::kSlice: return;
        case OpKind::kEmbedding: return embedding(op, team, step);
        case OpKind::kGatherRows: return gather_rows(op, team, step);
        case OpKind::kPool: return pool(op, team, step);
        case OpKind::kAttention:
        case OpKind::kAttentionProbs: return attention(op, team, step);
        case OpKind::kAdd: return ops::add(team, kernels_, view(op.inputs[0]), view(op.inputs[1]), view(op.output));
        case OpKind::kLayerNorm:
            return ops::layer_norm(team, kernels_, view(op.inputs[0]), view(op.output), weight(0), weight(1), op.eps,
                                   rounded(op));
        case OpKind::kActivation:
            return ops::activation(team, kernels_, view(op.inputs[0]), view(op.output), op.activation, op.rough);
        case OpKind::kL2Normalize:
            return ops::l2_normalize(team, kernels_, view(op.inputs[0]), view(op.output), op.eps);
        case OpKind::kLinear:
            return ops::linear(team, kernels_,
                               {.x = view(op.inputs[0]),
                                .out = view(op.output),
                                .weights = weights_[op.weights[0]]->matrix(),
                                .next = next_matrix(op),
                                .bias = op.has_bias ? weight(1) : nullptr,
                                .residual = op.has_residual ? view(op.inputs[1]) : View{},
                                .activation = op.activation,
                                .quantized = quantized_[rounding.input_buffer],
                                .x_rounded = rounding.input_done,
                                .rounded = rounded(op),
                                .scratch = scratch_.data(),
                                .sink = &op == sampled_op_ ? sampler : nullptr});
    }
}

ops::Rounded Executor::rounded(const OpSpec& op) const {
    const int32_t reader = roundings_[&op - spec_.ops.data()].output_reader;
    if (reader < 0) return {};
    const ops::Matrix matrix = weights_[spec_.ops[reader].weights[0]]->matrix();
    return {.format = matrix.format, .words = matrix.words, .to = quantized_[roundings_[reader].input_buffer]};
}

ops::Matrix Executor::next_matrix(const OpSpec& op) const {
    for (const OpSpec* next = &op + 1; next != spec_.ops.data() + spec_.ops.size(); ++next)
        if (next->kind == OpKind::kLinear) return weights_[next->weights[0]]->matrix();
    return {};
}

void Executor::embedding(const OpSpec& op, Team& team, const StepInput& step) const {
    const Weight& table = *weights_[op.weights[0]];
    const View out = view(op.output);
    const int32_t* index = index_of(step, op.index);
    team.for_chunks(out.rows,
                    [&](int64_t i) { read_row(table, (index ? index[i] : 0) + op.index_offset, out.row(i)); });
}

void Executor::gather_rows(const OpSpec& op, Team& team, const StepInput& step) const {
    const View x = view(op.inputs[0]), out = view(op.output);
    const int32_t* tokens = query_tokens_[static_cast<int>(op.gather)];
    team.for_chunks(out.rows, [&](int64_t i) {
        const bool empty = op.gather != Gather::kWanted && step.cu_seqlens[i] == step.cu_seqlens[i + 1];
        const size_t bytes = static_cast<size_t>(out.width) * sizeof(float);
        if (empty)
            std::memset(out.row(i), 0, bytes);
        else
            std::memcpy(out.row(i), x.row(tokens[i]), bytes);
    });
}

void Executor::pool(const OpSpec& op, Team& team, const StepInput& step) const {
    const View x = view(op.inputs[0]), out = view(op.output);
    team.for_chunks(out.rows, [&](int64_t s) {
        kernels_.pool_f32({.x = x.row(step.cu_seqlens[s]),
                           .x_stride = x.stride,
                           .out = out.row(s),
                           .rows = step.cu_seqlens[s + 1] - step.cu_seqlens[s],
                           .n = x.width,
                           .kind = op.pool});
    });
}

void Executor::attention(const OpSpec& op, Team& team, const StepInput& step) const {
    const bool probs = op.kind == OpKind::kAttentionProbs;
    const auto rows = static_cast<int>(op.gather);
    ops::AttentionOp args{
        .q = view(op.inputs[0]),
        .k = view(op.inputs[1]),
        // attention_probs has no values. It stores the keys twice, and the attention for it stores both again.
        .v = view(op.inputs[probs ? 1 : 2]),
        .out = view(op.output),
        .sequences = sequences_[rows].data(),
        .query_tokens = query_tokens_[rows],
        .n_sequences = step.n_sequences,
        .n_head = op.n_head,
        .n_kv_head = op.n_kv_head,
        .head_dim = op.head_dim,
        .kv_format = spec_.kv_format,
        .block_offset = step.caches.empty() ? 0 : op.layer * kv_pool_->shape().layer_bytes(),
        .causal = op.causal,
        .scale = op.scale,
        .scratch = scratch_.data(),
        .thread_blocks = step.caches.empty() ? thread_blocks_.data() : nullptr,
        .probs = probs ? view(op.output).data : nullptr};
    if (probs)
        ops::attention_probs(team, kernels_, args);
    else
        ops::attention(team, kernels_, args);
}

}  // namespace fastattn
