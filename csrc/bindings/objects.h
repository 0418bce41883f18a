// Objects of bound classes, created so that a failed allocation is a MemoryError. If there is no memory to register the
// object of a value, pybind11 3.1 frees the value twice or ends the process.
#pragma once
#include <pybind11/pybind11.h>

#include <memory>
#include <new>
#include <utility>

namespace fastattn {

namespace py = pybind11;

// Stores `value` in `slot`, the inside of a Python object of class T. If a registration fails, py::init and casts leave
// the address of the value in the object, which then frees what its owner frees as well.
template <class T>
void hold(py::detail::value_and_holder& slot, const std::shared_ptr<T>& value) {
    auto holder = py::smart_holder::from_shared_ptr(value);  // allocates nothing
    slot.value_ptr() = value.get();
    try {
        slot.type->init_instance(slot.inst, &holder);
    } catch (...) {
        slot.value_ptr() = nullptr;
        throw;
    }
}

// tp_new of a bound class. pybind11's own lets a C++ exception pass through Python, and reads a layout that was never
// allocated.
inline PyObject* new_object(PyTypeObject* type, PyObject*, PyObject*) {
    PyObject* object = type->tp_alloc(type, 0);
    if (object == nullptr) return nullptr;
    try {
        reinterpret_cast<py::detail::instance*>(object)->allocate_layout();
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();  // leaks the object: its destructor would read the layout
    }
    return object;
}
inline py::custom_type_setup careful_new() {
    return py::custom_type_setup([](PyHeapTypeObject* type) { type->ht_type.tp_new = new_object; });
}

// Wraps `value` in an object of its class.
template <class T>
py::object object_of(const std::shared_ptr<T>& value) {
    PyObject* object = new_object(reinterpret_cast<PyTypeObject*>(py::type::of<T>().ptr()), nullptr, nullptr);
    if (object == nullptr) throw py::error_already_set();
    auto owned = py::reinterpret_steal<py::object>(object);
    auto slot =
        reinterpret_cast<py::detail::instance*>(object)->get_value_and_holder(py::detail::get_type_info(typeid(T)));
    hold(slot, value);
    return owned;
}

// Defines __init__ of a class, from a function that makes the value.
template <class Class, class T, class... Args, class... Extra>
void def_init(Class& bound, std::shared_ptr<T> (*make)(Args...), const Extra&... extra) {
    bound.def(
        "__init__",
        [make](py::detail::value_and_holder& slot, Args... args) { hold(slot, make(std::forward<Args>(args)...)); },
        py::detail::is_new_style_constructor(), extra...);
}

}  // namespace fastattn
