// Runs a Program on the GPU: one stream per model, one graph for each size of a small step, memory within a budget.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cuda/cublas_lt.h"
#include "cuda/device_memory.h"
#include "cuda/plan.h"
#include "kv/kv_cache.h"
#include "program/drawing.h"
#include "program/spec.h"
#include "program/step.h"
#include "runtime/fork_local.h"
#include "runtime/owned_mutex.h"
#include "weights/weight_use.h"

namespace fastattn::cuda {

// A parameter in device memory: rows of row_elements(columns), zero after the columns. A vector is one row.
struct Weight {
    WeightUse use;
    Type type;
    int64_t rows, columns, stride;
    Allocation data;

    WeightShape shape() const { return {use, type == Type::kFloat32, rows, columns}; }
};

struct EngineOptions {
    int64_t budget_bytes = 0;  // 0: what is free when the model is loaded, minus a reserve
    bool tf32 = false;         // whether cuBLASLt may multiply float32 in tf32
    bool library = true;       // whether cuBLASLt may compute products at all
    std::vector<std::string> library_paths;
};

// Shared by the executors of one model: device, stream, weights, pages. One step runs at a time.
class Engine {
public:
    explicit Engine(const EngineOptions& options);

    const Device& device() const { return device_; }
    const Budget& budget() const { return *budget_; }
    const OwnStream& stream() const { return stream_; }
    CublasLt* library() const { return library_.get(); }
    const std::string& why_no_library() const { return why_no_library_; }
    OwnedMutex& mutex() { return mutex_; }
    void check_process() const;  // throws Error(kConfig) in a forked child

    // data: [rows, columns] of `type`, dense. Throws Error(kInput) if the name exists.
    void load(const std::string& name, WeightUse use, Type type, int64_t rows, int64_t columns, const void* data);
    const Weight* find(const std::string& name) const;
    int64_t weight_bytes() const;

    std::shared_ptr<KvPool> kv_pool(const KvShape& shape);  // needs the lock

    // Memory of the running step. Growing frees the old memory first. Needs the lock.
    std::byte* workspace(int64_t bytes) { return grown(workspace_, bytes, "the workspace of a step"); }
    std::byte* drawing(int64_t bytes) { return grown(drawing_, bytes, "drawing tokens"); }
    std::byte* maps(int64_t bytes) { return grown(maps_, bytes, "attention maps"); }
    std::byte* staging(int64_t bytes);  // pinned host memory
    int64_t workspace_bytes() const { return workspace_.bytes() + drawing_.bytes() + maps_.bytes(); }

    void cancel() { cancelled_ = true; }
    void begin_step() { cancelled_ = false; }
    // Waits for the stream. Throws Error(kCancelled) if the step was cancelled meanwhile.
    void finish_step(const std::function<bool()>& poll);

private:
    std::byte* grown(Allocation& memory, int64_t bytes, const char* what);

    Device device_;
    HomeProcess home_;
    std::shared_ptr<Budget> budget_;
    OwnStream stream_;
    std::string why_no_library_;
    std::unique_ptr<CublasLt> library_;
    OwnedMutex mutex_;
    std::atomic<bool> cancelled_ = false;
    std::map<std::string, Weight> weights_;
    std::shared_ptr<KvPool> kv_pool_;
    Allocation workspace_, drawing_, maps_;
    PinnedBuffer staging_;
};

class Executor final : public DrawingExecutor {
public:
    // Waits for a running step of the engine.
    Executor(std::shared_ptr<Engine> engine, ProgramSpec spec, Type kv_type);

    const ProgramSpec& spec() const { return spec_; }
    Engine& engine() { return *engine_; }
    std::shared_ptr<KvPool> kv_pool() const { return kv_pool_; }
    int32_t vocab() const override { return vocab_of(spec_); }
    // How many sizes of steps have a graph, and for how many the capture failed, so that each of their steps launches
    // its kernels one by one. Waits for a running step.
    struct GraphCounts {
        size_t captured = 0, failed = 0;
    };
    GraphCounts count_graphs() const;
    PagePool::Page new_page();         // waits for a running step
    size_t built_in_products() const;  // linears that cuBLASLt does not compute; they are slower

    // Like the CPU executor's (program/executor.h). outputs[i] is null if not requested.
    void run(const StepInput& step, const std::vector<float*>& outputs, const std::function<bool()>& poll);
    void draw(const StepInput& step, const SampleArgs& args, const std::function<bool()>& poll) override;

private:
    struct View {  // of a value as float32
        float* data;
        int64_t stride;
    };
    // The running step: where its arrays and values are.
    struct Running {
        Sizes sizes;
        StepLayout layout;
        Workspace workspace;
        std::byte* base;
        const int32_t* arrays;
        std::vector<std::pair<int32_t, int64_t>> maps;  // values, and their start in map_floats
        const int64_t* map_offsets;                     // [maps, sequences]
        float* map_floats = nullptr;
        const int32_t* of(int64_t offset) const { return arrays + offset; }
    };

    void check(const StepInput& step) const;
    void prepare_products();
    Running start(const StepInput& step, int64_t more_staging);
    void place_maps(const StepInput& step, Running& running);
    void launch(const Running& running);
    void copy_outputs(const StepInput& step, const Running& running, const std::vector<float*>& outputs);

    struct DrawLayout;
    static void fill_draw(const DrawLayout& layout, const SampleArgs& args, std::byte* to);
    void launch_draw(const DrawLayout& layout, const SampleArgs& args, View logits, std::byte* device);

    // One op (run_op.cpp).
    struct OpRun;
    void launch_op(size_t index, const Running& running);
    View view(int32_t value, const Running& running) const;

    std::shared_ptr<Engine> engine_;
    ProgramSpec spec_;
    Type kv_type_;
    std::vector<const Weight*> weights_;
    std::unique_ptr<Plan> plan_;
    std::vector<bool> by_library_;  // ops whose product cuBLASLt computes
    std::shared_ptr<KvPool> kv_pool_;
    // Graphs contain addresses in the workspace, so all of them are dropped when it moves.
    struct Captured {
        std::optional<Graph> graph;  // empty: that size occurred once, or the capture failed
        bool failed = false;
    };
    std::map<Sizes, Captured> graphs_;
    const std::byte* graphs_base_ = nullptr;
};

}  // namespace fastattn::cuda
