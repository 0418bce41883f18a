"""The arguments of SentenceTransformer and its encode methods: used, without effect, or rejected with a typed error."""

from __future__ import annotations

import copy
import inspect
import logging
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.errors import ConfigError, DTypeError, FastattnError, InputError
from tests.reference.package import SOURCES
from tests.tasks.sentence_folders import (
    NORMALIZE,
    POOLING,
    TEXTS,
    WIDTH,
    change_json,
    dense,
    write_model,
    write_static,
    write_transformer,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("arguments") / "m", POOLING, dense(WIDTH, 40))


@pytest.fixture(scope="module")
def model(folder: Path) -> fastattn.SentenceTransformer:
    return fastattn.SentenceTransformer(folder, threads=1)


@pytest.mark.torch
@pytest.mark.parametrize("precision", [None, "float32", "int8", "uint8", "binary", "ubinary"])
def test_precision(folder: Path, model: fastattn.SentenceTransformer, precision: Any) -> None:
    """The result equals that of sentence-transformers for the same vectors."""
    from sentence_transformers.util import quantize_embeddings

    vectors = model.encode(TEXTS)
    found = model.encode(TEXTS, precision=precision)
    expected = quantize_embeddings(vectors, precision=precision or "float32")
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)
    nothing = model.encode([], precision=precision)
    assert (nothing.dtype, nothing.shape) == (expected.dtype, (0, expected.shape[1]))
    if precision in ("int8", "uint8"):
        with pytest.raises(InputError, match="one vector has none"):
            model.encode("a", precision=precision)
    else:
        assert np.array_equal(model.encode(TEXTS[1], precision=precision), found[1])


def test_recorded_precision() -> None:
    from fastattn.tasks.search.quantization import quantize_vectors

    """Values from sentence-transformers 6.2."""
    vectors = np.float32(
        [[-1, 2, 0, 1, 5, -2, 1, 1, 3], [1, 0, 0, 0.5, 5, -1, -1, 1, -3], [0, 1, 0, 0, 5, 0, 0, -1, 0]]
    )
    columns = [[-128, 126, -128, 126], [126, -128, -128, -1], [-1, -1, -128, -128]]
    assert quantize_vectors(vectors, "int8")[:, :4].tolist() == columns
    assert (quantize_vectors(vectors, "uint8")[:, :4].astype(int) - 128).tolist() == columns
    assert quantize_vectors(vectors, "ubinary").tolist() == [[91, 128], [153, 0], [72, 0]]
    assert quantize_vectors(vectors, "binary").tolist() == [[-37, 0], [25, -128], [-56, -128]]


def test_kinds_of_results(model: fastattn.SentenceTransformer) -> None:
    vectors = model.encode(TEXTS)
    assert [row.tobytes() for row in model.encode(TEXTS, convert_to_numpy=False)] == [row.tobytes() for row in vectors]
    assert model.encode("a", convert_to_numpy=False).shape == (40,)
    found = model.encode(TEXTS, output_value=None, prompt="the ")
    assert [item["sentence_embedding"].tobytes() for item in found] == [
        row.tobytes() for row in model.encode(TEXTS, prompt="the ")
    ]
    for item, tokens in zip(found, model.encode(TEXTS, output_value="token_embeddings", prompt="the "), strict=True):
        assert item["token_embeddings"].tobytes() == tokens.tobytes()
        assert item["input_ids"].shape == item["token_type_ids"].shape == item["attention_mask"].shape == (len(tokens),)
    assert model.encode("a", output_value=None, truncate_dim=3)["sentence_embedding"].shape == (3,)
    assert model.encode([], output_value=None) == model.encode([], output_value="token_embeddings") == []


@pytest.mark.torch
def test_tensors(model: fastattn.SentenceTransformer) -> None:
    torch = pytest.importorskip("torch")
    found = model.encode(TEXTS, convert_to_tensor=True)
    assert isinstance(found, torch.Tensor)
    assert found.numpy().tobytes() == model.encode(TEXTS).tobytes()
    assert model.encode("a", convert_to_tensor=True).shape == (40,)
    assert model.encode([], convert_to_tensor=True).shape == (0, 40)
    tokens = model.encode(TEXTS, convert_to_tensor=True, output_value="token_embeddings")
    assert all(isinstance(item, torch.Tensor) for item in tokens)


