#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "cuda/executor.h"

namespace fastattn::cuda {
namespace {

// Left for the driver, for modules that are loaded later and for other programs.
constexpr int64_t kReserveBytes = int64_t{512} << 20;

int64_t budget_of(const EngineOptions& options, const Device& device) {
    if (options.budget_bytes > 0) return options.budget_bytes;
    return std::max(device.free_bytes - kReserveBytes, device.free_bytes / 2);
}

}  // namespace

Engine::Engine(const EngineOptions& options)
    : device_(open_device()), budget_(std::make_shared<Budget>(budget_of(options, device_))) {
    if (options.library)
        library_ = CublasLt::load(options.library_paths, options.tf32, budget_, why_no_library_);
    else
        why_no_library_ = "not requested";
}

void Engine::check_process() const {
    if (home_.here()) return;
    throw Error(ErrorKind::kConfig,
                "device: expected the process that loaded the model on \"cuda\", got one forked from it; start it with "
                "multiprocessing's \"spawn\" and load the model there");
}

void Engine::load(const std::string& name, WeightUse use, Type type, int64_t rows, int64_t columns, const void* data) {
    check_process();  // before the lock, which a thread of the parent may hold forever
    const std::lock_guard lock(mutex_);
    const UseDevice current;
    if (weights_.contains(name)) throw Error(ErrorKind::kInput, "weight " + name + " is already loaded");
    // A vector is one row.
    const int64_t n_rows = use == WeightUse::kVector ? 1 : rows, width = use == WeightUse::kVector ? rows : columns;
    const int64_t stride = row_elements(width), element = bytes_of(type);
    Weight weight{use, type, rows, columns, stride, Allocation(budget_, align(n_rows * stride * element), name)};
    std::vector<std::byte> padded;
    const auto* from = static_cast<const std::byte*>(data);
    if (stride != width) {
        padded.resize(static_cast<size_t>(n_rows * stride * element));
        for (int64_t row = 0; row < n_rows; ++row)
            std::memcpy(padded.data() + row * stride * element, from + row * width * element,
                        static_cast<size_t>(width * element));
        from = padded.data();
    }
    copy_to_device(weight.data.data(), from, n_rows * stride * element, stream_.get());
    (void)stream_.wait([] { return false; });
    weights_.emplace(name, std::move(weight));
}

const Weight* Engine::find(const std::string& name) const {
    const auto found = weights_.find(name);
    return found == weights_.end() ? nullptr : &found->second;
}

int64_t Engine::weight_bytes() const {
    int64_t total = 0;
    for (const auto& [name, weight] : weights_) total += weight.data.bytes();
    return total;
}

std::shared_ptr<KvPool> Engine::kv_pool(const KvShape& shape) {
    if (!kv_pool_) kv_pool_ = std::make_shared<KvPool>(budget_, shape, stream_.get());
    if (shape != kv_pool_->shape())
        bad_spec("expected the attention layers, heads and KV format of the model's first Program");
    return kv_pool_;
}

std::byte* Engine::grown(Allocation& memory, int64_t bytes, const char* what) {
    if (memory.bytes() < bytes) {
        memory = Allocation();
        memory = Allocation(budget_, align(bytes), what);
    }
    return memory.data();
}

std::byte* Engine::staging(int64_t bytes) {
    if (staging_.bytes() < bytes) {
        staging_ = PinnedBuffer();
        staging_ = PinnedBuffer(align(2 * bytes));
    }
    return staging_.data();
}

void Engine::finish_step(const std::function<bool()>& poll) {
    const bool finished = stream_.wait([&] { return cancelled_ || poll(); });
    if (!finished || cancelled_) throw Error(ErrorKind::kCancelled, "the call was cancelled");
}

}  // namespace fastattn::cuda
