// Launches one op of a Program.
#include "cuda/executor.h"

namespace fastattn::cuda {

Rows Executor::rows(const Running& running, fastattn::Rows kind) const {
    return {running.of(running.layout.counts) + static_cast<int>(kind), running.sizes.rows(kind)};
}

Executor::View Executor::view(int32_t value, const Running& running) const {
    const Place& place = plan_->places()[static_cast<size_t>(value)];
    const auto parent = static_cast<size_t>(place.parent);
    const int32_t slot = plan_->places()[parent].slot;
    if (slot < 0) return {nullptr, 0};
    auto* data = reinterpret_cast<float*>(running.base + running.workspace.slots[static_cast<size_t>(slot)]);
    return {data + place.column, row_elements(spec_.values[parent].width)};
}

Output Executor::output(int32_t value, const Running& running) const {
    const Place& place = plan_->places()[static_cast<size_t>(value)];
    const View floats = view(value, running);
    Output out{.data = floats.data, .stride = floats.stride};
    if (place.rounded >= 0) {
        out.rounded = running.base + running.workspace.slots[static_cast<size_t>(place.rounded)];
        out.rounded_stride = row_elements(spec_.values[static_cast<size_t>(value)].width);
        out.type = place.rounded_type;
    }
    return out;
}

const float* Executor::vector(const OpSpec& op, size_t i) const {
    return reinterpret_cast<const float*>(weights_[static_cast<size_t>(op.weights[i])]->data.data());
}

void Executor::launch_op(const OpSpec& op, const Running& running) {
    const Stream stream = engine_->stream().get();
    const ValueSpec& value = spec_.values[static_cast<size_t>(op.output)];
    const Rows rows = this->rows(running, value.rows);
    const View x = op.inputs.empty() ? View{} : view(op.inputs[0], running);
    const Output out = op.kind == OpKind::kAttentionProbs ? Output{} : output(op.output, running);
    switch (op.kind) {
        case OpKind::kSlice: return;
        case OpKind::kEmbedding: return embedding(op, running);
        case OpKind::kLinear: return linear(op, running);
        case OpKind::kAttention:
        case OpKind::kAttentionProbs: return attention(op, running);
        case OpKind::kAdd: {
            const View y = view(op.inputs[1], running);
            launch_add({.a = x.data,
                        .a_stride = x.stride,
                        .b = y.data,
                        .b_stride = y.stride,
                        .rows = rows,
                        .width = value.width,
                        .out = out},
                       stream);
            return check_launch("add");
        }
        case OpKind::kLayerNorm:
            launch_layer_norm({.x = x.data,
                               .x_stride = x.stride,
                               .weight = vector(op, 0),
                               .bias = vector(op, 1),
                               .eps = op.eps,
                               .rows = rows,
                               .width = value.width,
                               .out = out},
                              stream);
            return check_launch("layer_norm");
        case OpKind::kActivation:
            launch_activation({.x = x.data,
                               .x_stride = x.stride,
                               .activation = op.activation,
                               .rough = op.rough,
                               .rows = rows,
                               .width = value.width,
                               .out = out},
                              stream);
            return check_launch("activation");
        case OpKind::kGatherRows: {
            const StepLayout& layout = running.layout;
            const int64_t index = op.gather == Gather::kWanted  ? layout.wanted
                                  : op.gather == Gather::kFirst ? layout.first
                                                                : layout.last;
            launch_gather({.x = x.data,
                           .x_stride = x.stride,
                           .index = running.of(index),
                           .rows = rows,
                           .width = value.width,
                           .out = out},
                          stream);
            return check_launch("gather_rows");
        }
        case OpKind::kPool:
            launch_pool({.x = x.data,
                         .x_stride = x.stride,
                         .cu_seqlens = running.of(running.layout.cu_seqlens),
                         .kind = op.pool,
                         .sequences = rows,
                         .width = value.width,
                         .out = out},
                        stream);
            return check_launch("pool");
        case OpKind::kL2Normalize:
            launch_l2_normalize(
                {.x = x.data, .x_stride = x.stride, .eps = op.eps, .rows = rows, .width = value.width, .out = out},
                stream);
            return check_launch("l2_normalize");
    }
}

void Executor::embedding(const OpSpec& op, const Running& running) {
    const Weight& weight = *weights_[static_cast<size_t>(op.weights[0])];
    const StepLayout& layout = running.layout;
    const int64_t index = op.index == Index::kTokenIds    ? layout.token_ids
                          : op.index == Index::kPositions ? layout.positions
                                                          : layout.token_type_ids;
    const ValueSpec& value = spec_.values[static_cast<size_t>(op.output)];
    const View out = view(op.output, running);
    launch_embedding({.tables = {{.data = weight.data.data(),
                                  .type = weight.type,
                                  .stride = weight.stride,
                                  .index = running.of(index),
                                  .offset = op.index_offset}},
                      .n_tables = 1,
                      .rows = rows(running, value.rows),
                      .width = value.width,
                      .out = out.data,
                      .out_stride = out.stride},
                     engine_->stream().get());
    check_launch("embedding");
}

ProductArgs Executor::product_of(const OpSpec& op, const Running& running) const {
    const Weight& weight = *weights_[static_cast<size_t>(op.weights[0])];
    const auto input = static_cast<size_t>(op.inputs[0]);
    const ValueSpec &x = spec_.values[input], &value = spec_.values[static_cast<size_t>(op.output)];
    ProductArgs args{.x = nullptr,
                     .x_stride = row_elements(x.width),
                     .weight = weight.data.data(),
                     .weight_stride = weight.stride,
                     .product = nullptr,
                     .product_stride = row_elements(value.width),
                     .type = weight.type,
                     .m = running.sizes.rows(x.rows),
                     .n = value.width,
                     .k = x.width};
    const View floats = view(op.inputs[0], running);
    if (weight.type == Type::kFloat32) {
        args.x = floats.data, args.x_stride = floats.stride;
    } else if (plan_->input_rounded(op)) {
        args.x = running.base + running.workspace.slots[static_cast<size_t>(plan_->places()[input].rounded)];
    } else {
        args.x = running.base + running.workspace.round;
    }
    args.product = plan_->product_apart(op) ? reinterpret_cast<float*>(running.base + running.workspace.product)
                                            : view(op.output, running).data;
    return args;
}

void Executor::linear(const OpSpec& op, const Running& running) {
    const Stream stream = engine_->stream().get();
    const ProductArgs product = product_of(op, running);
    const Rows rows = this->rows(running, spec_.values[static_cast<size_t>(op.output)].rows);
    if (product.type != Type::kFloat32 && !plan_->input_rounded(op)) {
        const View x = view(op.inputs[0], running);
        launch_round({.x = x.data,
                      .x_stride = x.stride,
                      .rows = rows,
                      .width = static_cast<int32_t>(product.k),
                      .out = {.rounded = const_cast<void*>(product.x),
                              .rounded_stride = product.x_stride,
                              .type = product.type}},
                     stream);
        check_launch("rounding");
    }
    const View residual = op.has_residual ? view(op.inputs[1], running) : View{};
    const float* bias = op.has_bias ? vector(op, 1) : nullptr;
    const bool rough = product.type != Type::kFloat32;
    if (!by_library_[static_cast<size_t>(&op - spec_.ops.data())]) {
        launch_linear({.x = product.x,
                       .x_stride = product.x_stride,
                       .weight = product.weight,
                       .weight_stride = product.weight_stride,
                       .type = product.type,
                       .bias = bias,
                       .residual = residual.data,
                       .residual_stride = residual.stride,
                       .activation = op.activation,
                       .rough = rough,
                       .rows = rows,
                       .n = static_cast<int32_t>(product.n),
                       .k = static_cast<int32_t>(product.k),
                       .out = output(op.output, running)},
                      stream);
        return check_launch("linear");
    }
    engine_->library()->multiply(product, stream);
    const Output out = output(op.output, running);
    const bool done = bias == nullptr && residual.data == nullptr && op.activation == Activation::kNone;
    if (done && out.rounded == nullptr && out.data == product.product) return;
    launch_epilogue({.product = product.product,
                     .product_stride = product.product_stride,
                     .bias = bias,
                     .residual = residual.data,
                     .residual_stride = residual.stride,
                     .activation = op.activation,
                     .rough = rough,
                     .rows = rows,
                     .n = static_cast<int32_t>(product.n),
                     .out = out},
                    stream);
    check_launch("epilogue");
}

void Executor::attention(const OpSpec& op, const Running& running) {
    const Stream stream = engine_->stream().get();
    const StepLayout& layout = running.layout;
    const Sizes& sizes = running.sizes;
    const bool maps = op.kind == OpKind::kAttentionProbs;
    const View q = view(op.inputs[0], running), k = view(op.inputs[1], running);
    // Maps have no values. Keys stand in for them until the attention that follows stores both.
    const View v = maps ? k : view(op.inputs[2], running);
    const Sequences sequences{.cu_seqlens = running.of(layout.cu_seqlens),
                              .start = running.of(layout.starts),
                              .rows = rows(running, fastattn::Rows::kSequences),
                              .most_positions = sizes.positions};
    const KvShape& shape = kv_pool_->shape();
    KvPages pages{.pool = kv_pool_->data(),
                  .page_bytes = shape.page_bytes(),
                  .layer_offset = op.layer * shape.layer_bytes(),
                  .table = running.of(layout.pages),
                  .table_stride = sizes.pages(),
                  .type = kv_type_,
                  .n_kv_head = op.n_kv_head,
                  .head_dim = op.head_dim};
    if (!sizes.cached) {  // of this layer only
        pages.pool = running.base + running.workspace.own_pages;
        pages.page_bytes = shape.layer_bytes(), pages.layer_offset = 0;
    }
    launch_kv_store({.k = k.data,
                     .k_stride = k.stride,
                     .v = v.data,
                     .v_stride = v.stride,
                     .tokens = rows(running, fastattn::Rows::kTokens),
                     .sequences = sequences,
                     .pages = pages},
                    stream);
    check_launch("kv_store");
    if (maps) {
        size_t index = 0;
        while (running.maps[index].first != op.output) ++index;
        launch_attention_probs({.q = q.data,
                                .q_stride = q.stride,
                                .tokens = rows(running, fastattn::Rows::kTokens),
                                .sequences = sequences,
                                .pages = pages,
                                .n_head = op.n_head,
                                .causal = op.causal,
                                .scale = op.scale,
                                .probs = running.map_floats,
                                .offsets = running.map_offsets + static_cast<int64_t>(index) * sizes.sequences},
                               stream);
        return check_launch("attention_probs");
    }
    struct Queries {
        int64_t begin, tokens;  // -1: token i
    };
    const Queries queries = op.gather == Gather::kTokens   ? Queries{layout.cu_seqlens, -1}
                            : op.gather == Gather::kWanted ? Queries{layout.wanted_begin, layout.wanted}
                            : op.gather == Gather::kFirst  ? Queries{layout.one_each, layout.first_query}
                                                           : Queries{layout.one_each, layout.last_query};
    const int32_t most = most_queries(sizes, op.gather);
    const AttentionArgs args{.q = q.data,
                             .q_stride = q.stride,
                             .rows = rows(running, spec_.values[static_cast<size_t>(op.inputs[0])].rows),
                             .q_begin = running.of(queries.begin),
                             .query_tokens = queries.tokens < 0 ? nullptr : running.of(queries.tokens),
                             .sequences = sequences,
                             .pages = pages,
                             .n_head = op.n_head,
                             .causal = op.causal,
                             .scale = op.scale,
                             .out = output(op.output, running),
                             .partials = reinterpret_cast<float*>(running.base + running.workspace.partials),
                             .most_q_len = most};
    if (most <= 1)
        launch_attention_decode(args, stream);
    else
        launch_attention_prefill(args, stream);
    check_launch("attention");
}

}  // namespace fastattn::cuda
