// linear: a matrix product with bias, activation and residual.
#include "program/op_kind.h"

namespace fastattn {

constinit const OpKind LinearAttrs::kKind{
    .name = "linear",
    .inputs = 2,
    .weights = 2,
    .read = [](AttrReader& attrs) -> Attrs {
        return LinearAttrs{.activation = attrs.choice("activation", kActivationNames),
                           .has_bias = attrs.flag("has_bias"),
                           .has_residual = attrs.flag("has_residual")};
    },
    .check =
        [](const OpCheck& op) {
            op.expect_rows(op.out(), op.in(0).rows);
            if (op.attrs<LinearAttrs>().has_residual) op.expect_same(op.in(1), op.out());
        },
    .needs = [](const ProgramSpec& spec, const OpSpec& op) -> std::vector<WeightNeed> {
        const int32_t width = spec.out(op).width;
        std::vector<WeightNeed> needs{{WeightUse::kMatrix, width, spec.in(op, 0).width}};
        if (op.as<LinearAttrs>()->has_bias) needs.push_back({WeightUse::kVector, width, 1});
        return needs;
    },
    .absent = [](const Attrs& attrs) -> OpKind::Absent {
        const auto& linear = std::get<LinearAttrs>(attrs);
        return {.inputs = size_t{!linear.has_residual}, .weights = size_t{!linear.has_bias}};
    },
    // Each element of the residual is read just before it is written. x is still read later for other columns.
    .overwrites = [](const Attrs& attrs) -> std::vector<size_t> {
        if (!std::get<LinearAttrs>(attrs).has_residual) return {};
        return {1};
    },
};

}  // namespace fastattn
