// Utilities of the native tests: numbers from a counter, buffers that end at a guard page, hashes.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/kernels.h"

namespace fastattn::native_tests {

// The i-th number of a stream: splitmix64, the same on every machine.
inline uint64_t bits_at(uint64_t stream, uint64_t i) {
    uint64_t z = (stream * 0x9e3779b97f4a7c15u) ^ (i + 1) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
inline float number_at(uint64_t stream, uint64_t i) {  // multiples of 2^-22 in [-2, 2)
    return static_cast<float>(static_cast<int64_t>(bits_at(stream, i) >> 40) - (1 << 23)) * 0x1p-22f;
}

// Floats that end directly before an inaccessible page, so they start at any alignment, depending on the size.
// Accessing one float too far is a fault that ends the run.
class GuardedBuffer {
public:
    GuardedBuffer(int64_t size, uint64_t stream, float factor = 1.0f);
    GuardedBuffer(GuardedBuffer&& other) noexcept
        : data_(other.data_), pages_(std::exchange(other.pages_, nullptr)), bytes_(other.bytes_), size_(other.size_) {}
    GuardedBuffer(const GuardedBuffer&) = delete;
    GuardedBuffer& operator=(const GuardedBuffer&) = delete;
    ~GuardedBuffer();
    float* data() const { return data_; }
    int64_t size() const { return size_; }

private:
    float* data_ = nullptr;
    void* pages_ = nullptr;
    int64_t bytes_ = 0, size_ = 0;
};

// What a kernel wrote: a hash of the bits (every NaN counts as the same one) and the bits themselves.
class Record {
public:
    void add(const float* values, int64_t n);
    void add(int32_t value);
    void add_words(const void* words, int64_t n);  // bits that are not floats
    uint64_t hash() const { return hash_; }
    bool operator==(const Record& other) const { return words_ == other.words_; }
    // Index of the first difference, for the message.
    int64_t first_difference(const Record& other) const;
    uint32_t word(int64_t i) const { return words_[static_cast<size_t>(i)]; }

private:
    void add_word(uint32_t word);
    uint64_t hash_ = 0xcbf29ce484222325u;
    std::vector<uint32_t> words_;
};

// One kernel of the table over all its cases.
struct KernelCases {
    const char* kernel;
    void (*run)(const KernelTable&, Record&);
    bool bfloat16_sums = false;  // a target whose order is its own has other bits; only its memory accesses are checked
};
extern const std::vector<KernelCases> kRowCases;        // cases_rows.cpp
extern const std::vector<KernelCases> kFormatCases;     // cases_formats.cpp
extern const std::vector<KernelCases> kAttentionCases;  // cases_attention.cpp

}  // namespace fastattn::native_tests
