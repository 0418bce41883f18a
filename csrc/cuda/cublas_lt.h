// Products by cuBLASLt, which is loaded if present (the `nvidia-cublas` wheel or the system's) and never linked.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/device_memory.h"
#include "runtime/fork_local.h"

namespace fastattn::cuda {

// product = x @ weight.T in float32; x and weight are of `type`.
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
// number of rows. So the rest of the batch does not change the bits of a row.
class CublasLt {
public:
    static constexpr int64_t kReferenceRows = 64;
    static constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

    // Tries `paths`, then the names of the system's libraries. Returns null if none can be loaded; `why` then has the
    // reasons.
    static std::unique_ptr<CublasLt> load(const std::vector<std::string>& paths, bool tf32,
                                          const std::shared_ptr<Budget>& budget, std::string& why);
    ~CublasLt();
    CublasLt(const CublasLt&) = delete;
    CublasLt& operator=(const CublasLt&) = delete;

    const std::string& path() const { return path_; }
    // Chooses the algorithm of a shape; false if none works for every number of rows. Must not run during graph
    // capture.
    bool prepare(const ProductArgs& args);
    void multiply(const ProductArgs& args, Stream stream);  // needs a prepared shape

private:
    struct Library;
    struct Algorithm;
    using Shape = std::tuple<int64_t, int64_t, Type, int64_t, int64_t, int64_t>;  // n, k, type, strides

    CublasLt(std::unique_ptr<Library> library, std::string path, bool tf32, const std::shared_ptr<Budget>& budget);
    static Shape shape_of(const ProductArgs& args);

    HomeProcess home_;
    std::unique_ptr<Library> library_;
    std::string path_;
    bool tf32_;
    void* handle_ = nullptr;
    Allocation workspace_;
    std::map<Shape, std::unique_ptr<Algorithm>> algorithms_;
};

}  // namespace fastattn::cuda
