#include "core/buffer.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "core/error.h"

namespace fastattn {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

[[noreturn]] void out_of_memory(size_t bytes) {
    throw Error(ErrorKind::kOutOfMemory, "could not allocate " + std::to_string(bytes) + " bytes");
}

}  // namespace

Buffer::Buffer(size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    if (bytes < kHugePage) {
        const size_t rounded = (bytes + 63) / 64 * 64;
        data_.reset(static_cast<std::byte*>(std::aligned_alloc(64, rounded)));
        if (data_ == nullptr) out_of_memory(bytes);
        std::memset(data_.get(), 0, rounded);
        return;
    }
    // Map one extra huge page and unmap the unaligned ends, so that every page can be a huge page. The kernel then
    // zeroes 2 MiB per fault instead of 4 KiB, and streaming reads have 512 times fewer TLB misses.
    const size_t need = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    void* raw = mmap(nullptr, need + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) out_of_memory(bytes);
    auto begin = reinterpret_cast<uintptr_t>(raw);
    const uintptr_t aligned = (begin + kHugePage - 1) / kHugePage * kHugePage;
    if (aligned > begin) munmap(raw, aligned - begin);
    const size_t tail = begin + kHugePage - aligned;
    if (tail > 0) munmap(reinterpret_cast<void*>(aligned + need), tail);
    madvise(reinterpret_cast<void*>(aligned), need, MADV_HUGEPAGE);
    data_ = {reinterpret_cast<std::byte*>(aligned), Free{need}};
}

void Buffer::grow(size_t bytes) {
    if (bytes_ >= bytes) return;
    *this = Buffer();
    *this = Buffer(bytes);
}

void Buffer::Free::operator()(std::byte* data) const {
    if (mapped > 0)
        munmap(data, mapped);
    else
        std::free(data);
}

}  // namespace fastattn
