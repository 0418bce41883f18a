// The ops on one element, or on one of each input: add, multiply, scale, activation.
#include "program/op_kind.h"

namespace fastattn {
namespace {

void check_same(const OpCheck& op) {
    op.expect_same(op.in(1), op.in(0));
    op.expect_same(op.out(), op.in(0));
}

}  // namespace

constinit const OpKind AddAttrs::kKind{
    .name = "add",
    .inputs = 2,
    .read = [](AttrReader&) -> Attrs { return AddAttrs{}; },
    .check = check_same,
    .overwrites = [](const Attrs&) -> std::vector<size_t> { return {0, 1}; },
};

constinit const OpKind MultiplyAttrs::kKind{
    .name = "multiply",
    .inputs = 2,
    .read = [](AttrReader&) -> Attrs { return MultiplyAttrs{}; },
    .check = check_same,
    .overwrites = [](const Attrs&) -> std::vector<size_t> { return {0, 1}; },
};

constinit const OpKind ScaleAttrs::kKind{
    .name = "scale",
    .inputs = 1,
    .weights = 1,
    .read = [](AttrReader&) -> Attrs { return ScaleAttrs{}; },
    .check = [](const OpCheck& op) { op.expect_same(op.out(), op.in(0)); },
    .needs = [](const ProgramSpec& spec, const OpSpec& op) -> std::vector<WeightNeed> {
        return {{WeightUse::kVector, spec.out(op).width, 1}};
    },
    .overwrites = [](const Attrs&) -> std::vector<size_t> { return {0}; },
};

constinit const OpKind ActivationAttrs::kKind{
    .name = "activation",
    .inputs = 1,
    .read = [](AttrReader& attrs) -> Attrs {
        return ActivationAttrs{.activation = attrs.choice("activation", kActivationNames)};
    },
    .check = [](const OpCheck& op) { op.expect_same(op.out(), op.in(0)); },
    .overwrites = [](const Attrs&) -> std::vector<size_t> { return {0}; },
};

}  // namespace fastattn
