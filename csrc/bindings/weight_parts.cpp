#include "bindings/weight_parts.h"

#include <memory>
#include <string>
#include <tuple>
#include <utility>

namespace fastattn {
namespace {

bool is_usable(const py::array& array) {
    const int needed = static_cast<int>(py::array::c_style) | int{py::detail::npy_api::NPY_ARRAY_ALIGNED_};
    return (array.flags() & needed) == needed;
}

// The rows of a function, as floats. Python has checked them with better messages; this checks what memory safety
// needs.
const float* floats_of(const std::string& name, const py::object& rows, int64_t n) {
    const auto described = "tensor " + name;
    if (!py::isinstance<py::array_t<float>>(rows))
        throw Error(ErrorKind::kDtype, described + ": expected rows of float32 from its function");
    const auto array = py::reinterpret_borrow<py::array>(rows);
    if (!is_usable(array) || array.size() != n)
        throw Error(ErrorKind::kInput, described + ": expected " + std::to_string(n) +
                                           " C-contiguous numbers from its function, got " +
                                           std::to_string(array.size()));
    return static_cast<const float*>(array.data());
}

// Has the GIL for a scope, like py::gil_scoped_acquire. If the interpreter ends meanwhile, the thread sleeps.
class Gil {
public:
    Gil() : state_(ensure_gil()) {}
    ~Gil() { release_gil(state_); }
    Gil(const Gil&) = delete;
    Gil& operator=(const Gil&) = delete;

private:
    PyGILState_STATE state_;
};

// A function and its last rows, which stay alive until the next call.
struct ComputedRows {
    std::string name;
    int64_t columns;
    py::object function, rows{};

    // Called without the GIL.
    const float* operator()(int64_t begin, int64_t end) {
        const Gil gil;
        drop(rows.release().ptr());  // free the last slice before the next one is computed
        PyObject* const made = call_with_range(function.ptr(), begin, end);
        if (made == nullptr) throw py::error_already_set();
        rows = py::reinterpret_steal<py::object>(made);
        return floats_of(name, rows, (end - begin) * columns);
    }
};

std::unique_ptr<WeightSource> array_source(WeightSource::Matrix matrix, const py::array& array) {
    const int64_t expected = matrix.rows * matrix.columns * dtype_bytes(matrix.dtype);
    if (!is_usable(array) || array.nbytes() != expected)
        throw Error(ErrorKind::kInput, "tensor " + matrix.name + ": expected a C-contiguous array of " +
                                           std::to_string(expected) + " bytes, got " + std::to_string(array.nbytes()));
    return std::make_unique<ArraySource>(std::move(matrix), array.data());
}

std::unique_ptr<WeightSource> source_from(WeightSource::Matrix matrix, const py::object& data) {
    if (py::isinstance<py::array>(data)) return array_source(std::move(matrix), data.cast<py::array>());
    const auto [first, second] = data.cast<std::pair<py::object, int64_t>>();
    if (!PyCallable_Check(first.ptr()))
        return std::make_unique<FileSource>(std::move(matrix), first.cast<int>(), second);
    if (matrix.dtype != DType::kF32)
        throw Error(ErrorKind::kDtype, "tensor " + matrix.name + ": expected dtype F32 for a function");
    ComputedRows rows{.name = matrix.name, .columns = matrix.columns, .function = first};
    return std::make_unique<ComputedSource>(matrix.name, matrix.rows, matrix.columns, second, std::move(rows));
}

}  // namespace

WeightParts parts_from(const py::list& parts, bool packed) {
    WeightParts result;
    for (const auto& part : parts) {
        const auto [name, dtype, rows, columns, data] =
            part.cast<std::tuple<std::string, std::string, int64_t, int64_t, py::object>>();
        if (rows < 0 || columns < 0)
            throw Error(ErrorKind::kInput, "tensor " + name + ": expected sizes of at least 0");
        const DType type = packed && dtype == "U8" ? DType::kU8 : dtype_from_name(dtype);
        if (packed && type != DType::kU8)
            throw Error(ErrorKind::kDtype, "tensor " + name + ": expected dtype U8, got " + dtype);
        result.alive.push_back(data);
        result.sources.push_back(source_from({name, type, rows, columns}, data));
    }
    return result;
}

}  // namespace fastattn
