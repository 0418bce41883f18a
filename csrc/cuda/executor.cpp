#include "cuda/executor.h"

#include <algorithm>
#include <cstring>
#include <mutex>

#include "core/error.h"
#include "program/op_kind.h"
#include "runtime/fork_local.h"

namespace fastattn::cuda {
namespace {

constexpr size_t kMostGraphs = 64;

// Waits for all launches if a step ends with an error, so that none of them runs into the next step.
class Settle {
public:
    explicit Settle(const OwnStream& stream) : stream_(stream) {}
    ~Settle() {
        if (done_) return;
        try {
            (void)stream_.wait([] { return false; });
        } catch (const Error&) {  // the first error is the one to report
        }
    }
    Settle(const Settle&) = delete;
    Settle& operator=(const Settle&) = delete;
    void done() { done_ = true; }

private:
    const OwnStream& stream_;
    bool done_ = false;
};

std::vector<int32_t> starts_of(const StepInput& step) {
    std::vector<int32_t> starts;
    for (const KvCache* cache : step.caches) starts.push_back(cache->length());
    return starts;
}

// There is no kernel for the neighbors of rows yet.
void check_no_windows(const OpSpec& op) {
    if (op.is<WindowRowsAttrs>())
        throw Error(ErrorKind::kConfig,
                    "device: expected \"cpu\" for a model with a convolution over tokens, got \"cuda\"");
}

// Nor for adapters of sequences.
void check_no_adapters(const OpSpec& op) {
    if (op.is<LoraAttrs>())
        throw Error(
            ErrorKind::kConfig,
            "device: expected \"cpu\" for LoRA adapters of requests, got \"cuda\"; load the model with adapter=, "
            "which adds one to the weights");
}

// Only the CPU has kernels for recurrent models.
void check_not_recurrent(const OpSpec& op) {
    if (op.is<FeaturesAttrs>() || op.is<ConcatAttrs>() || op.is<LstmAttrs>() || op.is<GruAttrs>() ||
        op.is<SequenceProbsAttrs>() || op.is<WeightedSumAttrs>())
        throw Error(ErrorKind::kConfig, "device: expected \"cpu\" for a recurrent model, which has the op " +
                                            std::string(kind_of(op).name) + ", got \"cuda\"");
}

// The attention kernels have no tables of relative positions and no soft-capped scores yet.
void check_attention(const AttentionAttrs* attrs) {
    if (attrs == nullptr || (!attrs->has_columns && attrs->softcap == 0.0f)) return;
    const std::string what = attrs->has_columns ? "attention has tables of relative positions (DeBERTa)"
                                                : "attention scores are soft-capped (Gemma 2)";
    throw Error(ErrorKind::kConfig,
                "device: expected \"cpu\" for a model whose " + what + ", got \"cuda\"; load it with device=\"cpu\"");
}

}  // namespace

Executor::Executor(std::shared_ptr<Engine> engine, ProgramSpec spec, Type kv_type)
    : engine_(std::move(engine)), spec_(std::move(spec)), kv_type_(kv_type) {
    engine_->check_process();
    const std::lock_guard lock(engine_->mutex());
    const UseDevice current;
    check_spec(spec_);
    for (const OpSpec& op : spec_.ops) {
        check_no_windows(op);
        check_no_adapters(op);
        check_not_recurrent(op);
        check_attention(op.as<AttentionAttrs>());
        check_attention(op.as<AttentionProbsAttrs>());
    }
    weights_ = find_weights(spec_, *engine_);
    find_rough_activations(
        spec_, [this](int32_t weight) { return weights_[static_cast<size_t>(weight)]->type != Type::kFloat32; });
    std::vector<Type> types;
    for (const Weight* weight : weights_) types.push_back(weight->type);
    plan_ = std::make_unique<Plan>(spec_, std::move(types));
    kv_pool_ = engine_->kv_pool({kv_type_, spec_.n_layer, spec_.n_kv_head, spec_.head_dim});
    prepare_products();
}

// Decides once, for every number of rows, whether cuBLASLt computes the product of a linear.
void Executor::prepare_products() {
    by_library_.assign(spec_.ops.size(), false);
    CublasLt* library = engine_->library();
    for (size_t i = 0; i < spec_.ops.size() && library != nullptr; ++i) {
        const OpSpec& op = spec_.ops[i];
        if (!op.is<LinearAttrs>()) continue;
        const Weight& weight = *weights_[static_cast<size_t>(op.weights[0])];
        const Place& x = plan_->places()[static_cast<size_t>(op.inputs[0])];
        // Columns of a wider value start at any float, but the algorithms need rows at multiples of 16 bytes.
        if (weight.type == Type::kFloat32 && x.column != 0) continue;
        const ValueSpec& value = spec_.values[static_cast<size_t>(op.output)];
        const int64_t width =
            spec_.values[static_cast<size_t>(weight.type == Type::kFloat32 ? x.parent : op.inputs[0])].width;
        by_library_[i] = library->prepare({.x = nullptr,
                                           .x_stride = row_elements(width),
                                           .weight = nullptr,
                                           .weight_stride = weight.stride,
                                           .product = nullptr,
                                           .product_stride = row_elements(value.width),
                                           .type = weight.type,
                                           .m = 0,
                                           .n = weight.rows,
                                           .k = weight.columns});
    }
}

PagePool::Page Executor::new_page() {
    engine_->check_process();
    const std::lock_guard lock(engine_->mutex());
    const UseDevice current;
    return kv_pool_->page();
}

Executor::GraphCounts Executor::count_graphs() const {
    engine_->check_process();
    const std::lock_guard lock(engine_->mutex());
    GraphCounts counts;
    for (const auto& [sizes, of_sizes] : graphs_) {
        counts.captured += of_sizes.graph ? 1 : 0;
        counts.failed += of_sizes.failed ? 1 : 0;
    }
    return counts;
}

size_t Executor::built_in_products() const {
    size_t count = 0;
    for (size_t i = 0; i < spec_.ops.size(); ++i) count += spec_.ops[i].is<LinearAttrs>() && !by_library_[i] ? 1 : 0;
    return count;
}

void Executor::check(const StepInput& step) const {
    check_step(spec_, step, kv_pool_.get(),
               [this](int32_t weight) { return weights_[static_cast<size_t>(weight)]->rows; });
}

Executor::Running Executor::start(const StepInput& step, int64_t more_staging) {
    engine_->begin_step();
    const std::vector<int32_t> starts = starts_of(step);
    StepPages pages;
    {
        const std::lock_guard no_fork(start_mutex());  // a child must not find half-made pages
        for (int32_t s = 0; s < static_cast<int32_t>(step.caches.size()); ++s) {
            KvCache& cache = *step.caches[static_cast<size_t>(s)];
            cache.reserve(step.length(s));
            pages.cached.push_back(cache.blocks());
        }
    }
    const Sizes sizes = bucket_of(sizes_of(step, starts));
    const int64_t layer_bytes = kv_pool_->shape().layer_bytes();
    Running running{.sizes = sizes,
                    .layout = StepLayout(sizes),
                    .workspace = Workspace(*plan_, spec_, sizes, layer_bytes),
                    .base = nullptr,
                    .arrays = nullptr,
                    .maps = {},
                    .map_offsets = nullptr};
    running.base = engine_->workspace(running.workspace.bytes);
    running.arrays = reinterpret_cast<const int32_t*>(running.base + running.workspace.step);
    pages.own = running.base + running.workspace.own_pages, pages.own_bytes = layer_bytes;
    const int64_t bytes = running.layout.words * int64_t{sizeof(int32_t)};
    std::byte* staging = engine_->staging(bytes + more_staging);
    fill_step(running.layout, sizes, step, starts, pages, reinterpret_cast<int32_t*>(staging));
    copy_to_device(running.base + running.workspace.step, staging, bytes, engine_->stream().get());
    place_maps(step, running);
    return running;
}

// The size of attention maps depends on the step, so they have memory of their own.
void Executor::place_maps(const StepInput& step, Running& running) {
    std::vector<int64_t> offsets;
    int64_t floats = 0;
    for (const OpSpec& op : spec_.ops) {
        const auto* probs = op.as<AttentionProbsAttrs>();
        if (probs == nullptr) continue;
        running.maps.push_back({op.output, floats});
        for (int32_t s = 0; s < running.sizes.sequences; ++s) {
            offsets.push_back(floats);
            if (s < step.n_sequences) floats += map_floats(probs->n_maps, step, s);
        }
    }
    if (offsets.empty()) return;
    const auto offset_bytes = static_cast<int64_t>(offsets.size() * sizeof(int64_t));
    std::byte* memory = engine_->maps(align(offset_bytes) + floats * int64_t{sizeof(float)});
    copy_to_device(memory, offsets.data(), offset_bytes, engine_->stream().get());
    (void)engine_->stream().wait([] { return false; });  // `offsets` is freed here
    running.map_offsets = reinterpret_cast<const int64_t*>(memory);
    running.map_floats = reinterpret_cast<float*>(memory + align(offset_bytes));
}

void Executor::launch(const Running& running) {
    const auto launches = [&] {
        for (size_t i = 0; i < spec_.ops.size(); ++i) launch_op(i, running);
    };
    if (running.sizes.tokens > kGraphTokens || !running.maps.empty()) return launches();
    if (graphs_base_ != running.base || graphs_.size() >= kMostGraphs) graphs_.clear();
    graphs_base_ = running.base;
    const auto [found, is_new] = graphs_.try_emplace(running.sizes);
    // The first step of a size is launched directly, because libraries load on first use what they cannot load during
    // capture. And a size that never occurs again needs no graph.
    Captured& captured = found->second;
    if (is_new || captured.failed) return launches();
    const Stream stream = engine_->stream().get();
    try {
        if (!captured.graph) captured.graph.emplace(stream, launches);
    } catch (const Error&) {  // for example, if a library cannot be captured
        captured.failed = true;
        return launches();
    }
    captured.graph->launch(stream);
}

void Executor::copy_outputs(const StepInput& step, const Running& running, const std::vector<float*>& outputs) {
    const Stream stream = engine_->stream().get();
    for (size_t i = 0; i < spec_.outputs.size(); ++i) {
        if (outputs[i] == nullptr) continue;
        const int32_t value = spec_.outputs[i];
        const auto map = std::find_if(running.maps.begin(), running.maps.end(),
                                      [value](const auto& map) { return map.first == value; });
        if (map != running.maps.end()) {
            copy_to_host(outputs[i], running.map_floats + map->second,
                         floats_of(spec_, value, step) * int64_t{sizeof(float)}, stream);
            continue;
        }
        const View from = view(value, running);
        copy_rows_to_host(outputs[i], from.data, from.stride * int64_t{sizeof(float)},
                          spec_.values[static_cast<size_t>(value)].width * int64_t{sizeof(float)},
                          step.rows(spec_.values[static_cast<size_t>(value)].rows), stream);
    }
}

void Executor::run(const StepInput& step, const std::vector<float*>& outputs, const std::function<bool()>& poll) {
    engine_->check_process();  // before the lock, which a thread of the parent may hold forever
    const std::lock_guard lock(engine_->mutex());
    const UseDevice current;
    check(step);
    Settle settle(engine_->stream());
    const Running running = start(step, 0);
    launch(running);
    copy_outputs(step, running, outputs);
    engine_->finish_step(poll);
    settle.done();
    advance(step);
}

// Device memory for drawing: inputs, then results, then scratch. Offsets in bytes.
struct Executor::DrawLayout {
    int64_t params, lengths, suppress, suppressed, histories, inputs;
    int64_t ids, status, logprobs, scratch, bytes;
    int64_t history_stride = 0;
    bool plain = true;  // greedy without other options: only the highest logit is needed

