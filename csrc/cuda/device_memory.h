// Device memory within a budget, and pages of keys and values in it.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cuda/cuda_api.h"

namespace fastattn::cuda {

// The device memory that a model may use, in bytes. An allocation names its purpose for the error message.
class Budget {
public:
    explicit Budget(int64_t bytes) : bytes_(bytes) {}
    int64_t bytes() const { return bytes_; }
    int64_t used() const { return used_; }
    void take(int64_t bytes, const std::string& what);  // throws Error(kOutOfMemory)
    void give_back(int64_t bytes) noexcept { used_ -= bytes; }

private:
    int64_t bytes_;
    std::atomic<int64_t> used_ = 0;
};

// Device memory that counts against a budget.
class Allocation {
public:
    Allocation() = default;
    Allocation(std::shared_ptr<Budget> budget, int64_t bytes, const std::string& what);
    ~Allocation();
    Allocation(Allocation&& other) noexcept { swap(other); }
    Allocation& operator=(Allocation&& other) noexcept {
        swap(other);
        return *this;
    }
    Allocation(const Allocation&) = delete;
    Allocation& operator=(const Allocation&) = delete;
    std::byte* data() const { return buffer_.data(); }
    int64_t bytes() const { return buffer_.bytes(); }

private:
    void swap(Allocation& other) noexcept {
        std::swap(budget_, other.budget_);
        std::swap(buffer_, other.buffer_);
    }
    std::shared_ptr<Budget> budget_;
    DeviceBuffer buffer_;
};

struct KvShape {
    Type type;
    int32_t n_layer, n_kv_head, head_dim;

    int64_t layer_bytes() const { return kv_layer_bytes(type, n_kv_head, head_dim); }
    int64_t page_bytes() const { return n_layer * layer_bytes(); }
    bool operator==(const KvShape&) const = default;
};

// Pages of all sequences of a model, in one piece of device memory that grows. A page is its number. Growing moves the
// pages, so it happens only while no step runs.
class KvPool : public std::enable_shared_from_this<KvPool> {
public:
    using Page = std::shared_ptr<const int32_t>;  // the last reference frees the page

    KvPool(std::shared_ptr<Budget> budget, KvShape shape) : budget_(std::move(budget)), shape_(shape) {}
    const KvShape& shape() const { return shape_; }
    std::byte* data() const { return memory_.data(); }
    int64_t bytes() const { return memory_.bytes(); }
    int64_t moves() const { return moves_; }  // how often the memory moved

    // Both need the model's lock.
    Page page(const OwnStream& stream);
    void copy_page(int32_t from, int32_t to, Stream stream) const;

private:
    void grow(const OwnStream& stream);

    std::shared_ptr<Budget> budget_;
    KvShape shape_;
    Allocation memory_;
    int32_t n_pages_ = 0;
    int64_t moves_ = 0;
    std::mutex mutex_;  // guards free_, because caches end in any thread
    std::vector<int32_t> free_;
};

class KvCache {
public:
    explicit KvCache(std::shared_ptr<KvPool> pool) : pool_(std::move(pool)) {}

    int32_t length() const { return length_; }
    bool closed() const { return pool_ == nullptr; }
    const KvPool* pool() const { return pool_.get(); }
    void check_open() const;  // throws Error(kInput) if closed

    // Makes room for `count` more positions that no other cache shares. Needs the model's lock.
    void reserve(int32_t count, const OwnStream& stream);
    const std::vector<KvPool::Page>& pages() const { return pages_; }
    void advance(int32_t count) { length_ += count; }

    void truncate(int32_t length);
    KvCache fork() const;
    void close();  // later uses are errors; closing again is not

    // Only one call may use a cache at a time.
    bool try_acquire() { return !in_use_->exchange(true); }
    void release() { in_use_->store(false); }

private:
    std::shared_ptr<KvPool> pool_;
    std::vector<KvPool::Page> pages_;
    int32_t length_ = 0;
    std::unique_ptr<std::atomic<bool>> in_use_ = std::make_unique<std::atomic<bool>>(false);
};

// Acquires caches for one call. Throws Error(kInput) if one is in use.
class CacheGuard {
public:
    explicit CacheGuard(const std::vector<KvCache*>& caches);
    ~CacheGuard() { release(); }
    CacheGuard(const CacheGuard&) = delete;
    CacheGuard& operator=(const CacheGuard&) = delete;

private:
    void release();
    std::vector<KvCache*> held_;
};

}  // namespace fastattn::cuda
