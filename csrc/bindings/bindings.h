// Shared by the register_*.cpp files: modules, checked access to numpy arrays, and interruption by signals.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <string>

#include "bindings/python_calls.h"
#include "core/error.h"
#include "core/platform.h"
#include "kernels/kernels.h"

namespace fastattn {

namespace py = pybind11;

void register_errors(py::module_& m);
void register_runtime(py::module_& m);
void register_ops(py::module_& m);
void register_program(py::module_& m);
void register_kernels(py::module_& m);

// Sets ImportError in a sub-interpreter: threads, locks and signals here belong to one interpreter.
inline bool in_main_interpreter(const char* name) {
    if (PyInterpreterState_Get() == PyInterpreterState_Main()) return true;
    PyErr_Format(PyExc_ImportError, "%s: expected the main interpreter, got a sub-interpreter; use a process instead",
                 name);
    return false;
}

// FASTATTN_MODULE(name, m) { ... } is PYBIND11_MODULE(name, m) { ... } for the main interpreter only. pybind11's own
// entry point requests the GIL before it checks its interpreter, and deadlocks in a sub-interpreter of Python 3.11.
#define FASTATTN_MODULE_AS(name, checked, variable)                                 \
    extern "C" PYBIND11_EXPORT PyObject* PyInit_##checked();                        \
    extern "C" PYBIND11_EXPORT PyObject* PyInit_##name() {                          \
        return fastattn::in_main_interpreter(#name) ? PyInit_##checked() : nullptr; \
    }                                                                               \
    PYBIND11_MODULE(checked, variable)
#define FASTATTN_MODULE_OF(name, variable) FASTATTN_MODULE_AS(name, name##_in_main, variable)
#define FASTATTN_MODULE(name, variable) FASTATTN_MODULE_OF(name, variable)

// Looks up numpy's C interface, which pybind11 would otherwise do in the first call with an array. pybind11 releases
// the GIL meanwhile, without the precautions of GilReleased below; ImportGuard covers it.
inline void look_up_numpy() {
    (void)py::dtype::of<float>();
}

inline std::string name_of(const py::dtype& dtype) {
    return py::str(dtype).cast<std::string>();
}

// Converts nothing: an array of another dtype, order or rank is an error that describes the array.
template <class T>
void check_array(const char* name, const py::array& array, int ndim) {
    if (!py::isinstance<py::array_t<T>>(array) || array.ndim() != ndim || !(array.flags() & py::array::c_style))
        throw Error(ErrorKind::kDtype, std::string(name) + ": expected C-contiguous " + name_of(py::dtype::of<T>()) +
                                           " with " + std::to_string(ndim) + " dimensions, got " +
                                           name_of(array.dtype()) + " with " + std::to_string(array.ndim()));
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

// Releases the GIL for a scope. If the interpreter ends meanwhile, the thread sleeps (python_calls.h).
class GilReleased {
public:
    GilReleased() : state_(PyEval_SaveThread()) {}
    ~GilReleased() { restore_thread(state_); }
    GilReleased(const GilReleased&) = delete;
    GilReleased& operator=(const GilReleased&) = delete;

private:
    PyThreadState* state_;
};

// Makes the end of the interpreter wait for an import of this module that another thread has begun. pybind11 releases
// the GIL during the import, without the precautions of GilReleased: if the interpreter ended meanwhile, Python 3.13
// and older would unwind the importing thread, and the process would abort.
class ImportGuard {
public:
    ImportGuard() {
        state().process = process_id();
        py::module_::import("atexit").attr("register")(py::cpp_function(&ImportGuard::wait));
    }
    ~ImportGuard() {
        const std::lock_guard lock(state().mutex);
        state().process = 0;
        state().finished.notify_all();
    }
    ImportGuard(const ImportGuard&) = delete;
    ImportGuard& operator=(const ImportGuard&) = delete;

private:
    struct State {
        std::mutex mutex;
        std::condition_variable finished;
        int64_t process = 0;  // the one that imports; in the child of a fork, the importing thread does not exist
    };
    static State& state() {
        static auto* const value = new State;  // threads may outlive static objects
        return *value;
    }
    static void wait() {
        const GilReleased released;
        std::unique_lock lock(state().mutex);
        state().finished.wait(lock, [] { return state().process != process_id(); });
    }
};

// Checks for signals while the GIL is released. After it returned true, `error` has the Python error.
struct SignalPoll {
    std::exception_ptr error;
    // Python runs signal handlers only in the main thread. Other threads need not ask for the GIL, and must not: if
    // the interpreter ended meanwhile, it would end them in the middle of a region, which would then never finish.
    int64_t process = process_id();
    bool main_thread = in_main_thread();

    // Whether a handler forked and this is the child. The work of the other threads cannot be finished here.
    bool forked() const { return process_id() != process; }

    bool operator()() {
        if (!main_thread) return false;
        const py::gil_scoped_acquire gil;
        if (PyErr_CheckSignals() == 0) return forked();
        try {
            throw py::error_already_set();
        } catch (...) {
            error = std::current_exception();
        }
        return true;
    }
};

// Runs `work(poll)` without the GIL. An exception of a signal handler, such as KeyboardInterrupt, overrides Cancelled.
template <class F>
void without_gil(const F& work) {
    SignalPoll poll;
    try {
        const GilReleased released;
        work(std::function<bool()>(std::ref(poll)));
    } catch (const Error&) {
        if (poll.error) std::rethrow_exception(poll.error);
        if (poll.forked())
            throw Error(ErrorKind::kCancelled,
                        "the process forked in a signal handler during the call, and its child cannot finish the call; "
                        "call again, or end the child in the handler");
        throw;
    }
}

Format format_from(const std::string& name);     // throws Error(kConfig) for an unknown one
Format kv_format_from(const std::string& name);  // also Error(kInput) for int4, which no KV block has

}  // namespace fastattn
