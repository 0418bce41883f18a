#include "core/buffer.h"

#include <string>

#include "core/error.h"
#include "core/platform.h"

namespace fastattn {
namespace {

[[noreturn]] void out_of_memory(size_t bytes) {
    throw Error(ErrorKind::kOutOfMemory, "could not allocate " + std::to_string(bytes) + " bytes");
}

}  // namespace

Buffer::Buffer(size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    const size_t mapped = bytes < kHugePage ? 0 : (bytes + kHugePage - 1) / kHugePage * kHugePage;
    data_ = {mapped > 0 ? map_pages(mapped) : allocate_aligned(bytes), Free{mapped, nullptr}};
    if (data_ == nullptr) out_of_memory(bytes);
}

Buffer::Buffer(std::byte* data, size_t bytes, std::shared_ptr<const void> owner)
    : data_(data, Free{0, std::move(owner)}), bytes_(bytes) {}

void Buffer::grow(size_t bytes) {
    if (bytes_ >= bytes) return;
    *this = Buffer();
    *this = Buffer(bytes);
}

void Buffer::Free::operator()(std::byte* data) const {
    if (owner != nullptr) return;
    if (mapped > 0)
        unmap_pages(data, mapped);
    else
        free_aligned(data);
}

}  // namespace fastattn