def test_tensors_without_torch(folder: Path) -> None:
    code = (
        "import sys, fastattn\n"
        f"model = fastattn.SentenceTransformer({str(folder)!r}, threads=1)\n"
        "assert model.encode(['a']).shape == (1, 40) and 'torch' not in sys.modules\n"
        "try: model.encode('a', convert_to_tensor=True)\n"
        "except fastattn.InputError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(SOURCES)}
    )
    assert "import torch first, or use torch.from_numpy" in done.stdout


def test_inputs(model: fastattn.SentenceTransformer) -> None:
    pandas = pytest.importorskip("pandas")
    expected = model.encode(TEXTS).tobytes()

    class Column:
        def __len__(self) -> int:
            return len(TEXTS)

        def __getitem__(self, i: int) -> str:
            return TEXTS[i]

    sequences: list[Any] = [
        tuple(TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, object),
        iter(TEXTS),
        (text for text in TEXTS),
        pandas.Series(TEXTS, index=range(5, 5 + len(TEXTS))),
        Column(),
        dict.fromkeys(TEXTS).keys(),
    ]
    for texts in sequences:
        assert model.encode(texts).tobytes() == expected
    assert model.encode(inputs=TEXTS).tobytes() == model.encode_query(inputs=TEXTS).tobytes() == expected
    with pytest.raises(InputError, match=r"^inputs: "):
        model.encode("a", inputs="b")
    for bad in ([("a", None)], [["a", 3]], {"text": "a"}, [{"text": "a"}], b"a", [b"a"], None, 3, {"a", "b"}):
        with pytest.raises(DTypeError, match=r"^sentences"):
            model.encode(bad)
    with pytest.raises(DTypeError, match=r"^sentences\[1\] \(row 8\)"):
        model.encode(pandas.Series(["a", None], index=[7, 8]))


def test_positions_of_arguments(model: fastattn.SentenceTransformer) -> None:
    """The arguments match those of sentence-transformers."""
    arguments = (
        TEXTS,
        None,
        "the ",
        2,
        False,
        "sentence_embedding",
        "float32",
        True,
        False,
        "cpu",
        True,
        5,
        None,
        None,
    )
    expected = model.encode(TEXTS, prompt="the ", normalize_embeddings=True, truncate_dim=5)
    for method in (model.encode, model.encode_query, model.encode_document):
        assert method(*arguments).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "options",
    [
        {"device": "cpu"}, {"device": "cpu:0"}, {"device": ["cpu", "cpu"]}, {"device": -1}, {"chunk_size": 3},
        {"pool": None}, {"task": None}, {"task": "query"}, {"processing_kwargs": {}}, {"show_progress_bar": False},
        {"batch_size": np.int64(2)},
        {"normalize_embeddings": np.False_}, {"precision": None},
    ],
)  # fmt: skip
def test_options_without_effect(model: fastattn.SentenceTransformer, options: dict[str, Any]) -> None:
    assert model.encode(TEXTS, **options).tobytes() == model.encode(TEXTS).tobytes()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"batch_size": 0}, InputError), ({"batch_size": "32"}, DTypeError), ({"batch_size": 2.0}, DTypeError),
        ({"show_progress_bar": "yes"}, DTypeError), ({"show_progress_bar": 1}, DTypeError),
        ({"output_value": "all"}, InputError), ({"output_value": 3}, DTypeError),
        ({"precision": "int4"}, InputError), ({"precision": 8}, DTypeError),
        ({"convert_to_numpy": "false"}, DTypeError), ({"convert_to_tensor": "false"}, DTypeError),
        ({"normalize_embeddings": "false"}, DTypeError), ({"normalize_embeddings": None}, DTypeError),
        ({"device": "cuda"}, InputError), ({"device": ["cpu", "cuda:1"]}, InputError), ({"pool": {}}, InputError),
        ({"chunk_size": 0}, InputError), ({"task": "passage"}, InputError), ({"prompt": 3}, DTypeError),
        ({"prompt": b"a"}, DTypeError), ({"truncate_dim": 10**400}, InputError),
        ({"normalise_embeddings": True}, InputError),
        ({"output_value": None, "precision": "int8"}, InputError),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
