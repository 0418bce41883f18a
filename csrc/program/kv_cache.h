// Keys and values of sequences in pages. A page has kBlockLen positions of every layer and head, so block b of a
// sequence is page b. Pages are reference-counted: forked sequences share a page until one of them writes to it.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "core/buffer.h"
#include "ops/ops.h"

namespace fastattn {

struct KvShape {
    Format format;
    int32_t n_layer, n_kv_head, head_dim;

    int64_t head_bytes() const { return kv_head_layout(format, head_dim).bytes; }
    int64_t layer_bytes() const { return n_kv_head * head_bytes(); }
    int64_t page_bytes() const { return n_layer * layer_bytes(); }
    bool operator==(const KvShape&) const = default;
};

// Reuses freed pages for later sequences, because page faults cost more than the memory is worth.
class KvPool : public std::enable_shared_from_this<KvPool> {
public:
    explicit KvPool(KvShape shape) : shape_(shape) {}
    const KvShape& shape() const { return shape_; }
    std::shared_ptr<Buffer> page();
    int64_t bytes() const;  // of all pages, in use or free

private:
    KvShape shape_;
    mutable std::mutex mutex_;
    std::vector<Buffer> free_;
    int64_t n_pages_ = 0;
};

class KvCache {
public:
    explicit KvCache(std::shared_ptr<KvPool> pool) : pool_(std::move(pool)) {}

    int32_t length() const { return length_; }
    bool closed() const { return pool_ == nullptr; }
    const KvPool* pool() const { return pool_.get(); }

    // Makes room for `count` more positions that no other cache shares, and updates blocks().
    void reserve(int32_t count);
    std::byte* const* blocks() const { return blocks_.data(); }
    void advance(int32_t count) { length_ += count; }

    void truncate(int32_t length);
    KvCache fork() const;
    void close();  // later uses are errors; closing again is not

    // Only one call may use a cache at a time.
    bool try_acquire() { return !in_use_->exchange(true); }
    void release() { in_use_->store(false); }
    void check_open() const;  // throws Error(kInput) if closed

private:
    std::shared_ptr<KvPool> pool_;
    std::vector<std::shared_ptr<Buffer>> pages_;
    std::vector<std::byte*> blocks_;
    int32_t length_ = 0;
    std::unique_ptr<std::atomic<bool>> in_use_ = std::make_unique<std::atomic<bool>>(false);
};

// Acquires caches for one call, so that two threads never write to one. Throws Error(kInput) if one is in use.
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

}  // namespace fastattn
