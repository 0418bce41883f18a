// Device memory within a budget, and pages of keys and values in it.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cuda/cuda_api.h"
#include "kv/page_pool.h"

namespace fastattn::cuda {

// The device memory that a model may use, in bytes. An allocation names its purpose for the error message.
class Budget {
public:
    explicit Budget(int64_t bytes) : bytes_(bytes) {}
    int64_t bytes() const { return bytes_; }
    int64_t used() const { return used_; }
    void take(int64_t bytes, const std::string& what);  // throws Error(kOutOfMemory)
    void release(int64_t bytes) noexcept { used_ -= bytes; }

private:
    int64_t bytes_;
    std::atomic<int64_t> used_ = 0;
};

// Device memory that counts against a budget.
class Allocation {
public:
    Allocation() = default;
    Allocation(const std::shared_ptr<Budget>& budget, int64_t bytes, const std::string& what);
    std::byte* data() const { return buffer_.data(); }
    int64_t bytes() const { return buffer_.bytes(); }

private:
    std::shared_ptr<Budget> share_;  // its deleter releases the bytes
    DeviceBuffer buffer_;
};

struct KvShape {
    Type type;
    int32_t n_layer, n_kv_head, head_dim;

    int64_t layer_bytes() const { return kv_layer_bytes(type, n_kv_head, head_dim); }
    int64_t page_bytes() const { return n_layer * layer_bytes(); }
    bool operator==(const KvShape&) const = default;
};

// Pages in pieces of device memory, each as large as all before it, or smaller if the memory does not suffice. Pages
// never move.
class KvPool final : public PagePool {
public:
    // stream: of the engine, which outlives every step.
    KvPool(std::shared_ptr<Budget> budget, const KvShape& shape, Stream stream)
        : PagePool(shape.page_bytes()), budget_(std::move(budget)), shape_(shape), stream_(stream) {}
    const KvShape& shape() const { return shape_; }
    void copy_page(std::byte* to, const std::byte* from) override;

protected:
    int64_t growth(int64_t n_pages) const override;
    std::vector<std::byte*> add_pages(int64_t most) override;

private:
    std::shared_ptr<Budget> budget_;
    KvShape shape_;
    Stream stream_;
    std::vector<Allocation> pieces_;
};

}  // namespace fastattn::cuda
