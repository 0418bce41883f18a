// Soft-capped scores, as in Gemma 2: S between -softcap and softcap.
#pragma once
#include "kernels/attention_rows.h"
#include "kernels/math.h"

namespace fastattn::FASTATTN_TARGET {
namespace {

// S of all rows becomes softcap * tanh(S / softcap), for the first `vecs` vectors of a block. In formats other than
// float32, S has units of log2(e). finish_scores replaces S at positions that a row does not see.
template <Format kFormat>
void cap_scores(const AttentionArgs& args, const QueryRows& q, BlockScores& scores, int vecs) {
    const Vec cap = broadcast(kFormat == Format::kFloat32 ? args.softcap : args.softcap * kLog2E);
    for (int r = 0; r < q.count; ++r)
        for (int c = 0; c < vecs; ++c) {
            float* at = scores.s + r * kBlockLen + c * kLanes;
            Vec s = load(at);
            if constexpr (kFormat == Format::kInt8) s = mul(s, broadcast(q.scale.of[r]));
            store(at, mul(cap, tanh(div(s, cap))));
        }
}

}  // namespace
}  // namespace fastattn::FASTATTN_TARGET
