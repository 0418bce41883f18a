#include "kv/page_pool.h"

#include "core/error.h"

namespace fastattn {
namespace {

[[noreturn]] void not_on_host() {
    throw Error(ErrorKind::kInput, "page: expected keys and values in the memory of the CPU, got those of a GPU");
}

}  // namespace

void PagePool::read_page(std::byte*, const std::byte*) {
    not_on_host();
}

void PagePool::write_page(std::byte*, const std::byte*) {
    not_on_host();
}

int64_t PagePool::pages_in_use() const {
    const std::lock_guard lock(mutex_);
    return n_pages_ - static_cast<int64_t>(free_.size());
}

int64_t PagePool::bytes() const {
    const std::lock_guard lock(mutex_);
    return n_pages_ * page_bytes_;
}

PagePool::Page PagePool::page() {
    std::byte* page = nullptr;
    for (bool found = false; !found;) {
        {
            const std::lock_guard lock(mutex_);
            found = !free_.empty();
            if (found) {
                page = free_.back();
                free_.pop_back();
            }
        }
        if (!found) grow();
    }
    // If this fails, it passes the page to the deleter, which puts it back.
    return {page, [self = shared_from_this()](std::byte* freed) { self->free_page(freed); }};
}

// Allocates without the lock, because it takes long.
void PagePool::grow() {
    int64_t most = 0;
    {
        const std::lock_guard lock(mutex_);
        most = growth(n_pages_);
        free_.reserve(static_cast<size_t>(n_pages_ + most));  // so that freeing a page cannot fail
    }
    const std::vector<std::byte*> added = add_pages(most);
    const std::lock_guard lock(mutex_);
    free_.insert(free_.end(), added.begin(), added.end());
    n_pages_ += static_cast<int64_t>(added.size());
}

void PagePool::free_page(std::byte* page) noexcept {
    const std::lock_guard lock(mutex_);
    free_.push_back(page);
}

}  // namespace fastattn
