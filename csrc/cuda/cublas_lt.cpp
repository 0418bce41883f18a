#include "cuda/cublas_lt.h"

#include <dlfcn.h>

#include "core/error.h"

namespace fastattn::cuda {
namespace {

// The parts of cublasLt.h used here, with their values, which have been the same since CUDA 11.
constexpr int kSuccess = 0;
constexpr int kTypes[] = {/*CUDA_R_32F*/ 0, /*CUDA_R_16BF*/ 14, /*CUDA_R_16F*/ 2};  // by Type
constexpr int kCompute32F = 68, kCompute32FFastTf32 = 77;
constexpr int kDescTransA = 3, kDescTransB = 4;
constexpr int32_t kOpN = 0, kOpT = 1;
constexpr int kPreferMaxWorkspace = 1, kPreferReductionSchemes = 3;
constexpr int kConfigSplitK = 2, kConfigReductionScheme = 3;
constexpr uint32_t kNoReduction = 0;

struct Algo {  // cublasLtMatmulAlgo_t
    uint64_t data[8];
};
struct Heuristic {  // cublasLtMatmulHeuristicResult_t
    Algo algo;
    size_t workspace_bytes;
    int state;
    float waves;
    int reserved[4];
};
constexpr int kCandidates = 16;
// An algorithm has to accept all of these numbers of rows.
constexpr int64_t kRowsToTry[] = {1, 2, 16, CublasLt::kReferenceRows, 1000, 4096};

constexpr const char* kNames[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"};

}  // namespace

struct CublasLt::Library {
    void* file = nullptr;
    int (*create)(void**) = nullptr;
    int (*destroy)(void*) = nullptr;
    int (*desc_create)(void**, int compute, int scale) = nullptr;
    int (*desc_destroy)(void*) = nullptr;
    int (*desc_set)(void*, int attribute, const void*, size_t) = nullptr;
    int (*layout_create)(void**, int type, uint64_t rows, uint64_t columns, int64_t stride) = nullptr;
    int (*layout_destroy)(void*) = nullptr;
    int (*preference_create)(void**) = nullptr;
    int (*preference_destroy)(void*) = nullptr;
    int (*preference_set)(void*, int attribute, const void*, size_t) = nullptr;
    int (*heuristic)(void*, void*, void*, void*, void*, void*, void*, int, Heuristic*, int*) = nullptr;
    int (*config_set)(Algo*, int attribute, const void*, size_t) = nullptr;
    int (*check)(void*, void*, void*, void*, void*, void*, const Algo*, Heuristic*) = nullptr;
    int (*matmul)(void*, void*, const void*, const void*, void*, const void*, void*, const void*, const void*, void*,
                  void*, void*, const Algo*, void*, size_t, Stream) = nullptr;

    // False if a function is missing.
    bool open(const std::string& path) {
        file = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (file == nullptr) return false;
        bool all = true;
        const auto find = [&](auto& function, const char* name) {
            function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(file, name));
            all = all && function != nullptr;
        };
        find(create, "cublasLtCreate"), find(destroy, "cublasLtDestroy");
        find(desc_create, "cublasLtMatmulDescCreate"), find(desc_destroy, "cublasLtMatmulDescDestroy");
        find(desc_set, "cublasLtMatmulDescSetAttribute");
        find(layout_create, "cublasLtMatrixLayoutCreate"), find(layout_destroy, "cublasLtMatrixLayoutDestroy");
        find(preference_create, "cublasLtMatmulPreferenceCreate");
        find(preference_destroy, "cublasLtMatmulPreferenceDestroy");
        find(preference_set, "cublasLtMatmulPreferenceSetAttribute");
        find(heuristic, "cublasLtMatmulAlgoGetHeuristic");
        find(config_set, "cublasLtMatmulAlgoConfigSetAttribute");
        find(check, "cublasLtMatmulAlgoCheck");
        find(matmul, "cublasLtMatmul");
        return all;
    }
    ~Library() {
        if (file != nullptr) dlclose(file);
    }
};

namespace {

void expect(int status, const char* call) {
    if (status != kSuccess)
        throw Error(ErrorKind::kOs, std::string("cuda: ") + call + " failed with status " + std::to_string(status));
}

// A handle, and the function of its library that destroys it.
struct Held {
    void* handle = nullptr;
    int (*destroy)(void*) = nullptr;
    Held() = default;
    explicit Held(int (*destroy)(void*)) : destroy(destroy) {}
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;
    ~Held() {
        if (handle != nullptr) (void)destroy(handle);
    }
};

}  // namespace

struct CublasLt::Algorithm {
    Algo algo;
    size_t workspace_bytes;
};

std::unique_ptr<CublasLt> CublasLt::load(const std::vector<std::string>& paths, bool tf32,
                                         const std::shared_ptr<Budget>& budget, std::string& why) {
    std::vector<std::string> candidates = paths;
    candidates.insert(candidates.end(), std::begin(kNames), std::end(kNames));
    const auto passed_over = [&why](const std::string& reason) { why += (why.empty() ? "" : "; ") + reason; };
    for (const std::string& path : candidates) {
        if (!may_load(path)) {
            passed_over(path + ": the emulated GPU cannot use it");
            continue;
        }
        auto library = std::make_unique<Library>();
        if (!library->open(path)) {
            const char* error = dlerror();
            passed_over(error != nullptr ? error : path + ": functions are missing");
            continue;
        }
        try {
            return std::unique_ptr<CublasLt>(new CublasLt(std::move(library), path, tf32, budget));
        } catch (const Error& error) {  // for example, one that is too new for the driver; another may work
            if (error.kind() != ErrorKind::kOs) throw;
            passed_over(path + ": " + error.what());
        }
    }
    return nullptr;
}

CublasLt::CublasLt(std::unique_ptr<Library> library, std::string path, bool tf32, const std::shared_ptr<Budget>& budget)
    : library_(std::move(library)), path_(std::move(path)), tf32_(tf32) {
    const UseDevice current;
    workspace_ = Allocation(budget, kWorkspaceBytes, "the workspace of cuBLASLt");
    expect(library_->create(&handle_), "cublasLtCreate");
}

CublasLt::~CublasLt() {
    if (!home_.here())
        (void)library_.release();  // the child of a fork must not run code of the GPU's libraries
    else if (handle_ != nullptr)
        (void)library_->destroy(handle_);
}

CublasLt::Shape CublasLt::shape_of(const ProductArgs& args) {
    return {args.n, args.k, args.type, args.x_stride, args.weight_stride, args.product_stride};
}

// cuBLASLt is column-major: product^T [n, m] = weight [n, k] times x^T [k, m], where memory has weight^T.
struct Call {
    Held desc, a, b, c;

