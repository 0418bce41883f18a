// A LoRA adapter (Hu et al. 2021): for some linears of a Program, two matrices whose product is added to the weight. A
// KvCache has the adapter of its sequence.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "weights/weights.h"

namespace fastattn {

struct AdapterPart {
    int32_t target = 0;  // of the linear: LoraAttrs::target
    Weight down, up;     // float32 [rank, in_features], [out_features, rank]; `up` includes the scale
};

struct Adapter {
    std::vector<AdapterPart> parts;  // in ascending order of targets

    const AdapterPart* find(int32_t target) const {  // null if it leaves this linear as it is
        const auto part = std::lower_bound(parts.begin(), parts.end(), target,
                                           [](const AdapterPart& a, int32_t b) { return a.target < b; });
        return part != parts.end() && part->target == target ? &*part : nullptr;
    }
};

}  // namespace fastattn
