// One exception type; the bindings map its kind to the classes of fastattn.errors.
#pragma once
#include <stdexcept>
#include <string>

namespace fastattn {

enum class ErrorKind {
    kInput,
    kDtype,
    kModelFormat,
    kConfig,
    kContextLength,
    kNonFinite,
    kOutOfMemory,
    kCancelled,
    kOs
};

class Error : public std::runtime_error {
public:
    Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
    ErrorKind kind() const { return kind_; }

private:
    ErrorKind kind_;
};

}  // namespace fastattn
