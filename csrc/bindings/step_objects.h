// Caches, steps that draw tokens, and the decoding loop: the same classes and functions for every executor.
#pragma once
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <vector>

#include "bindings/objects.h"
#include "bindings/step_arrays.h"
#include "kv/kv_cache.h"
#include "program/decoding.h"

namespace fastattn {

using Caches = std::optional<std::vector<KvCache*>>;

inline StepInput step_from(const py::array& token_ids, const py::array& cu_seqlens, const py::array& positions,
                           const py::array& wanted, const std::optional<py::array>& token_type_ids,
                           const Caches& caches) {
    const StepInput step{arrays_from(token_ids, cu_seqlens, positions, wanted, token_type_ids),
                         caches.value_or(std::vector<KvCache*>{}),
                         {}};
    for (const KvCache* cache : step.caches)
        if (cache == nullptr) throw Error(ErrorKind::kInput, "caches: expected a cache for every sequence, got None");
    if (caches && step.caches.size() != static_cast<size_t>(step.n_sequences))
        throw Error(ErrorKind::kInput, "caches: expected one per sequence");
    return step;
}

// [rows, width], or flat for attention maps, which are ragged.
inline std::vector<py::ssize_t> output_shape(const ProgramSpec& spec, int32_t value, const StepInput& step) {
    const ValueSpec& of = spec.values[static_cast<size_t>(value)];
    if (of.width == 0) return {floats_of(spec, value, step)};
    return {step.rows(of.rows), of.width};
}

inline PyObject* number_of(int32_t value) {
    return PyLong_FromLong(value);
}
inline PyObject* number_of(float value) {
    return PyFloat_FromDouble(value);
}

// py::list would throw RuntimeError if there is no memory.
template <class T>
py::list list_of(const std::vector<T>& values) {
    auto list = py::reinterpret_steal<py::list>(PyList_New(static_cast<py::ssize_t>(values.size())));
    if (!list) throw py::error_already_set();
    for (size_t i = 0; i < values.size(); ++i) {
        PyObject* number = number_of(values[i]);
        if (number == nullptr) throw py::error_already_set();
        PyList_SET_ITEM(list.ptr(), static_cast<py::ssize_t>(i), number);
    }
    return list;
}

inline py::tuple result_of(const Decoding::Drawn& drawn) {
    return py::make_tuple(list_of(drawn.ids),
                          drawn.logprobs.empty() ? py::none() : py::object(list_of(drawn.logprobs)));
}

template <class Executor>
py::tuple draw(Executor& executor, const py::array& token_ids, const py::array& cu_seqlens, const py::array& positions,
               const py::array& wanted, const Caches& caches, const py::array& params, const py::array& history,
               const py::array& history_offsets, const std::optional<py::array>& suppressed,
               const std::optional<py::array>& suppress, bool logprobs) {
    const StepInput step = step_from(token_ids, cu_seqlens, positions, wanted, std::nullopt, caches);
    const CacheGuard guard(step.caches);
    const Draws draws(step.n_wanted, executor.vocab(), params, history, history_offsets, suppressed, suppress);
    const auto n = static_cast<size_t>(step.n_wanted);
    Decoding::Drawn drawn{std::vector<int32_t>(n), std::vector<float>(logprobs ? n : 0)};
    const SampleArgs args = draws.args(drawn.ids.data(), logprobs ? drawn.logprobs.data() : nullptr);
    without_gil([&](const std::function<bool()>& poll) { executor.draw(step, args, poll); });
    return result_of(drawn);
}

template <class Executor>
std::shared_ptr<Decoding> new_decoding(std::shared_ptr<Executor> executor, const py::array& token_ids,
                                       const std::vector<std::shared_ptr<KvCache>>& caches, const py::array& params,
                                       const py::array& history, const py::array& history_offsets,
                                       const std::optional<py::array>& suppressed,
                                       const std::optional<py::array>& suppress, bool logprobs) {
    const int32_t* ids = data_of<int32_t>("token_ids", token_ids, 1);
    const auto n = static_cast<int32_t>(token_ids.size());
    if (caches.size() != static_cast<size_t>(n)) throw Error(ErrorKind::kInput, "caches: expected one per sequence");
    const Draws draws(n, executor->vocab(), params, history, history_offsets, suppressed, suppress);
    std::vector<Decoding::Row> rows;
    for (size_t i = 0; i < caches.size(); ++i) {
        if (caches[i] == nullptr)
            throw Error(ErrorKind::kInput, "caches: expected a cache for every sequence, got None");
        rows.push_back({.cache = caches[i],
                        .token_id = ids[i],
                        .params = draws.params[i],
                        .history = {draws.histories[i], draws.histories[i] + draws.lengths[i]},
                        .suppress = draws.suppress[i]});
    }
    return std::make_shared<Decoding>(std::move(executor), std::move(rows),
                                      std::vector<int32_t>(draws.suppressed, draws.suppressed + draws.n_suppressed),
                                      logprobs);
}

// Uses a cache outside of a step. Throws Error(kInput) while a step in another thread uses it.
template <class F>
auto use(KvCache& cache, const F& work) {
    cache.check_open();
    if (!cache.try_acquire())
        throw Error(ErrorKind::kInput, "cache: expected one that no call uses, got one in use by another thread");
    struct Release {
        KvCache& cache;
        ~Release() { cache.release(); }
    } release{cache};
    return work();
}

// A page of keys and values that caches share. It stays in memory as long as this object or a cache holds it.
struct SharedPage {
    std::shared_ptr<PagePool> pool;
    PagePool::Page page;

