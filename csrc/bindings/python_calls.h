// Calls into Python that wait for the GIL. If the interpreter ends meanwhile, Python 3.13 and older end the waiting
// thread with pthread_exit, and glibc unwinds its stack. C++ frames do not survive that: a destructor would run Python
// code without the GIL, and a C++ runtime that is linked statically cannot even be unwound by glibc's unwinder. Here
// the thread sleeps for the rest of the process instead, as Python 3.14 lets it do.
#pragma once
#include <Python.h>

#include <cstdint>

namespace fastattn {

void restore_thread(PyThreadState* state);  // PyEval_RestoreThread
PyGILState_STATE ensure_gil();              // PyGILState_Ensure
void release_gil(PyGILState_STATE state);   // PyGILState_Release
void drop(PyObject* object);                // Py_XDECREF, which may run Python code

// Returns function(begin, end), or null with a Python error.
PyObject* call_with_range(PyObject* function, int64_t begin, int64_t end);

}  // namespace fastattn
