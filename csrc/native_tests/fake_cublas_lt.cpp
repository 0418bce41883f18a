// A stand-in for libcublasLt.so on the emulated GPU, with the functions that cuda/cublas_lt.cpp looks up. It rejects
// what the executor must never request, and sums in the CPU's order, so whole models have the CPU's bits.
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "core/dtype.h"
#include "native_tests/emulated_stream.h"

namespace {

constexpr int kSuccess = 0, kNotInitialized = 1, kInvalid = 7, kNotSupported = 15;
constexpr int64_t kSum = 128;  // terms per partial sum (docs/numerics.md)
constexpr uint64_t kGood = 3;  // the only algorithm that takes every number of rows

struct Desc {
    int compute;
    int32_t trans_a = 0, trans_b = 0;
};
struct Layout {
    int type;
    int64_t rows, columns, stride;
};
struct Preference {
    uint64_t workspace_bytes = 0;
    uint32_t reductions = 7;
};
struct Algo {
    uint64_t id, splits, reduction, rest[5];
};
struct Result {
    Algo algo;
    size_t workspace_bytes;
    int state;
    float waves;
    int reserved[4];
};

// Element [row, column] of a column-major matrix.
float element(const void* data, const Layout& layout, int64_t row, int64_t column, bool tf32) {
    const int64_t at = column * layout.stride + row;
    if (layout.type != 0) {
        uint16_t bits;
        std::memcpy(&bits, static_cast<const uint16_t*>(data) + at, sizeof(bits));
        return layout.type == 14 ? fastattn::float_from_bf16(bits) : fastattn::float_from_f16(bits);
    }
    const float x = static_cast<const float*>(data)[at];
    if (!tf32) return x;
    const float magnitude = std::ldexp(1.0f, std::ilogb(x) - 10);
    return x == 0.0f ? x : std::nearbyint(x / magnitude) * magnitude;
}

bool fits(const Desc& desc, const Layout& a, const Layout& b, const Layout& c) {
    return desc.trans_a == 1 && desc.trans_b == 0 && a.rows == b.rows && a.columns == c.rows &&
           b.columns == c.columns && a.type == b.type && c.type == 0 && a.stride >= a.rows && b.stride >= b.rows &&
           c.stride >= c.rows && (desc.compute == 68 || (desc.compute == 77 && a.type == 0));
}

template <class T, class... Args>
int make(void** handle, Args... args) {
    *handle = new T{args...};
    return kSuccess;
}
template <class T>
int end(void* handle) {
    delete static_cast<T*>(handle);
    return kSuccess;
}

}  // namespace

#define API extern "C" __attribute__((visibility("default"))) int

