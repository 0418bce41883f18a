#include "bindings/python_calls.h"

#include <pthread.h>
#include <unistd.h>

// With exceptions, pthread_cleanup_push is a C++ object, whose destructor the unwinder calls. Without them, glibc jumps
// to the handler before it unwinds this frame or those of its callers.
#if defined(__EXCEPTIONS)
#error "compile this file with -fno-exceptions"
#endif

namespace fastattn {
namespace {

void sleep_forever(void*) {
    for (;;) pause();
}

}  // namespace

void restore_thread(PyThreadState* state) {
    pthread_cleanup_push(sleep_forever, nullptr);
    PyEval_RestoreThread(state);
    pthread_cleanup_pop(0);
}

PyGILState_STATE ensure_gil() {
    // Late in its end, the interpreter has no place for a new thread state, and PyGILState_Ensure would crash.
    if (!Py_IsInitialized()) sleep_forever(nullptr);
    PyGILState_STATE state{};
    pthread_cleanup_push(sleep_forever, nullptr);
    state = PyGILState_Ensure();
    pthread_cleanup_pop(0);
    return state;
}

void release_gil(PyGILState_STATE state) {
    pthread_cleanup_push(sleep_forever, nullptr);
    PyGILState_Release(state);
    pthread_cleanup_pop(0);
}

void drop(PyObject* object) {
    pthread_cleanup_push(sleep_forever, nullptr);
    Py_XDECREF(object);
    pthread_cleanup_pop(0);
}

PyObject* call_with_range(PyObject* function, int64_t begin, int64_t end) {
    PyObject* result = nullptr;
    pthread_cleanup_push(sleep_forever, nullptr);
    result = PyObject_CallFunction(function, "LL", static_cast<long long>(begin), static_cast<long long>(end));
    pthread_cleanup_pop(0);
    return result;
}

}  // namespace fastattn
