#include "kv/kv_cache.h"

#include <string>

#include "core/error.h"
#include "kernels/kernels.h"

namespace fastattn {

void KvCache::reserve(int32_t count) {
    if (count == 0) return;
    const auto first = static_cast<size_t>(length_ / kBlockLen);
    const auto last = static_cast<size_t>((length_ + count - 1) / kBlockLen);
    blocks_.reserve(last + 1);  // so that either both grow or neither
    pages_.reserve(last + 1);
    for (size_t b = first; b <= last; ++b) {
        if (b < pages_.size() && pages_[b].use_count() == 1) continue;
        PagePool::Page page = pool_->page();
        if (b < pages_.size()) {
            pool_->copy_page(page.get(), pages_[b].get());
            blocks_[b] = page.get();
            pages_[b] = std::move(page);
        } else {
            blocks_.push_back(page.get());
            pages_.push_back(std::move(page));
        }
    }
}

void KvCache::check_open() const {
    if (closed()) throw Error(ErrorKind::kInput, "cache: expected an open cache, got a closed one");
}

PagePool::Page KvCache::share_page(int32_t index) const {
    if (index < 0 || int64_t{index} * kBlockLen >= length_)
        throw Error(ErrorKind::kInput, "index: expected a page of the " + std::to_string(length_) + " positions, got " +
                                           std::to_string(index));
    return pages_[static_cast<size_t>(index)];
}

void KvCache::attach(PagePool::Page page, int32_t count) {
    if (length_ % kBlockLen != 0 || pages_.size() != static_cast<size_t>(length_ / kBlockLen))
        throw Error(ErrorKind::kInput, "cache: expected whole pages of " + std::to_string(kBlockLen) +
                                           " positions to attach another, got " + std::to_string(length_));
    if (count < 1 || count > kBlockLen)
        throw Error(ErrorKind::kInput,
                    "count: expected 1 to " + std::to_string(kBlockLen) + ", got " + std::to_string(count));
    blocks_.reserve(pages_.size() + 1);  // so that either both grow or neither
    pages_.reserve(pages_.size() + 1);
    blocks_.push_back(page.get());
    pages_.push_back(std::move(page));
    length_ += count;
}

void KvCache::truncate(int32_t length) {
    if (length < 0 || length > length_)
        throw Error(ErrorKind::kInput,
                    "length: expected 0 to " + std::to_string(length_) + ", got " + std::to_string(length));
    length_ = length;
    trim();
}

void KvCache::trim() {
    const auto keep = static_cast<size_t>((length_ + kBlockLen - 1) / kBlockLen);
    if (keep < pages_.size()) {
        pages_.resize(keep);
        blocks_.resize(keep);
    }
}

KvCache KvCache::fork() const {
    KvCache other(pool_, adapter_);
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
            throw Error(ErrorKind::kInput,
                        "caches: expected each cache once and in no other call, got one that is in use");
        }
        held_.push_back(cache);
    }
}

void CacheGuard::release() {
    for (KvCache* cache : held_) {
        cache->trim();
        cache->release();
    }
    held_.clear();
}

}  // namespace fastattn