    py::array_t<uint8_t> read() const {
        py::array_t<uint8_t> bytes(static_cast<py::ssize_t>(pool->page_bytes()));
        pool->read_page(reinterpret_cast<std::byte*>(bytes.mutable_data()), page.get());
        return bytes;
    }
};

template <class Executor>
py::object new_page(Executor& executor, const py::array& bytes) {
    const auto pool = executor.kv_pool();
    const auto* from = reinterpret_cast<const std::byte*>(data_of<uint8_t>("bytes", bytes, 1));
    if (bytes.size() != pool->page_bytes())
        throw Error(ErrorKind::kInput, "bytes: expected the " + std::to_string(pool->page_bytes()) +
                                           " bytes of a page, got " + std::to_string(bytes.size()));
    const auto made = std::make_shared<SharedPage>(SharedPage{pool, nullptr});
    without_gil([&](const std::function<bool()>&) {
        made->page = executor.new_page();
        pool->write_page(made->page.get(), from);
    });
    return object_of(made);
}

inline void attach(KvCache& cache, const SharedPage& page, int32_t count) {
    use(cache, [&] {
        if (cache.pool() != page.pool.get())
            throw Error(ErrorKind::kInput, "page: expected a page of this model, got one of another model");
        cache.attach(page.page, count);
    });
}

// extra: options of the class.
template <class... Extra>
void register_cache(py::module_& m, const Extra&... extra) {
    m.attr("kv_page_len") = kBlockLen;
    py::classh<SharedPage>(m, "Page", careful_new(), extra..., "Keys and values of a block of positions.")
        .def("read", &SharedPage::read);
    py::classh<KvCache>(m, "Cache", careful_new(), extra..., "Keys and values of one sequence, in pages.")
        .def_property_readonly("length", [](KvCache& cache) { return use(cache, [&] { return cache.length(); }); })
        .def_property_readonly("closed", &KvCache::closed)
        .def(
            "truncate", [](KvCache& cache, int32_t length) { use(cache, [&] { cache.truncate(length); }); },
            py::arg("length"))
        .def("fork",
             [](KvCache& cache) {
                 return object_of(use(cache, [&] { return std::make_shared<KvCache>(cache.fork()); }));
             })
        .def(
            "share_page",
            [](KvCache& cache, int32_t index) {
                return object_of(use(cache, [&] {
                    return std::make_shared<SharedPage>(SharedPage{cache.shared_pool(), cache.share_page(index)});
                }));
            },
            py::arg("index"))
        .def(
            "set_memory",
            [](KvCache& cache, KvCache& memory) {
                use(cache, [&] { use(memory, [&] { cache.set_memory(memory); }); });
            },
            py::arg("memory"))
        .def("attach", attach, py::arg("page"), py::arg("count"))
        .def("skip_page", [](KvCache& cache) { use(cache, [&] { cache.skip_page(); }); })
        .def(
            "slide", [](KvCache& cache, int32_t window) { use(cache, [&] { cache.slide(window); }); },
            py::arg("window"))
        .def("close", [](KvCache& cache) {
            if (!cache.closed()) use(cache, [&] { cache.close(); });
        });
}

// What an executor does with caches and tokens, as methods of its class.
template <class Executor>
void define_drawing(py::classh<Executor>& executor) {
    executor.def("new_cache", [](Executor& self) { return object_of(std::make_shared<KvCache>(self.kv_pool())); })
        .def_property_readonly("kv_bytes", [](Executor& self) { return self.kv_pool()->bytes(); })
        .def_property_readonly("kv_page_bytes", [](Executor& self) { return self.kv_pool()->page_bytes(); })
        .def_property_readonly("kv_pages_in_use", [](Executor& self) { return self.kv_pool()->pages_in_use(); })
        .def("new_page", new_page<Executor>, py::arg("bytes"))
        .def("draw", draw<Executor>, py::arg("token_ids"), py::arg("cu_seqlens"), py::arg("positions"),
             py::arg("wanted"), py::arg("caches"), py::arg("params"), py::arg("history"), py::arg("history_offsets"),
             py::arg("suppressed") = py::none(), py::arg("suppress") = py::none(), py::arg("logprobs") = false);
}

template <class Executor, class... Extra>
void register_decoding(py::module_& m, const Extra&... extra) {
    py::classh<Decoding> decoding(m, "Decoding", careful_new(), extra...,
                                  "Sequences that are fed the token drawn for them, step by step.");
    def_init(decoding, &new_decoding<Executor>, py::arg("executor"), py::arg("token_ids"), py::arg("caches"),
             py::arg("params"), py::arg("history"), py::arg("history_offsets"), py::arg("suppressed") = py::none(),
             py::arg("suppress") = py::none(), py::arg("logprobs") = false);
    decoding.def("draw", [](Decoding& self) {
        Decoding::Drawn drawn;
        without_gil([&](const std::function<bool()>& poll) { drawn = self.draw(poll); });
        return result_of(drawn);
    });
}

}  // namespace fastattn
