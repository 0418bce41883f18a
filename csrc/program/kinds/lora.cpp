// lora: adds the products of the adapters of the step's sequences to the output of a linear.
#include "program/op_kind.h"

namespace fastattn {

constinit const OpKind LoraAttrs::kKind{
    .name = "lora",
    .inputs = 2,
    .read = [](AttrReader& attrs) -> Attrs {
        return LoraAttrs{.target = attrs.integer("target"), .rows = attrs.choice("rows", kGatherNames)};
    },
    .check =
        [](const OpCheck& op) {
            const auto& attrs = op.attrs<LoraAttrs>();
            if (attrs.target < 0) op.bad("expected a target of at least 0");
            op.expect_rows(op.in(0), rows_of(attrs.rows));
            op.expect_rows(op.in(1), rows_of(attrs.rows));
            op.expect_same(op.out(), op.in(0));
        },
    // It reads a row of the linear's output just before it writes it. It still reads the input of the linear later, but
    // never the rows that it has written.
    .overwrites = [](const Attrs&) -> std::vector<size_t> { return {0}; },
};

}  // namespace fastattn
