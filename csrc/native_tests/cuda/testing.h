// What the tests of CUDA kernels share: rows of numbers, and checks that count.
#pragma once
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "cuda/kernels/device.h"
#include "native_tests/support.h"
#include "runtime/cpu.h"

namespace fastattn::cuda::tests {

using emulation::Order;
using native_tests::bits_at;
using native_tests::number_at;

inline constexpr double kHalfUlp = 0x1p-24;  // unit roundoff of float32
// Unit roundoff of a 16-bit type: half the distance from 1 to the next number.
inline double roundoff(Type type) {
    return type == Type::kBfloat16 ? 0x1p-8 : type == Type::kFloat16 ? 0x1p-11 : 0.0;
}
inline double to_double(Type type, uint16_t bits) {
    return type == Type::kBfloat16 ? float_from_bf16(bits) : float_from_f16(bits);
}
inline uint16_t rounded(Type type, float x) {
    return type == Type::kBfloat16 ? emulation::round_bf16(x) : emulation::round_f16(x);
}
// x rounded to an element of `type`.
inline float held(Type type, float x) {
    return type == Type::kFloat32 ? x : static_cast<float>(to_double(type, rounded(type, x)));
}

// Emulated device memory: starts at a multiple of 16 bytes and is NaN in every type.
template <class T>
class Memory {
public:
    explicit Memory(int64_t size) : units_(static_cast<size_t>((size * sizeof(T) + 15) / 16)), size_(size) {
        if (!units_.empty()) std::memset(static_cast<void*>(units_.data()), 0xff, units_.size() * sizeof(Words16));
    }
    Memory(int64_t size, uint64_t stream, float factor = 1.0f) : Memory(size) {
        for (int64_t i = 0; i < size; ++i) (*this)[i] = factor * number_at(stream, static_cast<uint64_t>(i));
    }
    Memory(std::initializer_list<T> values) : Memory(static_cast<int64_t>(values.size())) {
        std::copy(values.begin(), values.end(), data());
    }
    explicit Memory(const std::vector<T>& values) : Memory(static_cast<int64_t>(values.size())) {
        std::copy(values.begin(), values.end(), data());
    }
    T* data() { return reinterpret_cast<T*>(units_.data()); }
    const T* data() const { return reinterpret_cast<const T*>(units_.data()); }
    T& operator[](int64_t i) { return data()[i]; }
    const T& operator[](int64_t i) const { return data()[i]; }
    int64_t size() const { return size_; }

private:
    std::vector<Words16> units_;
    int64_t size_;
};

// Results of one case: how many numbers were compared, and what differed.
class Check {
public:
    // Bit for bit; all NaN are the same.
    void same(std::string_view what, const float* got, const float* expected, int64_t n);
    void same(std::string_view what, const uint16_t* got, const uint16_t* expected, int64_t n);
    void same(std::string_view what, const int32_t* got, const int32_t* expected, int64_t n);
    void within(std::string_view what, double got, double expected, double bound);
    void that(std::string_view what, bool condition);

    int64_t compared() const { return compared_; }
    int64_t failed() const { return failed_; }
    // The largest fraction of its bound that a result used.
    double worst() const { return worst_; }

private:
    void failure(const std::string& message);
    int64_t compared_ = 0, failed_ = 0;
    double worst_ = 0.0;
};

struct Case {
    const char* name;
    void (*run)(Check&);
};
extern const std::vector<Case> kRowCases;        // cases_rows.cpp
extern const std::vector<Case> kLinearCases;     // cases_linear.cpp
extern const std::vector<Case> kAttentionCases;  // cases_attention.cpp
extern const std::vector<Case> kSamplingCases;   // cases_sampling.cpp
extern const std::vector<Case> kPlanCases;       // cases_plan.cpp

}  // namespace fastattn::cuda::tests
