#include "native_tests/support.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <stdexcept>

namespace fastattn::native_tests {

GuardedBuffer::GuardedBuffer(int64_t size, uint64_t stream, float factor) : size_(size) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    const int64_t used = (size * 4 + page - 1) / page * page;
    bytes_ = used + page;
    pages_ = mmap(nullptr, static_cast<size_t>(bytes_), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages_ == MAP_FAILED) throw std::runtime_error("mmap failed");
    char* end = static_cast<char*>(pages_) + used;
    if (mprotect(end, static_cast<size_t>(page), PROT_NONE) != 0) throw std::runtime_error("mprotect failed");
    data_ = reinterpret_cast<float*>(end) - size;
    for (int64_t i = 0; i < size; ++i) data_[i] = factor * number_at(stream, static_cast<uint64_t>(i));
}

GuardedBuffer::~GuardedBuffer() {
    if (pages_ != nullptr) munmap(pages_, static_cast<size_t>(bytes_));
}

void Record::add_word(uint32_t word) {
    words_.push_back(word);
    hash_ = (hash_ ^ word) * 0x100000001b3u;
}

void Record::add(int32_t value) {
    add_word(static_cast<uint32_t>(value));
}

void Record::add_words(const void* words, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        uint32_t word;
        std::memcpy(&word, static_cast<const std::byte*>(words) + 4 * i, sizeof word);
        add_word(word);
    }
}

void Record::add(const float* values, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        uint32_t word;
        std::memcpy(&word, values + i, sizeof word);
        add_word(values[i] != values[i] ? 0x7fc00000u : word);
    }
}

int64_t Record::first_difference(const Record& other) const {
    const size_t n = words_.size() < other.words_.size() ? words_.size() : other.words_.size();
    for (size_t i = 0; i < n; ++i)
        if (words_[i] != other.words_[i]) return static_cast<int64_t>(i);
    return static_cast<int64_t>(n);
}

}  // namespace fastattn::native_tests
