#include "bindings/bindings.h"

FASTATTN_MODULE(_core, m) {
    m.doc() = "C++ core of fastattn; the public interface is the package around it.";
    const fastattn::ImportGuard guard;
    fastattn::look_up_numpy();
    fastattn::register_errors(m);
    fastattn::register_runtime(m);
    fastattn::register_ops(m);
    fastattn::register_program(m);
    fastattn::register_kernels(m);
}
