// fastattn._cuda: the CUDA executor. Importing it does not touch the driver; asking for a device does.
#include <pybind11/stl.h>

#include <cstring>

#include "bindings/bindings.h"
#include "bindings/read_spec.h"
#include "bindings/step_objects.h"
#include "cuda/executor.h"
#include "program/names.h"

#ifndef FASTATTN_CUDA_MODULE
#define FASTATTN_CUDA_MODULE _cuda
#endif

namespace fastattn::cuda {
namespace {

constexpr Named<Type> kTypeNames[] = {
    {"float32", Type::kFloat32}, {"bfloat16", Type::kBfloat16}, {"float16", Type::kFloat16}};

py::dict device_info() {
    const Device device = open_device();
    py::dict info;
    info["name"] = device.name;
    info["compute_capability"] = py::make_tuple(device.major, device.minor);
    info["memory_bytes"] = device.memory_bytes;
    info["free_bytes"] = device.free_bytes;
    info["driver"] = device.driver;
    info["runtime"] = device.runtime;
    return info;
}

// array: [rows, columns] as stored; 16-bit types as uint16 bits.
void load(Engine& engine, const std::string& name, const std::string& use, const std::string& format,
          const py::array& array) {
    const Type type = value_of(kTypeNames, format, "format", ErrorKind::kConfig);
    const WeightUse as = value_of(kUseNames, use, "use", ErrorKind::kConfig);
    if (array.ndim() != 2 || array.itemsize() != bytes_of(type) || !(array.flags() & py::array::c_style) ||
        (type == Type::kFloat32) != (array.dtype().kind() == 'f'))
        throw Error(ErrorKind::kDtype, name + ": expected C-contiguous " +
                                           (type == Type::kFloat32 ? "float32" : "uint16 bits of " + format) +
                                           " with 2 dimensions, got " + name_of(array.dtype()) + " with " +
                                           std::to_string(array.ndim()));
    const int64_t rows = array.shape(0), columns = array.shape(1);
    const void* data = array.data();
    without_gil([&](const std::function<bool()>&) { engine.load(name, as, type, rows, columns, data); });
}

// The outputs with `wanted_outputs` set: [rows, width], or flat for attention maps, which are ragged. None for the
// others.
py::list run(Executor& executor, const py::array& token_ids, const py::array& cu_seqlens, const py::array& positions,
             const py::array& wanted, const std::optional<py::array>& token_type_ids, const Caches& caches,
             const std::vector<bool>& wanted_outputs) {
    const StepInput step = step_from(token_ids, cu_seqlens, positions, wanted, token_type_ids, caches);
    const CacheGuard guard(step.caches);
    const std::vector<int32_t>& outputs = executor.spec().outputs;
    if (wanted_outputs.size() != outputs.size())
        throw Error(ErrorKind::kInput, "wanted_outputs: expected one bool per output");
    py::list arrays;
    std::vector<float*> pointers;
    for (size_t i = 0; i < outputs.size(); ++i) {
        pointers.push_back(nullptr);
        if (!wanted_outputs[i]) {
            arrays.append(py::none());
            continue;
        }
        py::array_t<float> array(output_shape(executor.spec(), outputs[i], step));
        pointers.back() = array.mutable_data();
        arrays.append(array);
    }
    without_gil([&](const std::function<bool()>& poll) { executor.run(step, pointers, poll); });
    return arrays;
}

void register_engine(py::module_& m) {
    // Local, because tests load this module and the emulation's into one process.
    py::classh<Engine> engine(m, "Engine", py::module_local(), careful_new(),
                              "Device, stream and weights of one model.");
    def_init(
        engine,
        +[](int64_t budget_bytes, bool tf32, bool library, const std::vector<std::string>& paths) {
            return std::make_shared<Engine>(EngineOptions{budget_bytes, tf32, library, paths});
        },
        py::kw_only(), py::arg("budget_bytes") = 0, py::arg("tf32") = false, py::arg("library") = true,
        py::arg("library_paths") = std::vector<std::string>{});
    engine.def("load", load, py::arg("name"), py::arg("use"), py::arg("format"), py::arg("array"))
        .def_property_readonly("weight_bytes", &Engine::weight_bytes)
        .def_property_readonly("workspace_bytes", &Engine::workspace_bytes)
        .def_property_readonly("budget_bytes", [](const Engine& engine) { return engine.budget().bytes(); })
        .def_property_readonly("used_bytes", [](const Engine& engine) { return engine.budget().used(); })
        .def_property_readonly("library",
                               [](const Engine& engine) -> std::optional<std::string> {
                                   if (engine.library() == nullptr) return std::nullopt;
                                   return engine.library()->path();
                               })
        .def_property_readonly("why_no_library", &Engine::why_no_library)
        .def("cancel", &Engine::cancel);
}

Executor::GraphCounts count_graphs(const Executor& executor) {
    Executor::GraphCounts counts;
    without_gil([&](const std::function<bool()>&) { counts = executor.count_graphs(); });
    return counts;
}

// The file of cuBLASLt that a model would use, or None, and why others were skipped.
py::tuple find_library(const std::vector<std::string>& paths) {
    (void)open_device();
    const auto budget = std::make_shared<Budget>(CublasLt::kWorkspaceBytes);
    std::string why;
    const auto library = CublasLt::load(paths, /*tf32=*/false, budget, why);
    return py::make_tuple(library ? py::cast(library->path()) : py::none(), why);
}

void register_executor(py::module_& m) {
    py::classh<Executor> executor(m, "Executor", py::module_local(), careful_new(), "Runs one Program.");
    def_init(
        executor,
        +[](std::shared_ptr<Engine> engine, const py::dict& spec, const std::string& kv_dtype) {
            const Type type = value_of(kTypeNames, kv_dtype, "kv_dtype", ErrorKind::kInput);
            ProgramSpec read = spec_from(spec);
            std::shared_ptr<Executor> executor;
            // It waits for a running step, whose poll may wait for the GIL.
            without_gil([&](const std::function<bool()>&) {
                executor = std::make_shared<Executor>(std::move(engine), std::move(read), type);
            });
            return executor;
        },
        py::arg("engine"), py::arg("spec"), py::arg("kv_dtype"));
    define_drawing(executor);
    executor.def_property_readonly("graphs", [](Executor& executor) { return count_graphs(executor).captured; })
        .def_property_readonly("failed_graphs", [](Executor& executor) { return count_graphs(executor).failed; })
        .def_property_readonly("built_in_products", &Executor::built_in_products)
        .def("run", run, py::arg("token_ids"), py::arg("cu_seqlens"), py::arg("positions"), py::arg("wanted"),
             py::arg("token_type_ids"), py::arg("caches"), py::arg("wanted_outputs"));
}

}  // namespace
}  // namespace fastattn::cuda

FASTATTN_MODULE(FASTATTN_CUDA_MODULE, m) {
    m.doc() = "The CUDA executor of fastattn; the public interface is the package around it.";
    const fastattn::ImportGuard guard;
    fastattn::look_up_numpy();
    fastattn::register_errors(m);
    m.def("device_info", &fastattn::cuda::device_info,
          "The GPU that a model would run on. Raises ConfigError if there is none.");
    m.def("find_library", &fastattn::cuda::find_library, pybind11::arg("paths"),
          "The cuBLASLt that a model would use, or None, and why others were skipped.");
    fastattn::cuda::register_engine(m);
    fastattn::register_cache(m, pybind11::module_local());
    fastattn::cuda::register_executor(m);
    fastattn::register_decoding<fastattn::cuda::Executor>(m, pybind11::module_local());
}
