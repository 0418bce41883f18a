#include "kernels/attention.h"
#include "kernels/kv_store.h"

namespace fastattn::FASTATTN_TARGET {

void kv_store_float32(const KvStoreArgs& args) {
    kv_store<Format::kFloat32>(args);
}
void attention_float32(const AttentionArgs& args) {
    attention<Format::kFloat32>(args);
}
void attention_probs_float32(const AttentionArgs& args) {
    attention_probs<Format::kFloat32>(args);
}

}  // namespace fastattn::FASTATTN_TARGET
