#include "program/engine.h"

#include "program/spec.h"

namespace fastattn {

Engine::Running& Engine::running() {
    const std::lock_guard lock(start_mutex());
    return running_.get([this] { return std::make_unique<Running>(threads_); });
}

std::shared_ptr<KvPool> Engine::kv_pool(const KvShape& shape) {
    const std::lock_guard lock(start_mutex());
    if (!kv_pool_) kv_pool_ = std::make_shared<KvPool>(shape);
    if (shape != kv_pool_->shape())
        bad_spec("expected the attention layers, heads and KV format of the model's first Program");
    return kv_pool_;
}

}  // namespace fastattn