    template <class Library>
    Call(const Library& library, const ProductArgs& args, int64_t m, bool tf32)
        : desc(library.desc_destroy), a(library.layout_destroy), b(library.layout_destroy), c(library.layout_destroy) {
        const int type = kTypes[static_cast<int>(args.type)];
        const int compute = tf32 && args.type == Type::kFloat32 ? kCompute32FFastTf32 : kCompute32F;
        expect(library.desc_create(&desc.handle, compute, kTypes[0]), "cublasLtMatmulDescCreate");
        expect(library.desc_set(desc.handle, kDescTransA, &kOpT, sizeof(kOpT)), "cublasLtMatmulDescSetAttribute");
        expect(library.desc_set(desc.handle, kDescTransB, &kOpN, sizeof(kOpN)), "cublasLtMatmulDescSetAttribute");
        const auto layout = [&](Held& held, int of, int64_t rows, int64_t columns, int64_t stride) {
            expect(library.layout_create(&held.handle, of, static_cast<uint64_t>(rows), static_cast<uint64_t>(columns),
                                         stride),
                   "cublasLtMatrixLayoutCreate");
        };
        layout(a, type, args.k, args.n, args.weight_stride);
        layout(b, type, args.k, m, args.x_stride);
        layout(c, kTypes[0], args.n, m, args.product_stride);
    }
};

bool CublasLt::prepare(const ProductArgs& args) {
    auto& kept = algorithms_[shape_of(args)];
    if (kept != nullptr) return true;
    Held preference(library_->preference_destroy);
    expect(library_->preference_create(&preference.handle), "cublasLtMatmulPreferenceCreate");
    const uint64_t bytes = kWorkspaceBytes;
    expect(library_->preference_set(preference.handle, kPreferMaxWorkspace, &bytes, sizeof(bytes)),
           "cublasLtMatmulPreferenceSetAttribute");
    expect(library_->preference_set(preference.handle, kPreferReductionSchemes, &kNoReduction, sizeof(kNoReduction)),
           "cublasLtMatmulPreferenceSetAttribute");
    Heuristic found[kCandidates];
    int count = 0;
    {
        const Call call(*library_, args, kReferenceRows, tf32_);
        if (library_->heuristic(handle_, call.desc.handle, call.a.handle, call.b.handle, call.c.handle, call.c.handle,
                                preference.handle, kCandidates, found, &count) != kSuccess)
            count = 0;
    }
    for (int i = 0; i < count; ++i) {
        Algo algo = found[i].algo;
        const int32_t splits = 1;
        bool usable =
            found[i].state == kSuccess &&
            library_->config_set(&algo, kConfigSplitK, &splits, sizeof(splits)) == kSuccess &&
            library_->config_set(&algo, kConfigReductionScheme, &kNoReduction, sizeof(kNoReduction)) == kSuccess;
        size_t most = 0;
        for (const int64_t rows : kRowsToTry) {
            if (!usable) break;
            const Call call(*library_, args, rows, tf32_);
            Heuristic result{};
            usable = library_->check(handle_, call.desc.handle, call.a.handle, call.b.handle, call.c.handle,
                                     call.c.handle, &algo, &result) == kSuccess &&
                     result.workspace_bytes <= static_cast<size_t>(kWorkspaceBytes);
            most = std::max(most, result.workspace_bytes);
        }
        if (!usable) continue;
        kept = std::make_unique<Algorithm>(Algorithm{algo, most});
        return true;
    }
    algorithms_.erase(shape_of(args));
    return false;
}

void CublasLt::multiply(const ProductArgs& args, Stream stream) {
    const Algorithm& algorithm = *algorithms_.at(shape_of(args));
    const Call call(*library_, args, args.m, tf32_);
    const float one = 1.0f, zero = 0.0f;
    expect(library_->matmul(handle_, call.desc.handle, &one, args.weight, call.a.handle, args.x, call.b.handle, &zero,
                            args.product, call.c.handle, args.product, call.c.handle, &algorithm.algo,
                            workspace_.data(), static_cast<size_t>(kWorkspaceBytes), stream),
           "cublasLtMatmul");
}

}  // namespace fastattn::cuda