def test_refused_options(
    model: fastattn.SentenceTransformer, method: str, options: dict[str, Any], error: type[FastattnError]
) -> None:
    with pytest.raises(error) as caught:
        getattr(model, method)(TEXTS, **options)
    assert next(iter(options)) in str(caught.value) or "precision" in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("method", ["encode_query", "encode_document"])
def test_the_methods_of_a_task_take_no_task(model: fastattn.SentenceTransformer, method: str) -> None:
    with pytest.raises(InputError, match=f"^{method}: unknown keyword 'task'"):
        getattr(model, method)(TEXTS, task="query")
    assert "task" not in inspect.signature(getattr(model, method)).parameters
    assert list(inspect.signature(getattr(model, method)).parameters)[:3] == ["sentences", "prompt_name", "prompt"]


def test_pairs(model: fastattn.SentenceTransformer) -> None:
    """The comparison with sentence-transformers is in test_sentence_transformer.py."""
    pairs = [("a", "b"), ("b", "a c")]
    expected = model.encode(pairs)
    assert expected.shape == (2, 40)
    assert model.encode([list(pair) for pair in pairs]).tobytes() == expected.tobytes()
    assert model.encode(iter(pairs)).tobytes() == expected.tobytes()
    assert model.encode(["a", pairs[0]])[1].tobytes() == expected[0].tobytes()
    assert model.encode(("a", "b")).tobytes() == model.encode(["a", "b"]).tobytes()
    assert model.count_tokens(pairs) == [len(model.tokenizer(*pair).input_ids) for pair in pairs]
    ids = model.preprocess(["a", *pairs])["input_ids"]
    assert ids.tolist() == model.tokenizer(["a", *pairs], padding=True).input_ids
    for items in (["a", "b", "a"], ["a"], []):
        with pytest.raises(InputError, match=r"^sentences\[0\]: expected a str or a pair of them.*; join the texts"):
            model.encode([items])


