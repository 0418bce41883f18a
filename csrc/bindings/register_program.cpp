#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <tuple>

#include "bindings/bindings.h"
#include "bindings/objects.h"
#include "bindings/read_spec.h"
#include "bindings/step_objects.h"
#include "bindings/weight_parts.h"
#include "program/executor.h"
#include "program/names.h"
#include "sampling/sampler.h"
#include "weights/adapter.h"
#include "weights/pack.h"

namespace fastattn {
namespace {

WeightUse use_from(const std::string& name) {
    return value_of(kUseNames, name, "use", ErrorKind::kConfig);
}

// Calls `add`, Weights::add or Weights::add_packed, with the model's lock and without the GIL.
template <class Add>
void add_weight(Engine& engine, Add add, const NewWeight& spec, const WeightParts& parts) {
    without_gil([&](const std::function<bool()>& poll) {
        Engine::Running& running = engine.running();
        const std::lock_guard lock(running.mutex);
        (engine.weights().*add)(spec, parts.sources, running.pool, poll);
    });
}

void load(Engine& engine, const std::string& name, const std::string& use, const std::string& format,
          const py::list& parts, bool transposed) {
    const WeightParts loaded = parts_from(parts, /*packed=*/false);
    const NewWeight spec{.name = name, .use = use_from(use), .format = format_from(format), .transposed = transposed};
    add_weight(engine, &Weights::add, spec, loaded);
}

void load_packed(Engine& engine, const std::string& name, const std::string& use, const std::string& format,
                 int64_t rows, int64_t columns, const py::list& parts) {
    const WeightParts loaded = parts_from(parts, /*packed=*/true);
    const NewWeight spec{
        .name = name, .use = use_from(use), .format = format_from(format), .rows = rows, .columns = columns};
    add_weight(engine, &Weights::add_packed, spec, loaded);
}

using MappedEntry = std::tuple<std::string, std::string, std::string, int64_t, int64_t, std::array<int64_t, 3>>;

// entries: name, use, format, rows, columns, and where data, scales and sums begin in the file.
void load_mapped(Engine& engine, int file, int64_t bytes, const std::vector<MappedEntry>& entries) {
    const auto mapped = std::make_shared<const MappedFile>(file, bytes);
    Engine::Running& running = engine.running();
    const std::lock_guard lock(running.mutex);
    for (const auto& [name, use, format, rows, columns, offsets] : entries) {
        const NewWeight spec{
            .name = name, .use = use_from(use), .format = format_from(format), .rows = rows, .columns = columns};
        engine.weights().add_mapped(spec, mapped, offsets);
    }
}

std::array<int64_t, 3> packed_sizes(const std::string& use, const std::string& format, int64_t rows, int64_t columns) {
    Weight weight;
    weight.use = use_from(use), weight.format = format_from(format), weight.rows = rows, weight.columns = columns;
    return bytes_of(weight, use);
}

// Returns copies of a weight's data, scales and sums (those that its format has) as bytes. A panel has one strip, as in
// files, or the strips of the active kernels.
py::list packed(Engine& engine, const std::string& name, bool own_strips) {
    const Weight* weight = engine.weights().find(name);
    if (weight == nullptr) throw Error(ErrorKind::kInput, "weight " + name + " is not loaded");
    py::list arrays;
    for (const Buffer* buffer : {&weight->data, &weight->scales, &weight->sums})
        if (buffer == &weight->data || buffer->bytes() > 0)
            arrays.append(py::array_t<uint8_t>(static_cast<py::ssize_t>(buffer->bytes()),
                                               reinterpret_cast<const uint8_t*>(buffer->data())));
    if (weight->strip_columns != kPanelWidth && !own_strips) {
        auto* data = static_cast<std::byte*>(arrays[0].cast<py::array>().mutable_data());
        const ops::Matrix matrix = weight->matrix();
        for (int64_t i = 0; i < matrix.count; ++i)
            change_strips(*weight, weight->data.data() + i * matrix.panel_bytes, data + i * matrix.panel_bytes,
                          weight->strip_columns, kPanelWidth);
    }
    return arrays;
}

py::list run(Executor& executor, const py::array& token_ids, const py::array& cu_seqlens, const py::array& positions,
             const py::array& wanted, const std::optional<py::array>& token_type_ids, const Caches& caches,
             const py::object& out, const std::optional<py::array>& key_counts, const py::sequence& features) {
    StepInput step = step_from(token_ids, cu_seqlens, positions, wanted, token_type_ids, caches);
    if (key_counts) {
        step.key_counts = data_of<int32_t>("key_counts", *key_counts, 1);
        if (key_counts->size() != step.n_sequences)
            throw Error(ErrorKind::kInput, "key_counts: expected one per sequence");
    }
    for (const py::handle& item : features) {
        const auto rows = item.cast<py::array>();
        step.features.push_back({data_of<float>("features", rows, 2), rows.shape(0), rows.shape(1)});
    }
    const CacheGuard guard(step.caches);
    py::list arrays;
    std::vector<float*> pointers;
    for (size_t i = 0; i < executor.spec().outputs.size(); ++i) {
        const auto shape = output_shape(executor.spec(), executor.spec().outputs[i], step);
        py::array array;
        if (out.is_none() || out.cast<py::sequence>()[i].is_none()) {
            array = py::array_t<float>(shape);
        } else {
            array = out.cast<py::sequence>()[i].cast<py::array>();
            if (std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()) != shape)
                throw Error(ErrorKind::kInput, "out: an array has the wrong shape");
        }
        pointers.push_back(writable<float>("out", array, static_cast<int>(shape.size())));
        arrays.append(array);
    }
    without_gil([&](const std::function<bool()>& poll) { executor.run(step, pointers, poll); });
    return arrays;
}

py::tuple sample_tokens(const py::array& logits, const py::array& params, const py::array& history,
                        const py::array& history_offsets, bool logprobs) {
    const float* data = data_of<float>("logits", logits, 2);
    const auto n = static_cast<int32_t>(logits.shape(0)), vocab = static_cast<int32_t>(logits.shape(1));
    const Draws draws(n, vocab, params, history, history_offsets);
    py::array_t<int32_t> ids(n);
    py::array_t<float> chosen(logprobs ? n : 0);
    const SampleArgs args = draws.args(ids.mutable_data(), logprobs ? chosen.mutable_data() : nullptr);
    without_gil([&](const std::function<bool()>&) { sample(data, args); });
    return py::make_tuple(ids, logprobs ? py::object(chosen) : py::none());
}

void register_engine(py::module_& m) {
    py::classh<Engine> engine(m, "Engine", careful_new(), "Weights, threads and lock of one model.");
    def_init(engine, +[](int threads) { return std::make_shared<Engine>(threads); }, py::arg("threads"));
    engine.def_property_readonly("threads", &Engine::threads)
        .def_property_readonly("weight_bytes", [](Engine& engine) { return engine.weights().bytes(); })
        .def("has", [](Engine& engine, const std::string& name) { return engine.weights().find(name) != nullptr; })
        .def("seconds_to_read",
             [](Engine& engine) {
                 double seconds = 0.0;
                 without_gil([&](const std::function<bool()>&) {
                     Engine::Running& running = engine.running();
                     const std::lock_guard lock(running.mutex);
                     seconds = engine.weights().seconds_to_read(running.pool);
                 });
                 return seconds;
             })
        // Called without keywords: pybind11 3.1 crashes if it finds no memory for the name of a keyword.
        .def("load", load, py::arg("name"), py::arg("use"), py::arg("format"), py::arg("parts"),
             py::arg("transposed") = false)
        .def("load_packed", load_packed, py::arg("name"), py::arg("use"), py::arg("format"), py::arg("rows"),
             py::arg("columns"), py::arg("parts"))
        .def("load_mapped", load_mapped, py::arg("file"), py::arg("bytes"), py::arg("entries"))
        .def("packed", packed, py::arg("name"), py::arg("own_strips") = false)
        .def("cancel", [](Engine& engine) { engine.running().pool.cancel(); });

    m.def("packed_sizes", packed_sizes, py::arg("use"), py::arg("format"), py::arg("rows"), py::arg("columns"),
          "Bytes of data, scales and sums of a weight.");
}

Buffer copy_of(const float* data, int64_t count) {
    Buffer buffer(static_cast<size_t>(count) * sizeof(float));
    std::copy_n(data, count, buffer.floats());
    return buffer;
}

// parts: (target, down [rank, in_features], up [rank, out_features]) of each linear that the adapter changes.
std::shared_ptr<Adapter> new_adapter(const std::vector<std::tuple<int32_t, py::array, py::array>>& parts) {
    auto adapter = std::make_shared<Adapter>();
    for (const auto& [target, down, up] : parts) {
        const float *of_down = data_of<float>("down", down, 2), *of_up = data_of<float>("up", up, 2);
        if (down.shape(0) != up.shape(0) || down.shape(0) < 1 || down.shape(0) > ops::kMaxLoraRank)
            throw Error(ErrorKind::kInput, "adapter: expected matrices [rank, in] and [rank, out] of a rank up to " +
                                               std::to_string(ops::kMaxLoraRank));
        if (!adapter->parts.empty() && adapter->parts.back().target >= target)
            throw Error(ErrorKind::kInput, "adapter: expected targets in ascending order");
        adapter->parts.push_back({.target = target,
                                  .rank = static_cast<int32_t>(down.shape(0)),
                                  .in_features = static_cast<int32_t>(down.shape(1)),
                                  .out_features = static_cast<int32_t>(up.shape(1)),
                                  .down = copy_of(of_down, down.size()),
                                  .up = copy_of(of_up, up.size())});
    }
    return adapter;
}

void register_adapter(py::module_& m) {
    py::classh<Adapter> adapter(m, "Adapter", careful_new(), "Matrices that are added to linears for some sequences.");
    def_init(adapter, new_adapter, py::arg("parts"));
}

void register_executor(py::module_& m) {
    py::classh<Executor> executor(m, "Executor", careful_new(), "Runs one Program.");
    def_init(
        executor,
        +[](std::shared_ptr<Engine> engine, const py::dict& spec) {
            return std::make_shared<Executor>(std::move(engine), spec_from(spec));
        },
        py::arg("engine"), py::arg("spec"));
    define_drawing(executor);
    executor
        .def(
            "new_cache",
            [](Executor& self, const std::shared_ptr<Adapter>& adapter) {
                return object_of(std::make_shared<KvCache>(self.kv_pool(), adapter));
            },
            py::arg("adapter"))
        .def(
            "set_profiling",
            [](Executor& executor, bool on) {
                without_gil([&](const std::function<bool()>&) { executor.set_profiling(on); });
            },
            py::arg("on"))
        .def_property_readonly("op_seconds", &Executor::op_seconds)
        .def_property_readonly("workspace_bytes", &Executor::workspace_bytes)
        .def("run", run, py::arg("token_ids"), py::arg("cu_seqlens"), py::arg("positions"), py::arg("wanted"),
             py::arg("token_type_ids") = py::none(), py::arg("caches") = py::none(), py::arg("out") = py::none(),
             py::arg("key_counts") = py::none(), py::arg("features") = py::tuple());
}

}  // namespace

void register_program(py::module_& m) {
    register_engine(m);
    register_adapter(m);
    register_cache(m);
    register_executor(m);
    register_decoding<Executor>(m);
    m.def("sample", sample_tokens, py::arg("logits"), py::arg("params"), py::arg("history"), py::arg("history_offsets"),
          py::arg("logprobs") = true);
    m.def("philox", [](uint64_t key, uint64_t counter) {
        uint32_t words[4];
        philox(key, counter, words);
        return std::array<uint32_t, 4>{words[0], words[1], words[2], words[3]};
    });
}

}  // namespace fastattn
