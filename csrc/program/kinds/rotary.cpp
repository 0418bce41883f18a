// rotary: rotates pairs of elements of queries and keys by angles of their tokens' positions.
#include "program/op_kind.h"

namespace fastattn {

constinit const OpKind RotaryAttrs::kKind{
    .name = "rotary",
    .inputs = 1,
    .weights = 1,
    .read = [](AttrReader& attrs) -> Attrs {
        return RotaryAttrs{.n_head = attrs.integer("n_head"),
                           .head_dim = attrs.integer("head_dim"),
                           .dimensions = attrs.integer("dimensions"),
                           .interleaved = attrs.flag("interleaved"),
                           .rows = attrs.choice("rows", kGatherNames)};
    },
    .check =
        [](const OpCheck& op) {
            const auto& attrs = op.attrs<RotaryAttrs>();
            if (attrs.n_head < 1 || attrs.head_dim < 1 || attrs.dimensions < 2 || attrs.dimensions % 2 != 0 ||
                attrs.dimensions > attrs.head_dim)
                op.bad("expected an even number of dimensions, at most head_dim");
            op.expect_rows(op.in(0), rows_of(attrs.rows));
            op.expect_width(op.in(0), int64_t{attrs.n_head} * attrs.head_dim);
            op.expect_same(op.out(), op.in(0));
        },
    .needs = [](const ProgramSpec&, const OpSpec& op) -> std::vector<WeightNeed> {
        return {{WeightUse::kTable, -1, op.as<RotaryAttrs>()->dimensions, /*only_table=*/true}};
    },
    .table_index = [](const Attrs&) -> std::optional<TableIndex> { return TableIndex{Index::kPositions, 0}; },
    .overwrites = [](const Attrs&) -> std::vector<size_t> { return {0}; },
};

}  // namespace fastattn
