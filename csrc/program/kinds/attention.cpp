// attention, and attention_probs, the maps that explain it.
#include <algorithm>
#include <limits>
#include <string>

#include "program/op_kind.h"

namespace fastattn {
namespace {

AttentionAttrs read_attention(AttrReader& attrs) {
    return {.causal = attrs.flag("causal"),
            .layer = attrs.integer("layer"),
            .n_head = attrs.integer("n_head"),
            .n_kv_head = attrs.integer("n_kv_head"),
            .head_dim = attrs.integer("head_dim"),
            .scale = attrs.number("scale"),
            .q_rows = attrs.choice("q_rows", kGatherNames),
            .window = attrs.integer("window"),
            .softcap = attrs.number("softcap"),
            .has_bias = attrs.flag("has_bias"),
            .bias_positions = attrs.integer("bias_positions"),
            .has_columns = attrs.flag("has_columns"),
            .has_position_keys = attrs.flag("has_position_keys"),
            .has_position_queries = attrs.flag("has_position_queries"),
            .n_columns = attrs.integer("n_columns"),
            .column_positions = attrs.integer("column_positions")};
}

template <class A>
OpKind::Absent absent(const Attrs& attrs) {
    const AttentionAttrs& a = std::get<A>(attrs);
    return {0, size_t{!a.has_bias} + size_t{!a.has_columns} + size_t{!a.has_position_keys} +
                   size_t{!a.has_position_queries}};
}

template <class A>
std::vector<WeightNeed> needs(const ProgramSpec&, const OpSpec& op) {
    const AttentionAttrs& attrs = *op.as<A>();
    std::vector<WeightNeed> needs;
    if (attrs.has_bias) needs.push_back({WeightUse::kTable, attrs.n_head, attrs.bias_columns(), /*only_table=*/true});
    if (attrs.has_columns) needs.push_back({WeightUse::kTable, 1, 2 * attrs.column_reach() + 1, /*only_table=*/true});
    for (int i = 0; i < attrs.has_position_keys + attrs.has_position_queries; ++i)
        needs.push_back({WeightUse::kMatrix, int64_t{attrs.n_head} * attrs.n_columns, attrs.head_dim});
    return needs;
}

void check_positions(const OpCheck& op, const AttentionAttrs& attrs) {
    const bool any = attrs.has_position_keys || attrs.has_position_queries;
    if (any != attrs.has_columns || (!any && (attrs.n_columns != 0 || attrs.column_positions != 0)))
        op.bad("expected columns only with position keys or position queries");
    if (!any) return;
    if (attrs.n_columns < kPanelWidth || attrs.n_columns % kPanelWidth != 0 ||
        int64_t{attrs.n_head} * attrs.n_columns > std::numeric_limits<int32_t>::max())
        op.bad("expected n_columns as a multiple of 64, got " + std::to_string(attrs.n_columns));
    if (attrs.column_positions < std::max(1, op.spec().max_positions))
        op.bad("expected columns for " + std::to_string(op.spec().max_positions) + " positions, got " +
               std::to_string(attrs.column_positions));
    if (attrs.causal || attrs.has_bias || attrs.n_kv_head != attrs.n_head)
        op.bad("expected position tables only without causal and bias, and with as many key heads as heads");
}

void check_heads(const OpCheck& op, const AttentionAttrs& attrs) {
    const ProgramSpec& spec = op.spec();
    if (spec.kv_format != Format::kFloat32 && !(attrs.scale > 0.0f))
        bad_spec("attention: the scale must be positive unless kv_dtype is float32");
    if (attrs.layer < 0 || attrs.layer >= spec.n_layer)
        op.bad("expected a layer below " + std::to_string(spec.n_layer) + ", got " + std::to_string(attrs.layer));
    if (attrs.n_kv_head != spec.n_kv_head || attrs.head_dim != spec.head_dim || attrs.n_head < 1 ||
        attrs.n_head % attrs.n_kv_head != 0)
        op.bad("expected n_kv_head and head_dim of the Program, and n_head as a multiple of n_kv_head");
    if (attrs.window < 0) op.bad("expected a window of at least 0, got " + std::to_string(attrs.window));
    if (attrs.has_bias ? attrs.bias_positions < std::max(1, spec.max_positions) : attrs.bias_positions != 0)
        op.bad("expected biases for " + std::to_string(spec.max_positions) + " positions, got " +
               std::to_string(attrs.bias_positions));
    if (!(attrs.softcap >= 0.0f && attrs.softcap <= std::numeric_limits<float>::max()) ||
        (attrs.softcap > 0.0f && (attrs.has_bias || attrs.has_columns)))
        op.bad("expected a finite softcap of at least 0, and 0 with a bias or position tables");
    check_positions(op, attrs);
    op.expect_rows(op.in(0), rows_of(attrs.q_rows));
    op.expect_width(op.in(0), int64_t{attrs.n_head} * attrs.head_dim);
    for (size_t i = 1; i < op.op().inputs.size(); ++i) {
        op.expect_rows(op.in(i), Rows::kTokens);
        op.expect_width(op.in(i), int64_t{attrs.n_kv_head} * attrs.head_dim);
    }
    op.expect_rows(op.out(), op.in(0).rows);
}

void check_attention(const OpCheck& op) {
    const auto& attrs = op.attrs<AttentionAttrs>();
    check_heads(op, attrs);
    op.expect_width(op.out(), op.in(0).width);
    for (size_t i = 0; i < op.index(); ++i) {
        const auto* before = op.spec().ops[i].as<AttentionAttrs>();
        if (before != nullptr && before->layer == attrs.layer)
            op.bad("expected one attention per layer, got two for layer " + std::to_string(attrs.layer));
    }
}

void check_probs(const OpCheck& op) {
    const auto& attrs = op.attrs<AttentionProbsAttrs>();
    if (attrs.q_rows != Gather::kTokens) op.bad("expected one query per token");
    check_heads(op, attrs);
    if (attrs.first_head < 0 || attrs.n_maps < 1 || attrs.first_head > attrs.n_head - attrs.n_maps)
        op.bad("expected maps of heads 0 to " + std::to_string(attrs.n_head - 1) + ", got " +
               std::to_string(attrs.n_maps) + " from " + std::to_string(attrs.first_head) + " on");
    op.expect_width(op.out(), 0);
}

}  // namespace

constinit const OpKind AttentionAttrs::kKind{
    .name = "attention",
    .inputs = 3,
    .weights = 4,
    .read = [](AttrReader& attrs) -> Attrs { return read_attention(attrs); },
    .check = check_attention,
    .needs = needs<AttentionAttrs>,
    .absent = absent<AttentionAttrs>,
};

constinit const OpKind AttentionProbsAttrs::kKind{
    .name = "attention_probs",
    .inputs = 2,
    .weights = 4,
    .read = [](AttrReader& attrs) -> Attrs {
        return AttentionProbsAttrs{read_attention(attrs), attrs.integer("first_head"), attrs.integer("n_maps")};
    },
    .check = check_probs,
    .needs = needs<AttentionProbsAttrs>,
    .absent = absent<AttentionProbsAttrs>,
    .writes_maps = true,
};

}  // namespace fastattn
