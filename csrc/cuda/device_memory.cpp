#include "cuda/device_memory.h"

#include <algorithm>

#include "core/error.h"

namespace fastattn::cuda {
namespace { constexpr int32_t kFirstPages = 16; }  // namespace

void Budget::take(int64_t bytes, const std::string& what) {
    const int64_t before = used_.fetch_add(bytes);
    if (before + bytes <= bytes_) return;
    used_ -= bytes;
    throw Error(ErrorKind::kOutOfMemory, "cuda: could not take " + std::to_string(bytes) + " bytes for " + what + ": " +
                                             std::to_string(before) + " of the budget of " + std::to_string(bytes_) +
                                             " are in use");
}

Allocation::Allocation(std::shared_ptr<Budget> budget, int64_t bytes, const std::string& what) {
    budget->take(bytes, what);
    try {
        buffer_ = DeviceBuffer(bytes);
    } catch (...) {
        budget->give_back(bytes);
        throw;
    }
    budget_ = std::move(budget);
}

Allocation::~Allocation() {
    if (budget_ != nullptr) budget_->give_back(buffer_.bytes());
}

void KvPool::grow(const OwnStream& stream) {
    const int32_t more = std::max(kFirstPages, n_pages_);
    Allocation larger(budget_, (int64_t{n_pages_} + more) * shape_.page_bytes(), "pages of keys and values");
    if (n_pages_ > 0) copy_on_device(larger.data(), memory_.data(), memory_.bytes(), stream.get());
    (void)stream.wait([] { return false; });  // until here the old memory is read
    memory_ = std::move(larger);
    ++moves_;
    const std::lock_guard lock(mutex_);
    free_.reserve(static_cast<size_t>(n_pages_ + more));  // so that freeing a page cannot fail
    for (int32_t page = n_pages_ + more - 1; page >= n_pages_; --page) free_.push_back(page);
    n_pages_ += more;
}

KvPool::Page KvPool::page(const OwnStream& stream) {
    bool empty;
    {
        const std::lock_guard lock(mutex_);
        empty = free_.empty();
    }
    if (empty) grow(stream);
    auto number = std::make_unique<int32_t>(-1);
    {
        const std::lock_guard lock(mutex_);
        *number = free_.back();
        free_.pop_back();
    }
    return {number.release(), [self = shared_from_this()](const int32_t* page) {
                const std::lock_guard lock(self->mutex_);
                self->free_.push_back(*page);
                delete page;
            }};
}

void KvPool::copy_page(int32_t from, int32_t to, Stream stream) const {
    const int64_t bytes = shape_.page_bytes();
    copy_on_device(memory_.data() + to * bytes, memory_.data() + from * bytes, bytes, stream);
}

void KvCache::check_open() const {
    if (closed()) throw Error(ErrorKind::kInput, "cache: expected an open one, it was closed");
}

void KvCache::reserve(int32_t count, const OwnStream& stream) {
    if (count == 0) return;
    const auto first = static_cast<size_t>(length_ / kBlockLen);
    const auto last = static_cast<size_t>((length_ + count - 1) / kBlockLen);
    pages_.reserve(last + 1);
    for (size_t b = first; b <= last; ++b) {
        if (b < pages_.size() && pages_[b].use_count() == 1) continue;
        KvPool::Page page = pool_->page(stream);
        if (b < pages_.size()) {
            pool_->copy_page(*pages_[b], *page, stream.get());
            pages_[b] = std::move(page);
        } else {
            pages_.push_back(std::move(page));
        }
    }
}

void KvCache::truncate(int32_t length) {
    if (length < 0 || length > length_)
        throw Error(ErrorKind::kInput,
                    "length: expected 0 to " + std::to_string(length_) + ", got " + std::to_string(length));
    length_ = length;
    pages_.resize(std::min(pages_.size(), static_cast<size_t>((length + kBlockLen - 1) / kBlockLen)));
}

KvCache KvCache::fork() const {
    KvCache other(pool_);
    other.pages_ = pages_;
    other.length_ = length_;
    return other;
}

void KvCache::close() {
    pages_.clear();
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

}  // namespace fastattn::cuda
