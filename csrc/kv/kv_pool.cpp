#include "kv/kv_pool.h"

#include <cstring>

namespace fastattn {

void KvPool::copy_page(std::byte* to, const std::byte* from) {
    std::memcpy(to, from, static_cast<size_t>(page_bytes()));
}

std::vector<std::byte*> KvPool::add_pages(int64_t) {
    std::vector<std::byte*> added(1);
    added[0] = pages_.emplace_back(static_cast<size_t>(page_bytes())).data();
    return added;
}

}  // namespace fastattn
