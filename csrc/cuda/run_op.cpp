// The launch function of every kind of op. A kind without one does not compile (see launch_op).
#include "cuda/executor.h"
#include "program/op_kind.h"

namespace fastattn::cuda {

Executor::View Executor::view(int32_t value, const Running& running) const {
    const Place& place = plan_->places()[static_cast<size_t>(value)];
    const auto parent = static_cast<size_t>(place.parent);
    const int32_t slot = plan_->places()[parent].slot;
    if (slot < 0) return {nullptr, 0};
    auto* data = reinterpret_cast<float*>(running.base + running.workspace.slots[static_cast<size_t>(slot)]);
    return {data + place.column, row_elements(spec_.values[parent].width)};
}

// One op of the running step.
struct Executor::OpRun {
    const Executor& executor;
    const Running& running;
    size_t index;  // of the op

    const OpSpec& op() const { return executor.spec_.ops[index]; }
    const Plan& plan() const { return *executor.plan_; }
    Stream stream() const { return executor.engine_->stream().get(); }
    View in(size_t i) const { return executor.view(op().inputs[i], running); }
    Output out() const;
    int32_t width() const { return executor.spec_.out(op()).width; }
    Rows rows() const { return rows(executor.spec_.out(op()).rows); }
    Rows rows(fastattn::Rows kind) const {
        return {running.of(running.layout.counts) + static_cast<int>(kind), running.sizes.rows(kind)};
    }
    const Weight& weight(size_t i) const { return *executor.weights_[static_cast<size_t>(op().weights[i])]; }
    const float* vector(size_t i) const { return reinterpret_cast<const float*>(weight(i).data.data()); }

