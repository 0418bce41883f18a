// A LoRA adapter (Hu et al. 2021): for some linears of a Program, two matrices whose product is added to the weight. A
// KvCache has the adapter of its sequence.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/buffer.h"

namespace fastattn {

struct AdapterPart {
    int32_t target = 0;  // of the linear: LoraAttrs::target
    int32_t rank = 0, in_features = 0, out_features = 0;
    Buffer down, up;  // floats [rank, in_features], [rank, out_features]; `up` includes the scale
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
