// Keys and values of one sequence; block b is page b. Pages are reference-counted: forked sequences share a page
// until one of them writes to it. With sliding windows in all layers, the first pages may be missing: no later query
// reads them, and their blocks are null.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kv/page_pool.h"

namespace fastattn {

struct Adapter;

class KvCache {
public:
    // adapter: of the sequence; null: none.
    explicit KvCache(std::shared_ptr<PagePool> pool, std::shared_ptr<const Adapter> adapter = nullptr)
        : pool_(std::move(pool)), adapter_(std::move(adapter)) {}

    int32_t length() const { return length_; }
    const Adapter* adapter() const { return adapter_.get(); }
    bool closed() const { return pool_ == nullptr; }
    const PagePool* pool() const { return pool_.get(); }
    const std::shared_ptr<PagePool>& shared_pool() const { return pool_; }

    // Makes room for `count` more positions that no other cache shares, and updates blocks(). Throws
    // Error(kOutOfMemory). After an error in the middle, or in the step that follows, there may be more blocks than the
    // positions need, until trim().
    void reserve(int32_t count);
    std::byte* const* blocks() const { return blocks_.data(); }
    void advance(int32_t count) { length_ += count; }

    // The page of positions index * kBlockLen and up, shared with this cache until either writes to it. Throws
    // Error(kInput) for an index without positions, and for a page that was freed.
    PagePool::Page share_page(int32_t index) const;
    // Appends the first `count` positions of a page of the same pool: keys and values of the tokens that follow. Throws
    // Error(kInput) if the length is not a multiple of kBlockLen.
    void attach(PagePool::Page page, int32_t count);
    // Appends a whole page that is missing, before any page that is not. Throws Error(kInput) after one.
    void skip_page();
    // Frees the pages whose positions no query at length() or later sees, if it sees only `window` positions up to
    // its own. Throws Error(kInput) unless window > 0.
    void slide(int32_t window);

    // Shares the positions of another cache of the same pool as this one's memory, which cross-attention reads. Later
    // changes of the other cache do not change it. Copies of this cache share it. Throws Error(kInput) for another
    // pool.
    void set_memory(const KvCache& from);
    const KvCache* memory() const { return memory_.get(); }  // null: none

    // Throws Error(kInput) unless 0 <= length <= length(), and if a query at `length` would see a missing page.
    void truncate(int32_t length);
    void trim();  // frees the pages that no position needs
    KvCache fork() const;
    void close();  // later uses are errors; closing again is not

    // Only one call may use a cache at a time.
    bool try_acquire() { return !in_use_->exchange(true); }
    void release() { in_use_->store(false); }
    void check_open() const;  // throws Error(kInput) if closed

private:
    void check_whole() const;  // throws Error(kInput) unless whole pages can follow
    void append(PagePool::Page page, int32_t count);

    std::shared_ptr<PagePool> pool_;
    std::shared_ptr<const Adapter> adapter_;
    std::vector<PagePool::Page> pages_;
    std::vector<std::byte*> blocks_;
    int32_t length_ = 0;
    std::shared_ptr<const KvCache> memory_;
    int32_t n_missing_ = 0;  // pages at the beginning
    int32_t window_ = 0;     // the widest that slide() was called with
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
