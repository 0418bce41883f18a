// layer_norm, rms_norm and l2_normalize.
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
        const WeightNeed vector{WeightUse::kVector, spec.out(op).width, 1};
        return {vector, vector};
    },
    .overwrites = kOverwritesInput,
    .rounds_rows = true,
};

constinit const OpKind RmsNormAttrs::kKind{
    .name = "rms_norm",
    .inputs = 1,
    .weights = 1,
    .read = [](AttrReader& attrs) -> Attrs {
        return RmsNormAttrs{.eps = attrs.number("eps"), .groups = attrs.integer("groups")};
    },
    .check =
        [](const OpCheck& op) {
            const int32_t groups = op.attrs<RmsNormAttrs>().groups;
            if (groups < 1 || op.in(0).width % groups != 0) op.bad("expected a width divisible by the groups");
            kSameShape(op);
        },
    .needs = [](const ProgramSpec& spec, const OpSpec& op) -> std::vector<WeightNeed> {
        return {{WeightUse::kVector, spec.out(op).width / op.as<RmsNormAttrs>()->groups, 1}};
    },
    .overwrites = kOverwritesInput,
    .rounds_rows = true,
};

constinit const OpKind L2NormalizeAttrs::kKind{
    .name = "l2_normalize",
    .inputs = 1,
    .read = [](AttrReader& attrs) -> Attrs { return L2NormalizeAttrs{.eps = attrs.number("eps")}; },
    .check = kSameShape,
    .overwrites = kOverwritesInput,
};

}  // namespace fastattn
