#include <string_view>

#include "bindings/bindings.h"

namespace fastattn {
namespace {

const char* class_of(ErrorKind kind) {
    switch (kind) {
        case ErrorKind::kInput: return "InputError";
        case ErrorKind::kDtype: return "DTypeError";
        case ErrorKind::kModelFormat: return "ModelFormatError";
        case ErrorKind::kConfig: return "ConfigError";
        case ErrorKind::kContextLength: return "ContextLengthError";
        case ErrorKind::kNonFinite: return "NonFiniteError";
        case ErrorKind::kOutOfMemory: return "OutOfMemory";
        case ErrorKind::kCancelled: return "Cancelled";
        case ErrorKind::kOs: return nullptr;
    }
    return nullptr;
}

}  // namespace

void register_errors(py::module_&) {
    py::register_exception_translator([](std::exception_ptr pointer) {
        try {
            if (pointer) std::rethrow_exception(pointer);
        } catch (const Error& error) {
            const char* name = class_of(error.kind());
            const py::object type = name ? py::object(py::module_::import("fastattn.errors").attr(name))
                                         : py::reinterpret_borrow<py::object>(PyExc_OSError);
            py::set_error(type, error.what());
        } catch (const std::runtime_error& error) {
            // pybind11's message if Python has no memory for a list, a tuple or a dict.
            if (std::string_view(error.what()).rfind("Could not allocate ", 0) != 0) throw;
            PyErr_NoMemory();
        }
    });
}

}  // namespace fastattn