API cublasLtCreate(void** handle) {
    return std::getenv("FAKE_CUBLAS_LT_FAILS") != nullptr ? kNotInitialized : make<pid_t>(handle, getpid());
}
API cublasLtDestroy(void* handle) {
    if (*static_cast<pid_t*>(handle) != getpid()) std::abort();  // a forked child must not use what it inherited
    return end<pid_t>(handle);
}
API cublasLtMatmulDescCreate(void** desc, int compute, int scale) {
    return scale == 0 ? make<Desc>(desc, compute) : kInvalid;
}
API cublasLtMatmulDescDestroy(void* desc) {
    return end<Desc>(desc);
}
API cublasLtMatmulDescSetAttribute(void* desc, int attribute, const void* value, size_t bytes) {
    auto* d = static_cast<Desc*>(desc);
    if (bytes != sizeof(int32_t) || (attribute != 3 && attribute != 4)) return kInvalid;
    std::memcpy(attribute == 3 ? &d->trans_a : &d->trans_b, value, bytes);
    return kSuccess;
}
API cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    return make<Layout>(layout, type, static_cast<int64_t>(rows), static_cast<int64_t>(columns), stride);
}
API cublasLtMatrixLayoutDestroy(void* layout) {
    return end<Layout>(layout);
}
API cublasLtMatmulPreferenceCreate(void** preference) {
    return make<Preference>(preference);
}
API cublasLtMatmulPreferenceDestroy(void* preference) {
    return end<Preference>(preference);
}
API cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value, size_t bytes) {
    auto* p = static_cast<Preference*>(preference);
    if (attribute == 1 && bytes == sizeof(p->workspace_bytes))
        std::memcpy(&p->workspace_bytes, value, bytes);
    else if (attribute == 3 && bytes == sizeof(p->reductions))
        std::memcpy(&p->reductions, value, bytes);
    else
        return kInvalid;
    return kSuccess;
}
// The heuristic's first choice splits k, the second is broken, the third takes only few rows, the fourth is good. A
// product with an odd number of output columns has none.
API cublasLtMatmulAlgoGetHeuristic(void*, void* desc, void* a, void* b, void* c, void*, void* preference, int most,
                                   Result* results, int* count) {
    const auto* p = static_cast<const Preference*>(preference);
    *count = 0;
    if (!fits(*static_cast<Desc*>(desc), *static_cast<Layout*>(a), *static_cast<Layout*>(b), *static_cast<Layout*>(c)))
        return kInvalid;
    if (p->reductions != 0 || p->workspace_bytes == 0 || most < 4) return kInvalid;
    if (static_cast<Layout*>(a)->columns % 2 == 1) return kNotSupported;
    for (uint64_t id = 0; id <= kGood; ++id) {
        results[id] = {};
        results[id].algo = {.id = id, .splits = id == 0 ? uint64_t{4} : 0, .reduction = 2, .rest = {}};
        results[id].state = id == 1 ? kNotSupported : kSuccess;
    }
    *count = kGood + 1;
    return kSuccess;
}
API cublasLtMatmulAlgoConfigSetAttribute(Algo* algo, int attribute, const void* value, size_t bytes) {
    if (bytes != sizeof(uint32_t) || (attribute != 2 && attribute != 3)) return kInvalid;
    uint32_t number;
    std::memcpy(&number, value, bytes);
    if (algo->id == 0) return kNotSupported;  // it cannot work without its split
    (attribute == 2 ? algo->splits : algo->reduction) = number;
    return kSuccess;
}
API cublasLtMatmulAlgoCheck(void*, void*, void*, void* b, void*, void*, const Algo* algo, Result* result) {
    if (algo->splits != 1 || algo->reduction != 0) return kInvalid;
    if (algo->id == 2 && static_cast<Layout*>(b)->columns > 64) return kNotSupported;
    result->workspace_bytes = 1024;
    return kSuccess;
}
API cublasLtMatmul(void*, void* desc, const void* alpha, const void* x, void* a, const void* y, void* b,
                   const void* beta, const void* in, void* c, void* out, void*, const Algo* algo, void* workspace,
                   size_t workspace_bytes, CUstream_st* stream) {
    const Desc d = *static_cast<Desc*>(desc);
    const Layout la = *static_cast<Layout*>(a), lb = *static_cast<Layout*>(b), lc = *static_cast<Layout*>(c);
    if (algo->id != kGood || algo->splits != 1 || algo->reduction != 0 || workspace == nullptr ||
        workspace_bytes < 1024 || in != out || *static_cast<const float*>(alpha) != 1.0f ||
        *static_cast<const float*>(beta) != 0.0f || !fits(d, la, lb, lc))
        return kInvalid;
    fastattn::cuda::submit(stream, [=] {
        const bool tf32 = d.compute == 77;
        for (int64_t row = 0; row < lc.columns; ++row)
            for (int64_t column = 0; column < lc.rows; ++column) {
                float total = 0.0f;
                for (int64_t begin = 0; begin < la.rows; begin += kSum) {
                    float sum = 0.0f;
                    for (int64_t k = begin; k < la.rows && k < begin + kSum; ++k)
                        sum = std::fma(element(y, lb, k, row, tf32), element(x, la, k, column, tf32), sum);
                    total = begin == 0 ? sum : total + sum;
                }
                static_cast<float*>(out)[row * lc.stride + column] = total;
            }
    });
    return kSuccess;
}
