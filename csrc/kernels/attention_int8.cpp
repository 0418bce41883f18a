#include "kernels/attention.h"
#include "kernels/kv_store.h"

namespace fastattn::FASTATTN_TARGET {

void kv_store_int8(const KvStoreArgs& args) {
    kv_store<Format::kInt8>(args);
}
void attention_int8(const AttentionArgs& args) {
    attention<Format::kInt8>(args);
}
void attention_probs_int8(const AttentionArgs& args) {
    attention_probs<Format::kInt8>(args);
}

}  // namespace fastattn::FASTATTN_TARGET
