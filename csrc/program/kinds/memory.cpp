// store_memory and cross_attention: keys and values that one Program writes and another one only reads.
#include <string>

#include "program/op_kind.h"

namespace fastattn {
namespace {

template <class A>
void check_layer(const OpCheck& op, const A& attrs) {
    const ProgramSpec& spec = op.spec();
    if (attrs.layer < 0 || attrs.layer >= spec.n_layer)
        op.bad("expected a layer below " + std::to_string(spec.n_layer) + ", got " + std::to_string(attrs.layer));
    if (attrs.n_kv_head != spec.n_kv_head || attrs.head_dim != spec.head_dim)
        op.bad("expected n_kv_head and head_dim of the Program");
}

// Attention of the same Program may use the pages of a layer for its own keys before store_memory replaces them.
void check_store(const OpCheck& op) {
    const auto& attrs = op.attrs<StoreMemoryAttrs>();
    check_layer(op, attrs);
    for (size_t i = 0; i < op.spec().ops.size(); ++i) {
        const OpSpec& other = op.spec().ops[i];
        const auto* store = other.as<StoreMemoryAttrs>();
        if (i < op.index() && store != nullptr && store->layer == attrs.layer)
            op.bad("expected one store_memory per layer, got two for layer " + std::to_string(attrs.layer));
        const auto* attention = other.as<AttentionAttrs>();
        if (attention != nullptr && (attention->causal || i > op.index()))
            op.bad("expected no causal attention, and no attention after store_memory");
        if (other.is<AttentionProbsAttrs>() && i > op.index()) op.bad("expected no attention maps after store_memory");
    }
    for (size_t i = 0; i < 2; ++i) {
        op.expect_rows(op.in(i), Rows::kTokens);
        op.expect_width(op.in(i), int64_t{attrs.n_kv_head} * attrs.head_dim);
    }
    op.expect_rows(op.out(), Rows::kSequences);
    op.expect_width(op.out(), 1);
}

void check_cross(const OpCheck& op) {
    const auto& attrs = op.attrs<CrossAttentionAttrs>();
    check_layer(op, attrs);
    if (attrs.n_head < 1 || attrs.n_head % attrs.n_kv_head != 0) op.bad("expected n_head as a multiple of n_kv_head");
    if (op.spec().kv_format != Format::kFloat32 && !(attrs.scale > 0.0f))
        op.bad("expected a positive scale unless kv_dtype is float32");
    op.expect_rows(op.in(0), rows_of(attrs.rows));
    op.expect_width(op.in(0), int64_t{attrs.n_head} * attrs.head_dim);
    op.expect_same(op.out(), op.in(0));
}

}  // namespace

constinit const OpKind StoreMemoryAttrs::kKind{
    .name = "store_memory",
    .inputs = 2,
    .read = [](AttrReader& attrs) -> Attrs {
        return StoreMemoryAttrs{.layer = attrs.integer("layer"),
                                .n_kv_head = attrs.integer("n_kv_head"),
                                .head_dim = attrs.integer("head_dim")};
    },
    .check = check_store,
};

constinit const OpKind CrossAttentionAttrs::kKind{
    .name = "cross_attention",
    .inputs = 1,
    .read = [](AttrReader& attrs) -> Attrs {
        return CrossAttentionAttrs{.layer = attrs.integer("layer"),
                                   .n_head = attrs.integer("n_head"),
                                   .n_kv_head = attrs.integer("n_kv_head"),
                                   .head_dim = attrs.integer("head_dim"),
                                   .scale = attrs.number("scale"),
                                   .rows = attrs.choice("rows", kGatherNames)};
    },
    .check = check_cross,
};

}  // namespace fastattn
