#include "program/kv_cache.h"

#include <cstring>

#include "core/error.h"
#include "kernels/kernels.h"

namespace fastattn {

std::shared_ptr<Buffer> KvPool::page() {
    auto held = std::make_unique<Buffer>();  // allocated before a page is taken, so that a failure loses no page
    bool found = false;
    {
        const std::lock_guard lock(mutex_);
        if (!free_.empty()) {
            *held = std::move(free_.back());
            free_.pop_back();
            found = true;
        }
    }
    if (!found) {  // zero the new page without the lock
        *held = Buffer(static_cast<size_t>(shape_.page_bytes()));
        const std::lock_guard lock(mutex_);
        free_.reserve(static_cast<size_t>(n_pages_ + 1));  // so that freeing a page cannot fail
        ++n_pages_;
    }
    // If this fails, it passes the page to the deleter, which puts it back.
    return {held.release(), [self = shared_from_this()](Buffer* page) {
                const std::lock_guard lock(self->mutex_);
                self->free_.push_back(std::move(*page));
                delete page;
            }};
}

int64_t KvPool::bytes() const {
    const std::lock_guard lock(mutex_);
    return n_pages_ * shape_.page_bytes();
}

void KvCache::reserve(int32_t count) {
    if (count == 0) return;
    const auto first = static_cast<size_t>(length_ / kBlockLen);
    const auto last = static_cast<size_t>((length_ + count - 1) / kBlockLen);
    blocks_.reserve(last + 1);  // so that either both grow or neither
    pages_.reserve(last + 1);
    for (size_t b = first; b <= last; ++b) {
        if (b < pages_.size() && pages_[b].use_count() == 1) continue;
        std::shared_ptr<Buffer> page = pool_->page();
        if (b < pages_.size()) {
            std::memcpy(page->data(), pages_[b]->data(), page->bytes());
            blocks_[b] = page->data();
            pages_[b] = std::move(page);
        } else {
            blocks_.push_back(page->data());
            pages_.push_back(std::move(page));
        }
    }
}

void KvCache::check_open() const {
    if (closed()) throw Error(ErrorKind::kInput, "cache: expected an open one, it was closed");
}

void KvCache::truncate(int32_t length) {
    if (length < 0 || length > length_)
        throw Error(ErrorKind::kInput,
                    "length: expected 0 to " + std::to_string(length_) + ", got " + std::to_string(length));
    length_ = length;
    const auto keep = static_cast<size_t>((length + kBlockLen - 1) / kBlockLen);
    if (keep < pages_.size()) {
        pages_.resize(keep);
        blocks_.resize(keep);
    }
}

KvCache KvCache::fork() const {
    KvCache other(pool_);
    other.pages_ = pages_;
    other.blocks_ = blocks_;
    other.length_ = length_;
    return other;
}

void KvCache::close() {
    pages_.clear();
    blocks_.clear();
    length_ = 0;
    pool_.reset();
}

CacheGuard::CacheGuard(const std::vector<KvCache*>& caches) {
    held_.reserve(caches.size());
    for (KvCache* cache : caches) {
        if (!cache->try_acquire()) {
            release();
            throw Error(ErrorKind::kInput, "caches: a cache is used by another call, or twice in this one");
        }
        held_.push_back(cache);
    }
}

void CacheGuard::release() {
    for (KvCache* cache : held_) cache->release();
    held_.clear();
}

}  // namespace fastattn