    explicit DrawLayout(const SampleArgs& args) {
        bool penalty = false;
        for (int32_t row = 0; row < args.n; ++row) {
            const SampleParams& params_of = args.params[row];
            const bool looks_back = params_of.repetition_penalty != 1.0f;
            penalty = penalty || looks_back;
            if (looks_back) history_stride = std::max(history_stride, args.history_lengths[row]);
            plain = plain && params_of.greedy() && (args.n_suppressed == 0 || args.suppress[row] <= 0);
        }
        plain = plain && !penalty && args.logprobs == nullptr;
        int64_t at = 0;
        const auto take = [&at](int64_t count, int64_t size) {
            const int64_t begin = at;
            at += align(count * size);
            return begin;
        };
        const int64_t n = args.n;
        params = take(n, sizeof(SampleParams)), lengths = take(n, 4), suppress = take(n, 4);
        suppressed = take(args.n_suppressed, 4), histories = take(n * history_stride, 4);
        inputs = plain ? 0 : at;
        ids = take(n, 4), status = take(n, 4), logprobs = take(n, 4);
        scratch = take(plain ? 0 : sample_scratch_floats(n, args.vocab), 4);
        bytes = at;
    }
};

void Executor::fill_draw(const DrawLayout& layout, const SampleArgs& args, std::byte* to) {
    std::memcpy(to + layout.params, args.params, static_cast<size_t>(args.n) * sizeof(SampleParams));
    if (args.n_suppressed > 0)
        std::memcpy(to + layout.suppressed, args.suppressed, static_cast<size_t>(args.n_suppressed) * sizeof(int32_t));
    auto* lengths = reinterpret_cast<int32_t*>(to + layout.lengths);
    auto* suppress = reinterpret_cast<int32_t*>(to + layout.suppress);
    auto* histories = reinterpret_cast<int32_t*>(to + layout.histories);
    for (int32_t row = 0; row < args.n; ++row) {
        const bool looks_back = args.params[row].repetition_penalty != 1.0f;
        lengths[row] = looks_back ? static_cast<int32_t>(args.history_lengths[row]) : 0;
        suppress[row] = args.suppress[row] > 0 ? 1 : 0;
        std::copy_n(args.histories[row], lengths[row], histories + row * layout.history_stride);
    }
}

void Executor::draw(const StepInput& step, const SampleArgs& args, const std::function<bool()>& poll) {
    engine_->check_process();  // before the lock, which a thread of the parent may hold forever
    const std::lock_guard lock(engine_->mutex());
    const UseDevice current;
    check(step);
    const DrawLayout layout(args);
    Settle settle(engine_->stream());
    const int64_t results = layout.scratch - layout.ids;
    const Running running = start(step, layout.inputs + results + kAlignment);
    const Stream stream = engine_->stream().get();
    std::byte* device = engine_->drawing(layout.bytes);
    // After the step's arrays, which the stream may not have read yet.
    std::byte* host = engine_->staging(0) + align(running.layout.words * int64_t{sizeof(int32_t)});
    if (layout.inputs > 0) {
        fill_draw(layout, args, host);
        copy_to_device(device, host, layout.inputs, stream);
    }
    launch(running);
    launch_draw(layout, args, view(spec_.outputs[static_cast<size_t>(spec_.logits)], running), device);
    std::byte* back = host + layout.inputs;
    copy_to_host(back, device + layout.ids, results, stream);
    engine_->finish_step(poll);
    settle.done();
    const auto* status = reinterpret_cast<const int32_t*>(back + layout.status - layout.ids);
    for (int32_t row = 0; row < args.n; ++row) check_row(row, SampleStatus{status[row]});
    std::memcpy(args.ids, back, static_cast<size_t>(args.n) * sizeof(int32_t));
    if (args.logprobs != nullptr)
        std::memcpy(args.logprobs, back + layout.logprobs - layout.ids, static_cast<size_t>(args.n) * sizeof(float));
    advance(step);
}

void Executor::launch_draw(const DrawLayout& layout, const SampleArgs& args, View logits, std::byte* device) {
    const Stream stream = engine_->stream().get();
    const Rows rows{.count = nullptr, .most = args.n};
    const auto ints = [device](int64_t offset) { return reinterpret_cast<int32_t*>(device + offset); };
    const auto floats = [device](int64_t offset) { return reinterpret_cast<float*>(device + offset); };
    if (args.n == 0) return;
    if (layout.plain) {
        launch_argmax({.logits = logits.data,
                       .logits_stride = logits.stride,
                       .rows = rows,
                       .vocab = args.vocab,
                       .ids = ints(layout.ids),
                       .status = ints(layout.status)},
                      stream);
        return check_launch("argmax");
    }
    launch_sample({.logits = logits.data,
                   .logits_stride = logits.stride,
                   .rows = rows,
                   .vocab = args.vocab,
                   .params = reinterpret_cast<const SampleParams*>(device + layout.params),
                   .histories = layout.history_stride > 0 ? ints(layout.histories) : nullptr,
                   .history_lengths = ints(layout.lengths),
                   .history_stride = layout.history_stride,
                   .suppressed = ints(layout.suppressed),
                   .n_suppressed = args.n_suppressed,
                   .suppress = args.n_suppressed > 0 ? ints(layout.suppress) : nullptr,
                   .scratch = floats(layout.scratch),
                   .ids = ints(layout.ids),
                   .logprobs = args.logprobs != nullptr ? floats(layout.logprobs) : nullptr,
                   .status = ints(layout.status)},
                  stream);
    check_launch("sample");
}

}  // namespace fastattn::cuda