def test_a_misspelled_keyword_names_the_closest_one(folder: Path, model: fastattn.SentenceTransformer) -> None:
    with pytest.raises(InputError, match="did you mean 'normalize_embeddings'"):
        model.encode("a", normalise_embeddings=True)  # type: ignore[call-overload]
    with pytest.raises(InputError, match="did you mean 'trust_remote_code'"):
        fastattn.SentenceTransformer(folder, trust_remotecode=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"device": None}, {"device": "cpu"}, {"device": "cpu:0"}, {"device": -1}, {"trust_remote_code": True},
        {"backend": "torch"}, {"model_card_data": object()}, {"local_files_only": True}, {"token": False},
        {"use_auth_token": "x"},
        {"revision": "main"},
        {"model_kwargs": {"torch_dtype": "float32", "attn_implementation": "sdpa", "device_map": "auto"}},
        {"model_kwargs": {"dtype": np.dtype(np.float32), "device_map": {"": "cpu"}, "add_pooling_layer": False}},
        {"config_kwargs": {"trust_remote_code": False, "use_cache": True}}, {"processor_kwargs": {"use_fast": True}},
        {"cache_folder": "/tmp"}, {"modules": None}, {"prompts": {}},
    ],
)  # fmt: skip
def test_options_of_the_constructor_without_effect(
    folder: Path, model: fastattn.SentenceTransformer, options: dict[str, Any]
) -> None:
    with fastattn.SentenceTransformer(folder, threads=1, **options) as found:
        assert found.encode(TEXTS).tobytes() == model.encode(TEXTS).tobytes()
        assert (found.device, found.dtype) == ("cpu", "float32")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backend": "onnx"}, InputError, "backend: expected"),
        ({"modules": [object()]}, InputError, "modules: expected None"),
        ({"device": "tpu"}, InputError, "device"),
        ({"trust_remote_code": "false"}, DTypeError, "trust_remote_code: expected True or False"),
        ({"local_files_only": 1}, DTypeError, "local_files_only: expected True or False"),
        ({"model_kwargs": {"load_in_8bit": True}}, InputError, "model_kwargs: unknown keyword 'load_in_8bit'"),
        ({"model_kwargs": {"device_map": "cuda:1"}}, InputError, "device_map"),
        ({"model_kwargs": {"file_name": "model.onnx"}}, InputError, "file_name"),
        ({"model_kwargs": {"attn_implementation": "flash_attention_2"}}, InputError, "attn_implementation: expected"),
        ({"model_kwargs": {"torch_dtyp": "float32"}}, InputError, "did you mean 'torch_dtype'"),
        ({"model_kwargs": ["dtype"]}, DTypeError, "model_kwargs: expected a dictionary"),
        ({"model_kwargs": {3: 4}}, DTypeError, "model_kwargs: expected keys of str, got 3"),
        ({"model_kwargs": {"subfolder": "x"}}, InputError, "model_kwargs: subfolder: expected None or '', got 'x'"),
        ({"processor_kwargs": {"model_max_len": 3}}, InputError, "did you mean 'model_max_length'"),
        ({"processor_kwargs": {"model_max_length": "5"}}, DTypeError, "model_max_length: expected int"),
        ({"processor_kwargs": {}, "tokenizer_kwargs": {}}, InputError, "tokenizer_kwargs: expected None, because"),
        (
            {"config_kwargs": {"num_hidden_layers": 1}},
            InputError,
            "config_kwargs: unknown keyword 'num_hidden_layers'",
        ),
        ({"cache_dir": "a", "cache_folder": "b"}, InputError, "cache_folder: expected None, because"),
        ({"token": "a", "use_auth_token": "b"}, InputError, "use_auth_token: expected None, because"),
        ({"token": 3}, DTypeError, "token: expected str"),
        ({"similarity_fn_name": "cosin"}, InputError, "similarity_fn_name: expected one of cosine"),
        ({"default_prompt_name": 3}, DTypeError, "default_prompt_name: expected str"),
    ],
)
def test_refused_options_of_the_constructor(
    folder: Path, options: dict[str, Any], error: type[FastattnError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        fastattn.SentenceTransformer(folder, **options)
    assert len(str(caught.value)) < 500


def test_dtypes(folder: Path, tmp_path: Path) -> None:
    by_name = fastattn.SentenceTransformer(folder, threads=1, dtype="bfloat16")
    by_dictionary = fastattn.SentenceTransformer(folder, threads=1, model_kwargs={"torch_dtype": "bfloat16"})
    assert by_name.dtype == by_dictionary.dtype == "bfloat16"
    assert by_name.encode(TEXTS).tobytes() == by_dictionary.encode(TEXTS).tobytes()
    static = write_static(tmp_path / "s")
    assert fastattn.SentenceTransformer(static, dtype="float32", device=None).dtype == "float32"
    for options in ({"dtype": "int8"}, {"device": "cuda"}, {"processor_kwargs": {"model_max_length": 4}}):
        with pytest.raises(InputError, match=r"StaticEmbedding"):
            fastattn.SentenceTransformer(static, **options)


def test_the_progress_bar_follows_the_log_level(
    model: fastattn.SentenceTransformer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logging.getLogger("fastattn")
    for level, shown in ((logging.WARNING, False), (logging.INFO, True)):
        monkeypatch.setattr(log, "level", level)
        log.manager._clear_cache()  # type: ignore[attr-defined]
        model.encode(TEXTS, batch_size=3)
        printed = capsys.readouterr()
        assert printed.out == ""
        assert ("Batches: 100%" in printed.err) == shown


def test_devices(model: fastattn.SentenceTransformer) -> None:
    assert model.to("cpu") is model.eval() is model
    assert model.to("float32") is model
    with pytest.raises(InputError, match=r"^to: expected"):
        model.to("cuda")


def test_preprocess(model: fastattn.SentenceTransformer) -> None:
    found = model.tokenize(["good film", "a"])
    expected = model.tokenizer(["good film", "a"], padding=True, return_tensors="np")
    assert {name: array.tolist() for name, array in found.items()} == {n: a.tolist() for n, a in expected.items()}
    prompted = model.preprocess(["a"], prompt="the ", processing_kwargs={"text": {"max_length": 3}})
    assert prompted["input_ids"].shape == (1, 3)
    with pytest.raises(DTypeError, match=r"^inputs"):
        model.preprocess("a")


@pytest.mark.torch
def test_a_tokenizer_of_transformers(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = fastattn.SentenceTransformer(folder, threads=1)
    expected = model.encode(TEXTS)
    model.tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    assert model.encode(TEXTS).tobytes() == expected.tobytes()
    with pytest.raises(DTypeError, match="tokenizer"):
        model.tokenizer = object()  # type: ignore[assignment]


def change(model: fastattn.SentenceTransformer) -> fastattn.SentenceTransformer:
    """Change settings that a copy must have too."""
    model.max_seq_length = 9
    model.truncate_dim = 20
    model.similarity_fn_name = "dot"
    model.prompts["x"] = "the "
    model.default_prompt_name = "x"
    model.set_pooling_include_prompt(False)
    return model


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("kind", ["transformer", "static"])
def test_copies(tmp_path: Path, copied: Any, kind: str) -> None:
    modules = (POOLING, dense(WIDTH, 40), NORMALIZE)
    folder = (
        write_model(tmp_path / "m", *modules) if kind == "transformer" else write_static(tmp_path / "m", *modules[1:])
    )
    model = fastattn.SentenceTransformer(folder, threads=1)
    if kind == "transformer":
        change(model)
    before = model.encode(TEXTS)
    found = copied(model)
    for name in ("prompts", "default_prompt_name", "truncate_dim", "max_seq_length", "similarity_fn_name"):
        assert getattr(found, name) == getattr(model, name)
    assert found.encode(TEXTS).tobytes() == before.tobytes()
    if kind == "transformer":
        found.max_seq_length = 3
    found.truncate_dim, found.prompts["query"] = 5, "other "
    found.set_pooling_include_prompt(True)
    assert model.encode(TEXTS).tobytes() == before.tobytes()
    assert model.prompts["query"] == ""
    found.close()
    with pytest.raises(InputError, match="close"):
        found.encode("a")
    assert model.encode(TEXTS).tobytes() == before.tobytes()


def test_an_estimator_with_a_model(folder: Path) -> None:
    base = pytest.importorskip("sklearn.base")

    class Embedder(base.TransformerMixin, base.BaseEstimator):  # type: ignore[misc, name-defined]
        def __init__(self, model: fastattn.SentenceTransformer) -> None:
            self.model = model

    model = fastattn.SentenceTransformer(folder, threads=1)
    cloned = base.clone(Embedder(model))
    assert cloned.model is not model
    assert cloned.model.encode(TEXTS).tobytes() == model.encode(TEXTS).tobytes()


def test_another_process(folder: Path) -> None:
    """The model is unpickled in a process where nothing is loaded yet."""
    model = change(fastattn.SentenceTransformer(folder, threads=1))
    code = (
        "import pickle, sys\n"
        "model = pickle.loads(sys.stdin.buffer.read())\n"
        f"sys.stdout.buffer.write(model.encode({TEXTS!r}).tobytes())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(model),
        capture_output=True,
        check=True,
        env={"PYTHONPATH": str(SOURCES)},
    )
    assert done.stdout == model.encode(TEXTS).tobytes()


def test_a_model_without_sentence_embeddings(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "modules.json").write_text('[{"path": "", "type": "sentence_transformers.models.Transformer"}]')
    model = fastattn.SentenceTransformer(folder, threads=1)
    with pytest.raises(InputError, match=r"output_value.*token_embeddings"):
        model.encode("a")
    assert model.encode("a", output_value="token_embeddings").shape == (3, WIDTH)
    assert model.get_embedding_dimension() == WIDTH


def test_code_of_a_model_is_never_run(tmp_path: Path) -> None:
    folder = write_transformer(tmp_path / "m")
    change_json(folder / "config.json", auto_map={"AutoModel": "modeling.Model"})
    fastattn.SentenceTransformer(folder, threads=1)
    with pytest.raises(ConfigError, match="auto_map"):
        fastattn.SentenceTransformer(folder, trust_remote_code=True)


@pytest.mark.torch
@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document", "similarity", "similarity_pairwise"])
def test_every_argument_of_sentence_transformers_is_known(method: str) -> None:
    """In the same places. encode also has an older name for the first one."""
    theirs = pytest.importorskip("sentence_transformers").SentenceTransformer
    expected = inspect.signature(getattr(theirs, method)).parameters
    found = inspect.signature(getattr(fastattn.SentenceTransformer, method)).parameters
    assert set(expected) - {"kwargs"} <= set(found)
    names = [name for name, parameter in found.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    old = {"inputs": "sentences"} if method.startswith("encode") else {}
    assert names == [old.get(name, name) for name in expected if name != "kwargs"]
    for name, parameter in expected.items():
        if name not in ("kwargs", "inputs"):
            assert found[name].default == parameter.default
