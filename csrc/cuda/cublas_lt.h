// Products by cuBLASLt, which is loaded when it is there (the `nvidia-cublas` wheel or the system's) and never linked.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/device_memory.h"

namespace fastattn::cuda {

// product = x @ weight.T in float32, rows of x and weight of `type`.
struct ProductArgs {
    const void* x;  // [m, k]
    int64_t x_stride;
    const void* weight;  // [n, k]
    int64_t weight_stride;
    float* product;  // [m, n]
    int64_t product_stride;
    Type type;
    int64_t m, n, k;
};

// One algorithm for each (n, k, type), without a split of k, is chosen for kReferenceRows rows and used for every
// number of rows: what else is in the batch then changes no bits.
class CublasLt {
public:
    static constexpr int64_t kReferenceRows = 64;
    static constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

    // `paths` are tried first, then the names of the system. Null where none can be loaded; `why` then says which.
    static std::unique_ptr<CublasLt> load(const std::vector<std::string>& paths, bool tf32,
                                          const std::shared_ptr<Budget>& budget, std::string& why);
    ~CublasLt();
    CublasLt(const CublasLt&) = delete;
    CublasLt& operator=(const CublasLt&) = delete;

    const std::string& path() const { return path_; }
    // Chooses the algorithm of a shape; false where there is none for every number of rows. Not while a graph is
    // captured.
    bool prepare(const ProductArgs& args);
    void multiply(const ProductArgs& args, Stream stream);  // of a shape that was prepared

private:
    struct Library;
    struct Algorithm;
    using Shape = std::tuple<int64_t, int64_t, Type, int64_t, int64_t, int64_t>;  // n, k, type, strides

    CublasLt(std::unique_ptr<Library> library, std::string path, bool tf32, const std::shared_ptr<Budget>& budget);
    static Shape shape_of(const ProductArgs& args);

    std::unique_ptr<Library> library_;
    std::string path_;
    bool tf32_;
    void* handle_ = nullptr;
    Allocation workspace_;
    std::map<Shape, std::unique_ptr<Algorithm>> algorithms_;
};

}  // namespace fastattn::cuda
