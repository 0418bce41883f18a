// The ops that choose, cut and combine rows: embedding, slice, gather_rows, pool, window_rows, features, concat.
#include "program/op_kind.h"

namespace fastattn {

constinit const OpKind EmbeddingAttrs::kKind{
    .name = "embedding",
    .weights = 1,
    .read = [](AttrReader& attrs) -> Attrs {
        return EmbeddingAttrs{.index = attrs.choice("index", kIndexNames), .offset = attrs.integer("offset")};
    },
    .check = [](const OpCheck& op) { op.expect_rows(op.out(), Rows::kTokens); },
    .needs = [](const ProgramSpec& spec, const OpSpec& op) -> std::vector<WeightNeed> {
        return {{WeightUse::kTable, -1, spec.out(op).width}};
    },
    .table_index = [](const Attrs& attrs) -> std::optional<TableIndex> {
        const auto& [index, offset] = std::get<EmbeddingAttrs>(attrs);
        return TableIndex{index, offset};
    },
};

constinit const OpKind SliceAttrs::kKind{
    .name = "slice",
    .inputs = 1,
    .read = [](AttrReader& attrs) -> Attrs {
        return SliceAttrs{.offset = attrs.integer("offset"), .width = attrs.integer("width")};
    },
    .check =
        [](const OpCheck& op) {
            const auto& [offset, width] = op.attrs<SliceAttrs>();
            op.expect_rows(op.out(), op.in(0).rows);
            op.expect_width(op.out(), width);
            if (offset < 0 || int64_t{offset} + width > op.in(0).width) op.bad("expected columns of its input");
        },
    .is_view = true,
};

constinit const OpKind GatherRowsAttrs::kKind{
    .name = "gather_rows",
    .inputs = 1,
    .read = [](AttrReader& attrs) -> Attrs { return GatherRowsAttrs{.which = attrs.choice("which", kGatherNames)}; },
    .check =
        [](const OpCheck& op) {
            const Gather which = op.attrs<GatherRowsAttrs>().which;
            if (which == Gather::kTokens) op.bad("expected wanted, first or last rows");
            op.expect_rows(op.in(0), Rows::kTokens);
            op.expect_rows(op.out(), rows_of(which));
            op.expect_width(op.out(), op.in(0).width);
        },
};

constinit const OpKind PoolAttrs::kKind{
    .name = "pool",
    .inputs = 1,
    .read = [](AttrReader& attrs) -> Attrs { return PoolAttrs{.pool = attrs.choice("pool", kPoolNames)}; },
    .check =
        [](const OpCheck& op) {
            op.expect_rows(op.in(0), Rows::kTokens);
            op.expect_rows(op.out(), Rows::kSequences);
            op.expect_width(op.out(), op.in(0).width);
        },
};

constinit const OpKind WindowRowsAttrs::kKind{
    .name = "window_rows",
    .inputs = 1,
    .read = [](AttrReader& attrs) -> Attrs {
        return WindowRowsAttrs{.size = attrs.integer("size"), .inside = attrs.flag("inside")};
    },
    .check =
        [](const OpCheck& op) {
            const auto& [size, inside] = op.attrs<WindowRowsAttrs>();
            if (size < 1 || (size % 2 == 0 && !inside)) op.bad("expected an odd size");
            op.expect_rows(op.in(0), Rows::kTokens);
            op.expect_rows(op.out(), Rows::kTokens);
            op.expect_width(op.out(), int64_t{size} * op.in(0).width);
        },
};

constinit const OpKind FeaturesAttrs::kKind{
    .name = "features",
    .read = [](AttrReader& attrs) -> Attrs { return FeaturesAttrs{.index = attrs.integer("index")}; },
    .check =
        [](const OpCheck& op) {
            if (op.attrs<FeaturesAttrs>().index < 0) op.bad("expected an index of at least 0");
            if (op.out().rows == Rows::kWanted) op.bad("expected one row per token or per sequence");
        },
};

constinit const OpKind ConcatAttrs::kKind{
    .name = "concat",
    .inputs = 2,
    .read = [](AttrReader&) -> Attrs { return ConcatAttrs{}; },
    .check =
        [](const OpCheck& op) {
            op.expect_rows(op.in(1), op.in(0).rows);
            op.expect_rows(op.out(), op.in(0).rows);
            op.expect_width(op.out(), int64_t{op.in(0).width} + op.in(1).width);
        },
};

}  // namespace fastattn
