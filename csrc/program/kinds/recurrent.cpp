// lstm and gru, and the attention of one query per sequence over the rows of its sequence.
#include <type_traits>

#include "program/op_kind.h"

namespace fastattn {
namespace {

void check_cell(const OpCheck& op, const RecurrentAttrs& attrs, int64_t gates, int64_t state_width) {
    if (attrs.hidden < 1) op.bad("expected at least one hidden unit");
    const ValueSpec& x = op.in(0);
    if (x.rows == Rows::kWanted) op.bad("expected one row per token or per sequence");
    op.expect_rows(op.out(), x.rows);
    op.expect_width(x, gates * attrs.hidden);
    if (!attrs.has_state) return;
    op.expect_rows(op.in(1), Rows::kSequences);
    op.expect_width(op.in(1), state_width);
}

template <class A>
OpKind::Absent absent_of(const Attrs& attrs) {
    const auto& of = std::get<A>(attrs);
    size_t weights = of.has_bias ? 0 : 1;
    if constexpr (std::is_same_v<A, LstmAttrs>) weights += of.has_projection ? 0 : 1;
    return {of.has_state ? size_t{0} : size_t{1}, weights};
}

}  // namespace

constinit const OpKind LstmAttrs::kKind{
    .name = "lstm",
    .inputs = 2,
    .weights = 3,
    .read = [](AttrReader& attrs) -> Attrs {
        LstmAttrs read;
        read.hidden = attrs.integer("hidden");
        read.reverse = attrs.flag("reverse");
        read.has_state = attrs.flag("has_state");
        read.has_bias = attrs.flag("has_bias");
        read.width = attrs.integer("width");
        read.has_projection = attrs.flag("has_projection");
        read.cells = attrs.flag("cells");
        read.cell_clip = attrs.number("cell_clip");
        read.projection_clip = attrs.number("projection_clip");
        return read;
    },
    .check =
        [](const OpCheck& op) {
            const auto& attrs = op.attrs<LstmAttrs>();
            check_cell(op, attrs, 4, int64_t{attrs.width} + attrs.hidden);
            if (attrs.width < 1 || (!attrs.has_projection && attrs.width != attrs.hidden))
                op.bad("expected the width of the hidden units, or a projection");
            if (!(attrs.cell_clip >= 0.0f) || !(attrs.projection_clip >= 0.0f)) op.bad("expected clips of at least 0");
            op.expect_width(op.out(), int64_t{attrs.width} + (attrs.cells ? attrs.hidden : 0));
        },
    .needs = [](const ProgramSpec&, const OpSpec& op) -> std::vector<WeightNeed> {
        const auto& attrs = *op.as<LstmAttrs>();
        const int64_t gates = int64_t{4} * attrs.hidden;
        std::vector<WeightNeed> needs{{WeightUse::kMatrix, gates, attrs.width}};
        if (attrs.has_bias) needs.push_back({WeightUse::kVector, gates, 1});
        if (attrs.has_projection) needs.push_back({WeightUse::kMatrix, attrs.width, attrs.hidden});
        return needs;
    },
    .absent = absent_of<LstmAttrs>,
};

constinit const OpKind GruAttrs::kKind{
    .name = "gru",
    .inputs = 2,
    .weights = 2,
    .read = [](AttrReader& attrs) -> Attrs {
        GruAttrs read;
        read.hidden = attrs.integer("hidden");
        read.reverse = attrs.flag("reverse");
        read.has_state = attrs.flag("has_state");
        read.has_bias = attrs.flag("has_bias");
        return read;
    },
    .check =
        [](const OpCheck& op) {
            const auto& attrs = op.attrs<GruAttrs>();
            check_cell(op, attrs, 3, attrs.hidden);
            op.expect_width(op.out(), attrs.hidden);
        },
    .needs = [](const ProgramSpec&, const OpSpec& op) -> std::vector<WeightNeed> {
        const auto& attrs = *op.as<GruAttrs>();
        std::vector<WeightNeed> needs{{WeightUse::kMatrix, int64_t{3} * attrs.hidden, attrs.hidden}};
        if (attrs.has_bias) needs.push_back({WeightUse::kVector, int64_t{3} * attrs.hidden, 1});
        return needs;
    },
    .absent = absent_of<GruAttrs>,
};

constinit const OpKind SequenceProbsAttrs::kKind{
    .name = "sequence_probs",
    .inputs = 2,
    .weights = 1,
    .read = [](AttrReader& attrs) -> Attrs { return SequenceProbsAttrs{.has_weight = attrs.flag("has_weight")}; },
    .check =
        [](const OpCheck& op) {
            op.expect_rows(op.in(0), Rows::kSequences);
            op.expect_rows(op.in(1), Rows::kTokens);
            op.expect_width(op.in(1), op.in(0).width);
            op.expect_rows(op.out(), Rows::kTokens);
            op.expect_width(op.out(), 1);
        },
    .needs = [](const ProgramSpec& spec, const OpSpec& op) -> std::vector<WeightNeed> {
        if (!op.as<SequenceProbsAttrs>()->has_weight) return {};
        return {{WeightUse::kVector, spec.in(op, 0).width, 1}};
    },
    .absent = [](const Attrs& attrs) -> OpKind::Absent {
        return {0, std::get<SequenceProbsAttrs>(attrs).has_weight ? size_t{0} : size_t{1}};
    },
};

constinit const OpKind WeightedSumAttrs::kKind{
    .name = "weighted_sum",
    .inputs = 2,
    .read = [](AttrReader&) -> Attrs { return WeightedSumAttrs{}; },
    .check =
        [](const OpCheck& op) {
            op.expect_rows(op.in(0), Rows::kTokens);
            op.expect_width(op.in(0), 1);
            op.expect_rows(op.in(1), Rows::kTokens);
            op.expect_rows(op.out(), Rows::kSequences);
            op.expect_width(op.out(), op.in(1).width);
        },
};

}  // namespace fastattn
