// Keys and values of one sequence; block b is page b. Pages are reference-counted: forked sequences share a page
// until one of them writes to it.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kv/page_pool.h"

namespace fastattn {

class KvCache {
public:
    explicit KvCache(std::shared_ptr<PagePool> pool) : pool_(std::move(pool)) {}

    int32_t length() const { return length_; }
    bool closed() const { return pool_ == nullptr; }
    const PagePool* pool() const { return pool_.get(); }

    // Makes room for `count` more positions that no other cache shares, and updates blocks(). Throws
    // Error(kOutOfMemory). After an error in the middle, or in the step that follows, there may be more blocks than the
    // positions need, until trim().
    void reserve(int32_t count);
    std::byte* const* blocks() const { return blocks_.data(); }
    void advance(int32_t count) { length_ += count; }

    void truncate(int32_t length);  // throws Error(kInput) unless 0 <= length <= length()
    void trim();                    // frees the pages that no position needs
    KvCache fork() const;
    void close();  // later uses are errors; closing again is not

    // Only one call may use a cache at a time.
    bool try_acquire() { return !in_use_->exchange(true); }
    void release() { in_use_->store(false); }
    void check_open() const;  // throws Error(kInput) if closed

private:
    std::shared_ptr<PagePool> pool_;
    std::vector<PagePool::Page> pages_;
    std::vector<std::byte*> blocks_;
    int32_t length_ = 0;
    std::unique_ptr<std::atomic<bool>> in_use_ = std::make_unique<std::atomic<bool>>(false);
};

// Acquires caches for one call, so that two threads never write to one. Throws Error(kInput) if one is in use. At its
// end, caches free the pages that a failed step reserved: others may need them.
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
