#include "kernels/attention.h"
#include "kernels/kv_store.h"
#include "simd/float_mode.h"

namespace fastattn::FASTATTN_TARGET {

void kv_store_bfloat16(const KvStoreArgs& args) {
    kv_store<Format::kBfloat16>(args);
}
void attention_bfloat16(const AttentionArgs& args) {
    const FlushDenormals mode;
    attention<Format::kBfloat16>(args);
}
void attention_probs_bfloat16(const AttentionArgs& args) {
    const FlushDenormals mode;
    attention_probs<Format::kBfloat16>(args);
}

}  // namespace fastattn::FASTATTN_TARGET
