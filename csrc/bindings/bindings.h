// Shared by the register_*.cpp files: checked access to numpy arrays, and interruption by signals.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cxxabi.h>
#include <unistd.h>

#include <exception>
#include <functional>
#include <string>

#include "core/error.h"

namespace fastattn {

namespace py = pybind11;

void register_errors(py::module_& m);
void register_runtime(py::module_& m);
void register_ops(py::module_& m);
void register_program(py::module_& m);
void register_kernels(py::module_& m);

template <class T>
const char* dtype_name();
template <>
inline const char* dtype_name<float>() {
    return "float32";
}
template <>
inline const char* dtype_name<int32_t>() {
    return "int32";
}
template <>
inline const char* dtype_name<int64_t>() {
    return "int64";
}

// Nothing is ever converted here: an array of another dtype, order or rank is an error that says what came.
template <class T>
void check_array(const char* name, const py::array& array, int ndim) {
    if (!py::isinstance<py::array_t<T>>(array) || array.ndim() != ndim || !(array.flags() & py::array::c_style))
        throw Error(ErrorKind::kDtype, std::string(name) + ": expected C-contiguous " + dtype_name<T>() + " with " +
                                           std::to_string(ndim) + " dimensions, got " +
                                           py::str(array.dtype()).cast<std::string>() + " with " +
                                           std::to_string(array.ndim()));
}
template <class T>
const T* data_of(const char* name, const py::array& array, int ndim) {
    check_array<T>(name, array, ndim);
    return static_cast<const T*>(array.data());
}
template <class T>
T* writable(const char* name, py::array& array, int ndim) {
    check_array<T>(name, array, ndim);
    if (!array.writeable()) throw Error(ErrorKind::kInput, std::string(name) + ": expected a writable array");
    return static_cast<T*>(array.mutable_data());
}

// Takes the GIL by `take`. When the interpreter shuts down, Python (before 3.14) ends threads that ask for the GIL by
// unwinding their stacks, which no noexcept frame survives: such a thread waits here instead for the process to end.
template <class F>
auto take_gil(const F& take) {
    try {
        return take();
    } catch (const abi::__forced_unwind&) {
        for (;;) pause();
    }
}

// Looks for signals while the GIL is released. After a true the Python error waits in `error`.
struct SignalPoll {
    std::exception_ptr error;

    bool operator()() {
        const PyGILState_STATE state = take_gil([] { return PyGILState_Ensure(); });
        const bool raised = PyErr_CheckSignals() != 0;
        if (raised) {
            try {
                throw py::error_already_set();
            } catch (...) {
                error = std::current_exception();
            }
        }
        PyGILState_Release(state);
        return raised;
    }
};

// Runs `work(poll)` without the GIL; a signal handler's exception, such as KeyboardInterrupt, wins over Cancelled.
template <class F>
void without_gil(const F& work) {
    SignalPoll poll;
    std::exception_ptr error;
    PyThreadState* state = PyEval_SaveThread();
    try {
        work(std::function<bool()>(std::ref(poll)));
    } catch (...) {
        error = std::current_exception();
    }
    take_gil([state] {
        PyEval_RestoreThread(state);
        return 0;
    });
    if (poll.error) std::rethrow_exception(poll.error);
    if (error) std::rethrow_exception(error);
}

}  // namespace fastattn