    void launch(const SliceAttrs&) const {}
    void launch(const EmbeddingAttrs& attrs) const;
    void launch(const AddAttrs&) const;
    void launch(const MultiplyAttrs&) const;
    void launch(const ScaleAttrs&) const;
    void launch(const LayerNormAttrs& attrs) const;
    void launch(const RmsNormAttrs& attrs) const;
    void launch(const RotaryAttrs& attrs) const;
    void launch(const L2NormalizeAttrs& attrs) const;
    void launch(const ActivationAttrs& attrs) const;
    void launch(const LinearAttrs& attrs) const;
    void launch(const GatherRowsAttrs& attrs) const;
    void launch(const PoolAttrs& attrs) const;
    void launch(const WindowRowsAttrs& attrs) const;
    void launch(const LoraAttrs& attrs) const;
    void launch(const FeaturesAttrs&) const {}  // the constructor refuses these
    void launch(const ConcatAttrs&) const {}
    void launch(const LstmAttrs&) const {}
    void launch(const GruAttrs&) const {}
    void launch(const SequenceProbsAttrs&) const {}
    void launch(const WeightedSumAttrs&) const {}
    void launch(const AttentionAttrs& attrs) const;
    void launch(const AttentionProbsAttrs& attrs) const;

private:
    // Offset of the token of each row in a selection; -1 for an empty sequence.
    int64_t tokens_of(Gather which) const {
        const StepLayout& layout = running.layout;
        return which == Gather::kWanted ? layout.wanted : which == Gather::kFirst ? layout.first : layout.last;
    }
    RowArgs io() const;
    PairArgs pair() const;
    ProductArgs product() const;
    void round_input(const ProductArgs& product) const;
    Sequences sequences() const;
    KvPages pages(const AttentionAttrs& attrs) const;
    Relative relative(const AttentionAttrs& attrs) const;
    void store(View k, View v, const KvPages& pages) const;
};

Output Executor::OpRun::out() const {
    const View floats = executor.view(op().output, running);
    Output out{.data = floats.data, .stride = floats.stride};
    const Place& place = plan().places()[static_cast<size_t>(op().output)];
    if (place.rounded >= 0) {
        out.rounded = running.base + running.workspace.slots[static_cast<size_t>(place.rounded)];
        out.rounded_stride = row_elements(width());
        out.type = place.rounded_type;
    }
    return out;
}

void Executor::OpRun::launch(const EmbeddingAttrs& attrs) const {
    const Weight& table = weight(0);
    const StepLayout& layout = running.layout;
    const int64_t index = attrs.index == Index::kTokenIds    ? layout.token_ids
                          : attrs.index == Index::kPositions ? layout.positions
                                                             : layout.token_type_ids;
    const View to = executor.view(op().output, running);
    launch_embedding({.table = table.data.data(),
                      .type = table.type,
                      .stride = table.stride,
                      .index = running.of(index),
                      .offset = attrs.offset,
                      .rows = rows(),
                      .width = width(),
                      .out = to.data,
                      .out_stride = to.stride},
                     stream());
}

RowArgs Executor::OpRun::io() const {
    const View x = in(0);
    return {.x = x.data, .x_stride = x.stride, .rows = rows(), .width = width(), .out = out()};
}

PairArgs Executor::OpRun::pair() const {
    const View a = in(0), b = in(1);
    return {.a = a.data,
            .a_stride = a.stride,
            .b = b.data,
            .b_stride = b.stride,
            .rows = rows(),
            .width = width(),
            .out = out()};
}

void Executor::OpRun::launch(const AddAttrs&) const {
    launch_add(pair(), stream());
}

void Executor::OpRun::launch(const MultiplyAttrs&) const {
    launch_multiply(pair(), stream());
}

void Executor::OpRun::launch(const ScaleAttrs&) const {
    const View x = in(0);
    launch_multiply({.a = x.data,
                     .a_stride = x.stride,
                     .b = vector(0),
                     .b_stride = 0,
                     .rows = rows(),
                     .width = width(),
                     .out = out()},
                    stream());
}

void Executor::OpRun::launch(const LayerNormAttrs& attrs) const {
    launch_layer_norm({.io = io(), .weight = vector(0), .bias = vector(1), .eps = attrs.eps}, stream());
}

void Executor::OpRun::launch(const RmsNormAttrs& attrs) const {
    launch_rms_norm({.io = io(), .weight = vector(0), .eps = attrs.eps, .groups = attrs.groups}, stream());
}

void Executor::OpRun::launch(const RotaryAttrs& attrs) const {
    const View x = in(0);
    launch_rotary({.x = x.data,
                   .x_stride = x.stride,
                   .table = vector(0),
                   .table_stride = weight(0).stride,
                   .positions = running.of(running.layout.positions),
                   .tokens = attrs.rows == Gather::kTokens ? nullptr : running.of(tokens_of(attrs.rows)),
                   .rows = rows(),
                   .n_head = attrs.n_head,
                   .head_dim = attrs.head_dim,
                   .dimensions = attrs.dimensions,
                   .interleaved = attrs.interleaved,
                   .out = out()},
                  stream());
}

void Executor::OpRun::launch(const L2NormalizeAttrs& attrs) const {
    launch_l2_normalize({.io = io(), .eps = attrs.eps}, stream());
}

void Executor::OpRun::launch(const ActivationAttrs& attrs) const {
    launch_activation({.io = io(), .activation = attrs.activation, .rough = attrs.rough}, stream());
}

void Executor::OpRun::launch(const GatherRowsAttrs& attrs) const {
    launch_gather({.io = io(), .index = running.of(tokens_of(attrs.which))}, stream());
}

void Executor::OpRun::launch(const PoolAttrs& attrs) const {
    launch_pool({.io = io(), .cu_seqlens = running.of(running.layout.cu_seqlens), .kind = attrs.pool}, stream());
}

void Executor::OpRun::launch(const WindowRowsAttrs&) const {}  // the constructor refuses it
void Executor::OpRun::launch(const LoraAttrs&) const {}        // and this one

ProductArgs Executor::OpRun::product() const {
    const Weight& matrix = weight(0);
    const ValueSpec& x = executor.spec_.in(op(), 0);
    ProductArgs args{.x = nullptr,
                     .x_stride = row_elements(x.width),
                     .weight = matrix.data.data(),
                     .weight_stride = matrix.stride,
                     .product = nullptr,
                     .product_stride = row_elements(width()),
                     .type = matrix.type,
                     .m = running.sizes.rows(x.rows),
                     .n = width(),
                     .k = x.width};
    if (matrix.type == Type::kFloat32) {
        args.x = in(0).data, args.x_stride = in(0).stride;
    } else if (plan().input_rounded(op())) {
        const Place& from = plan().places()[static_cast<size_t>(op().inputs[0])];
        args.x = running.base + running.workspace.slots[static_cast<size_t>(from.rounded)];
    } else {
        args.x = running.base + running.workspace.round;
    }
    args.product = plan().product_apart(op()) ? reinterpret_cast<float*>(running.base + running.workspace.product)
                                              : executor.view(op().output, running).data;
    return args;
}

void Executor::OpRun::round_input(const ProductArgs& product) const {
    if (product.type == Type::kFloat32 || plan().input_rounded(op())) return;
    const View x = in(0);
    launch_round(
        {.x = x.data,
         .x_stride = x.stride,
         .rows = rows(),
         .width = static_cast<int32_t>(product.k),
         .out = {.rounded = const_cast<void*>(product.x), .rounded_stride = product.x_stride, .type = product.type}},
        stream());
    check_launch("rounding");
}

void Executor::OpRun::launch(const LinearAttrs& attrs) const {
    const ProductArgs product = this->product();
    round_input(product);
    const View residual = attrs.has_residual ? in(1) : View{};
    const Epilogue epilogue{.bias = attrs.has_bias ? vector(1) : nullptr,
                            .residual = residual.data,
                            .residual_stride = residual.stride,
                            .activation = attrs.activation,
                            .rough = product.type != Type::kFloat32,
                            .rows = rows(),
                            .n = static_cast<int32_t>(product.n),
                            .out = out()};
    if (!executor.by_library_[index])
        return launch_linear({.x = product.x,
                              .x_stride = product.x_stride,
                              .weight = product.weight,
                              .weight_stride = product.weight_stride,
                              .type = product.type,
                              .k = static_cast<int32_t>(product.k),
                              .epilogue = epilogue},
                             stream());
    executor.engine_->library()->multiply(product, stream());
    const bool plain =
        epilogue.bias == nullptr && epilogue.residual == nullptr && epilogue.activation == Activation::kNone;
    if (plain && epilogue.out.rounded == nullptr && epilogue.out.data == product.product) return;
    launch_epilogue({.product = product.product, .product_stride = product.product_stride, .epilogue = epilogue},
                    stream());
}

Sequences Executor::OpRun::sequences() const {
    return {.cu_seqlens = running.of(running.layout.cu_seqlens),
            .start = running.of(running.layout.starts),
            .rows = rows(fastattn::Rows::kSequences),
            .most_positions = running.sizes.positions};
}

KvPages Executor::OpRun::pages(const AttentionAttrs& attrs) const {
    return {.table = reinterpret_cast<std::byte* const*>(running.of(running.layout.pages)),
            .table_stride = running.sizes.pages(),
            // A step's own pages are of one layer.
            .layer_offset = running.sizes.cached ? attrs.layer * executor.kv_pool_->shape().layer_bytes() : 0,
            .type = executor.kv_type_,
            .n_kv_head = attrs.n_kv_head,
            .head_dim = attrs.head_dim};
}

Relative Executor::OpRun::relative(const AttentionAttrs& attrs) const {
    Relative relative{.causal = attrs.causal, .window = attrs.window};
    if (!attrs.has_bias) return relative;
    relative.bias = vector(0) + attrs.bias_positions - 1;
    relative.bias_stride = weight(0).stride;
    return relative;
}

void Executor::OpRun::store(View k, View v, const KvPages& pages) const {
    launch_kv_store({.k = k.data,
                     .k_stride = k.stride,
                     .v = v.data,
                     .v_stride = v.stride,
                     .tokens = rows(fastattn::Rows::kTokens),
                     .sequences = sequences(),
                     .pages = pages},
                    stream());
    check_launch("kv_store");
}

void Executor::OpRun::launch(const AttentionProbsAttrs& attrs) const {
    const View q = in(0), k = in(1);
    const KvPages pages = this->pages(attrs);
    store(k, k, pages);  // Maps have no values. Keys stand in for them until the attention that follows stores both.
    size_t map = 0;
    while (running.maps[map].first != op().output) ++map;
    launch_attention_probs({.q = q.data,
                            .q_stride = q.stride,
                            .tokens = rows(fastattn::Rows::kTokens),
                            .sequences = sequences(),
                            .pages = pages,
                            .n_head = attrs.n_head,
                            .first_head = attrs.first_head,
                            .n_maps = attrs.n_maps,
                            .relative = relative(attrs),
                            .scale = attrs.scale,
                            .probs = running.map_floats,
                            .offsets = running.map_offsets + static_cast<int64_t>(map) * running.sizes.sequences},
                           stream());
}

void Executor::OpRun::launch(const AttentionAttrs& attrs) const {
    const StepLayout& layout = running.layout;
    const View q = in(0);
    const KvPages pages = this->pages(attrs);
    store(in(1), in(2), pages);
    struct Queries {
        int64_t begin, tokens;  // -1: token i
    };
    const Queries queries = attrs.q_rows == Gather::kTokens   ? Queries{layout.cu_seqlens, -1}
                            : attrs.q_rows == Gather::kWanted ? Queries{layout.wanted_begin, layout.wanted}
                            : attrs.q_rows == Gather::kFirst  ? Queries{layout.one_each, layout.first_query}
                                                              : Queries{layout.one_each, layout.last_query};
    const int32_t most = most_queries(running.sizes, attrs.q_rows);
    const AttentionArgs args{.q = q.data,
                             .q_stride = q.stride,
                             .rows = rows(executor.spec_.in(op(), 0).rows),
                             .q_begin = running.of(queries.begin),
                             .query_tokens = queries.tokens < 0 ? nullptr : running.of(queries.tokens),
                             .sequences = sequences(),
                             .pages = pages,
                             .n_head = attrs.n_head,
                             .relative = relative(attrs),
                             .scale = attrs.scale,
                             .out = out(),
                             .partials = reinterpret_cast<float*>(running.base + running.workspace.partials),
                             .most_q_len = most};
    if (most <= 1)
        launch_attention_decode(args, stream());
    else
        launch_attention_prefill(args, stream());
}

void Executor::launch_op(size_t index, const Running& running) {
    const OpRun op{*this, running, index};
    std::visit([&op](const auto& attrs) { op.launch(attrs); }, op.op().attrs);
    check_launch(kind_of(op.op()).name);
}

}  // namespace fastattn::cuda
