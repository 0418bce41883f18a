// layer_norm and l2_normalize.
#include "program/op_kind.h"

namespace fastattn {
namespace {

constexpr auto kSameShape = [](const OpCheck& op) { op.expect_same(op.out(), op.in(0)); };
constexpr auto kOverwritesInput = [](const Attrs&) -> std::vector<size_t> { return {0}; };

}  // namespace

constinit const OpKind LayerNormAttrs::kKind{
    .name = "layer_norm",
    .inputs = 1,
    .weights = 2,
    .read = [](AttrReader& attrs) -> Attrs { return LayerNormAttrs{.eps = attrs.number("eps")}; },
    .check = kSameShape,
    .needs = [](const ProgramSpec& spec, const OpSpec& op) -> std::vector<WeightNeed> {
        const WeightNeed vector{WeightRole::kVector, spec.out(op).width, 1};
        return {vector, vector};
    },
    .overwrites = kOverwritesInput,
    .rounds_rows = true,
};

constinit const OpKind L2NormalizeAttrs::kKind{
    .name = "l2_normalize",
    .inputs = 1,
    .weights = 0,
    .read = [](AttrReader& attrs) -> Attrs { return L2NormalizeAttrs{.eps = attrs.number("eps")}; },
    .check = kSameShape,
    .overwrites = kOverwritesInput,
};

}  // namespace fastattn
