// Shared by the executors of one model: weights, threads, KV pages. One step runs at a time.
#pragma once
#include <cstdint>
#include <memory>

#include "kv/kv_pool.h"
#include "runtime/fork_local.h"
#include "runtime/owned_mutex.h"
#include "runtime/pace.h"
#include "runtime/thread_pool.h"
#include "weights/weights.h"

namespace fastattn {

class Engine {
public:
    explicit Engine(int threads) : threads_(threads) {}

    int threads() const { return threads_; }
    Weights& weights() { return weights_; }

    // The pool and the lock of this process. Recreated in the child of a fork, where the old threads do not exist.
    struct Running {
        explicit Running(int threads) : pool(threads) {}
        OwnedMutex mutex;
        ThreadPool pool;
        Pace pace;
    };
    Running& running();

    // The pages of all executors of this model. They also distinguish its caches from those of other models.
    std::shared_ptr<KvPool> kv_pool(const KvShape& shape);

private:
    int threads_;
    Weights weights_;
    std::shared_ptr<KvPool> kv_pool_;
    ForkLocal<Running> running_;
};

}  // namespace fastattn
