// Python's names for the values of an enum, each list once.
#pragma once
#include <cstddef>
#include <string>

#include "core/error.h"
#include "kernels/kernels.h"
#include "weights/weight_use.h"

namespace fastattn {

template <class T>
struct Named {
    const char* name;
    T value;
};

inline constexpr Named<Activation> kActivationNames[] = {
    {"none", Activation::kNone},      {"gelu_erf", Activation::kGeluErf}, {"gelu_tanh", Activation::kGeluTanh},
    {"relu", Activation::kRelu},      {"tanh", Activation::kTanh},        {"silu", Activation::kSilu},
    {"sigmoid", Activation::kSigmoid}};
inline constexpr Named<PoolKind> kPoolNames[] = {
    {"mean", PoolKind::kMean}, {"max", PoolKind::kMax}, {"mean_sqrt_len", PoolKind::kMeanSqrtLen}};

inline constexpr Named<WeightUse> kUseNames[] = {
    {"matrix", WeightUse::kMatrix}, {"table", WeightUse::kTable}, {"vector", WeightUse::kVector}};

// Throws Error(kind) that starts with `what` and lists the known names.
template <class Names>
auto value_of(const Names& names, const std::string& name, const std::string& what, ErrorKind kind) {
    std::string known;
    for (const auto& entry : names) {
        if (name == entry.name) return entry.value;
        known += (known.empty() ? "" : ", ") + std::string(entry.name);
    }
    throw Error(kind, what + ": expected one of " + known + ", got " + name);
}

}  // namespace fastattn
