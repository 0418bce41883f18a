#include "cuda/device_memory.h"

#include <algorithm>

#include "core/error.h"

namespace fastattn::cuda {
namespace { constexpr int64_t kFirstPages = 16; }  // namespace

void Budget::take(int64_t bytes, const std::string& what) {
    const int64_t before = used_.fetch_add(bytes);
    if (before + bytes <= bytes_) return;
    used_ -= bytes;
    throw Error(ErrorKind::kOutOfMemory, "cuda: could not allocate " + std::to_string(bytes) + " bytes for " + what +
                                             ": " + std::to_string(before) + " of the budget of " +
                                             std::to_string(bytes_) + " are in use");
}

Allocation::Allocation(const std::shared_ptr<Budget>& budget, int64_t bytes, const std::string& what) {
    budget->take(bytes, what);
    share_ = {budget.get(), [budget, bytes](Budget* owner) { owner->release(bytes); }};
    buffer_ = DeviceBuffer(bytes);
}

void KvPool::copy_page(std::byte* to, const std::byte* from) {
    copy_on_device(to, from, page_bytes(), stream_);
}

int64_t KvPool::growth(int64_t n_pages) const {
    return std::max(kFirstPages, n_pages);
}

std::vector<std::byte*> KvPool::add_pages(int64_t most) {
    for (int64_t n = most;; n /= 2) {
        std::vector<std::byte*> added;
        added.reserve(static_cast<size_t>(n));
        try {
            pieces_.emplace_back(budget_, n * page_bytes(), "pages of keys and values");
        } catch (const Error& error) {
            if (error.kind() != ErrorKind::kOutOfMemory || n == 1) throw;
            continue;
        }
        for (int64_t page = n - 1; page >= 0; --page) added.push_back(pieces_.back().data() + page * page_bytes());
        return added;
    }
}

}  // namespace fastattn::cuda
