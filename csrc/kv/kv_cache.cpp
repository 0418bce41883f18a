#include "kv/kv_cache.h"

#include <algorithm>
#include <string>

#include "core/error.h"
#include "kernels/kernels.h"

namespace fastattn {
namespace {

// The first page that a query at `position` sees. window: 0 for none.
int32_t first_seen(int32_t position, int32_t window) {
    return window == 0 || position < window ? 0 : (position - window + 1) / kBlockLen;
}

}  // namespace

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
    if (index < n_missing_)
        throw Error(ErrorKind::kInput, "index: expected a page from " + std::to_string(n_missing_) +
                                           " on, because the earlier ones were freed, got " + std::to_string(index));
    return pages_[static_cast<size_t>(index)];
}

void KvCache::attach(PagePool::Page page, int32_t count) {
    check_whole();
    if (count < 1 || count > kBlockLen)
        throw Error(ErrorKind::kInput,
                    "count: expected 1 to " + std::to_string(kBlockLen) + ", got " + std::to_string(count));
    append(std::move(page), count);
}

void KvCache::skip_page() {
    check_whole();
    if (static_cast<size_t>(n_missing_) != pages_.size())
        throw Error(ErrorKind::kInput,
                    "cache: expected only missing pages before another one, got page " + std::to_string(n_missing_));
    append(nullptr, kBlockLen);
    ++n_missing_;
}

void KvCache::check_whole() const {
    if (length_ % kBlockLen != 0 || pages_.size() != static_cast<size_t>(length_ / kBlockLen))
        throw Error(ErrorKind::kInput, "cache: expected whole pages of " + std::to_string(kBlockLen) +
                                           " positions to attach another, got " + std::to_string(length_));
}

void KvCache::append(PagePool::Page page, int32_t count) {
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
    if (length > 0 && first_seen(length, window_) < n_missing_)
        throw Error(ErrorKind::kInput, "length: expected 0, or a length whose window of " + std::to_string(window_) +
                                           " positions is stored, got " + std::to_string(length));
    length_ = length;
    trim();
}

void KvCache::slide(int32_t window) {
    if (window < 1) throw Error(ErrorKind::kInput, "window: expected at least 1, got " + std::to_string(window));
    window_ = std::max(window_, window);
    for (const int32_t end = first_seen(length_, window_); n_missing_ < end; ++n_missing_) {
        pages_[static_cast<size_t>(n_missing_)].reset();
        blocks_[static_cast<size_t>(n_missing_)] = nullptr;
    }
}

void KvCache::trim() {
    const auto keep = static_cast<size_t>((length_ + kBlockLen - 1) / kBlockLen);
    if (keep < pages_.size()) {
        pages_.resize(keep);
        blocks_.resize(keep);
    }
    n_missing_ = std::min(n_missing_, static_cast<int32_t>(keep));
}

KvCache KvCache::fork() const {
    KvCache other(pool_, adapter_);
    other.pages_ = pages_;
    other.blocks_ = blocks_;
    other.length_ = length_;
    other.memory_ = memory_;
    other.n_missing_ = n_missing_;
    other.window_ = window_;
    return other;
}

void KvCache::set_memory(const KvCache& from) {
    if (from.pool() != pool()) throw Error(ErrorKind::kInput, "memory: expected a cache of this model");
    auto memory = std::make_shared<KvCache>(from.fork());
    memory->memory_ = nullptr;
    memory_ = std::move(memory);
}

void KvCache::close() {
    pages_.clear();
    blocks_.clear();
    length_ = n_missing_ = window_ = 0;
    memory_.reset();
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
