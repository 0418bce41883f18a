"""Compares CrossEncoder with that of sentence-transformers on tiny random models of every family."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.errors import ConfigError, DTypeError, FastattnError, InputError, ModelFormatError, NonFiniteError
from fastattn.tasks.cross_encoder import ORGANIZATION, CrossEncoderLoadArgs
from fastattn.tasks.sentence.names import full_name
from tests.tasks.cross_encoders import FAMILIES, PAIRS, CrossReference, write_cross_encoder
from tests.tasks.sentence_folders import change_json, write_json

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cross_encoder(tmp_path_factory.mktemp("cross") / "one")


@pytest.fixture(scope="module")
def model(folder: Path) -> fastattn.CrossEncoder:
    return fastattn.CrossEncoder(folder, threads=1)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cross_encoder(tmp_path_factory.mktemp("cross") / "three", num_labels=3)


def same(a: Any, b: Any) -> bool:
    one, two = np.asarray(a), np.asarray(b)
    return (one.shape, one.dtype, one.tobytes()) == (two.shape, two.dtype, two.tobytes())


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, tmp_path: Path) -> None:
    """Scores equal those of sentence-transformers, and depend only on their own pair."""
    for num_labels in (1, 3):
        folder = write_cross_encoder(tmp_path / str(num_labels), family, num_labels=num_labels)
        with fastattn.CrossEncoder(folder, threads=2) as model:
            found = model.predict(PAIRS, batch_size=3)
            assert found.dtype == np.float32
            assert found.shape == ((7,) if num_labels == 1 else (7, 3))
            CrossReference(folder).check(found)
            for size in (1, 2, 32):
                assert same(model.predict(PAIRS[::-1], batch_size=size)[::-1], found)
            assert all(same(model.predict(pair), score) for pair, score in zip(PAIRS, found, strict=True))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_equal_bits_in_every_dtype(folder: Path, model: fastattn.CrossEncoder, dtype: Any) -> None:
    with fastattn.CrossEncoder(folder, dtype=dtype, threads=2) as found:
        scores = found.predict(PAIRS)
        assert found.dtype == dtype
        assert not same(scores, model.predict(PAIRS))
        assert all(same(found.predict(pair), score) for pair, score in zip(PAIRS, scores, strict=True))
    with fastattn.CrossEncoder(folder, model_kwargs={"torch_dtype": dtype}, threads=1) as found:
        assert same(found.predict(PAIRS), scores)


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": "the film "}, {"max_length": 9}, {"batch_size": 2},
        {"processing_kwargs": {"text": {"max_length": 9}}},
        {"processing_kwargs": {"text": {"truncation": "only_second", "max_length": 60}}},
    ],
)  # fmt: skip
def test_options(folder: Path, options: dict[str, Any]) -> None:
    given, limit = dict(options), {"max_length": options["max_length"]} if "max_length" in options else {}
    given.pop("max_length", None)
    pairs = PAIRS if "only_second" not in str(options) else [pair for pair in PAIRS if len(pair[0]) < 60]
    with fastattn.CrossEncoder(folder, threads=1, **limit) as model:
        assert model.max_seq_length == model.max_length == limit.get("max_length", 64)
        CrossReference(folder, **limit).check(model.predict(pairs, **given), pairs, **given)


def test_activations(three: Path, folder: Path) -> None:
    torch = pytest.importorskip("torch")
    functions: list[Any] = [
        torch.nn.Sigmoid(), torch.nn.Identity(), torch.nn.Tanh(), torch.nn.ReLU(), torch.nn.GELU(), torch.nn.Softplus(),
        torch.nn.LeakyReLU(0.3), torch.nn.GELU("tanh"), torch.nn.Softmax(dim=1), torch.sigmoid,
        torch.nn.functional.silu,
    ]  # fmt: skip
    for path in (three, folder):
        reference = CrossReference(path)
        with fastattn.CrossEncoder(path, threads=1) as model:
            for function in functions:
                found = model.predict(PAIRS, activation_fn=function)
                reference.check(found, activation_fn=function)
                assert all(
                    same(model.predict(pair, activation_fn=function), score)
                    for pair, score in zip(PAIRS, found, strict=True)
                )
            logits = model.predict(PAIRS, activation_fn="identity")
            squared = model.predict(PAIRS, activation_fn=lambda row: row**2)
            assert same(squared, logits**2)
            assert same(model.predict(PAIRS, activation_fct="Sigmoid"), model.predict(PAIRS, activation_fn="sigmoid"))
            reference.check(model.predict(PAIRS, apply_softmax=True), apply_softmax=True)
            model.activation_fn = "Tanh"
            assert same(model.predict(PAIRS), model.predict(PAIRS, activation_fn=torch.nn.Tanh()))
            assert repr(model.default_activation_function) == "Tanh()"
        with fastattn.CrossEncoder(path, threads=1, activation_fn=torch.nn.Identity()) as model:
            assert same(model.predict(PAIRS), logits)


def test_forms_of_input_and_result(three: Path, model: fastattn.CrossEncoder) -> None:
    torch, pandas = pytest.importorskip("torch"), pytest.importorskip("pandas")
    expected = model.predict(PAIRS)
    frame = pandas.DataFrame(PAIRS, columns=["query", "text"])
    forms: list[Any] = [
        [list(pair) for pair in PAIRS], tuple(PAIRS), np.array(PAIRS), np.array(PAIRS, object), iter(PAIRS),
        zip(frame["query"], frame["text"], strict=True), pandas.Series(PAIRS), [np.array(pair) for pair in PAIRS],
    ]  # fmt: skip
    for form in forms:
        assert same(model.predict(form), expected)
    for form in (PAIRS[0], list(PAIRS[0]), np.array(PAIRS[0])):
        assert same(model.predict(form), expected[0])
        assert isinstance(model.predict(form), np.float32)
    assert same(model.predict(sentences=PAIRS), expected)
    listed = model.predict(PAIRS, convert_to_numpy=False)
    assert isinstance(listed, list)
    assert same(listed, expected)
    assert same(model.predict(PAIRS, convert_to_tensor=True).numpy(), expected)
    assert model.predict(PAIRS[0], convert_to_tensor=True).shape == torch.Size([])
    assert same(model.predict([]), np.zeros(0, np.float32))
    with fastattn.CrossEncoder(three, threads=1) as several:
        assert several.predict(PAIRS[0]).shape == (3,)
        assert several.predict([]).shape == (0, 3)
        assert several.predict(PAIRS, convert_to_tensor=True).shape == (7, 3)
    arguments = (PAIRS, None, "the ", 2, False, torch.nn.Identity(), False, True, False, "cpu", None, None)
    assert same(model.predict(*arguments), model.predict(PAIRS, prompt="the ", activation_fn="Identity"))


def test_rank(folder: Path, model: fastattn.CrossEncoder) -> None:
    reference = CrossReference(folder).rough
    documents = [second for _, second in PAIRS] + ["the cat"]
    for options in ({}, {"top_k": 3}, {"return_documents": True}, {"top_k": 0}, {"prompt": "the "}):
        expected = reference.rank("good film", documents, **options)
        found = model.rank("good film", documents, **options)
        assert [{**hit, "score": 0} for hit in found] == [{**hit, "score": 0} for hit in expected]
    pairs = [("good film", text) for text in documents]
    scores = model.predict(pairs, prompt="the ")
    assert [hit["score"] for hit in found] == [float(scores[hit["corpus_id"]]) for hit in found]
    places = [hit["corpus_id"] for hit in found]
    assert places.index(0) + 1 == places.index(7)  # equal texts have equal scores, in order
    assert model.rank("good film", iter(documents), prompt="the ", num_workers=0, convert_to_tensor=True) == found
    assert model.rank("good film", []) == []


def test_ranking_needs_one_label(three: Path) -> None:
    with (
        fastattn.CrossEncoder(three, threads=1) as model,
        pytest.raises(InputError, match=r"^rank: expected a model with one label, got 3"),
    ):
        model.rank("a", ["b"])


def test_progress_goes_to_stderr(model: fastattn.CrossEncoder, capsys: pytest.CaptureFixture[str]) -> None:
    model.predict(PAIRS, batch_size=3, show_progress_bar=True)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "3/3" in printed.err


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"inputs": None}, DTypeError, "inputs: expected a pair of texts, or a sequence of pairs"),
        ({"inputs": "a"}, DTypeError, "inputs: expected a pair of texts"),
        ({"inputs": {"text": "a"}}, DTypeError, "inputs: expected a pair of texts"),
        ({"inputs": ["a", "b", "c"]}, InputError, "inputs: expected a str or a pair of them, got 3"),
        ({"inputs": [("a", "b"), "c"]}, DTypeError, r"inputs\[1\]: expected a pair of texts, got one text"),
        ({"inputs": [("a", None)]}, DTypeError, r"inputs\[0\]\[1\]: expected str"),
        ({"inputs": [("a", "b", "c")]}, InputError, r"inputs\[0\]: expected a str or a pair"),
        ({"inputs": [("a", "\ud800")]}, InputError, "surrogate"),
        ({"sentences": PAIRS}, InputError, "sentences: expected None, because inputs is set"),
        ({"batch_size": 0}, InputError, "batch_size"),
        ({"activation_fn": 3}, DTypeError, "activation_fn: expected None, a name or a function"),
        ({"activation_fn": dict}, DTypeError, "activation_fn: .*call it first"),
        ({"activation_fn": "sigmoi"}, InputError, "did you mean 'Sigmoid'"),
        ({"activation_fn": lambda row: row[:, :0]}, InputError, "activation_fn: expected it to return numbers"),
        ({"activation_fn": lambda row: row * np.nan}, NonFiniteError, r"inputs\[0\]: expected finite scores"),
        ({"apply_softmax": "yes"}, DTypeError, "apply_softmax"),
        ({"convert_to_numpy": None}, DTypeError, "convert_to_numpy"),
        ({"device": "cuda"}, InputError, "device: expected 'cpu'"),
        ({"pool": {}}, InputError, "pool: expected None"),
        ({"chunk_size": 0}, InputError, "chunk_size"),
        ({"prompt_name": "query"}, InputError, "prompt_name: expected one of the prompts"),
        ({"num_worker": 3}, InputError, "did you mean 'num_workers'"),
        ({"processing_kwargs": {"texts": {}}}, InputError, "did you mean 'text'"),
        ({"processing_kwargs": {"text": {"max_length": 2}}}, InputError, "max_length: expected room for the 3 special"),
    ],
)
def test_refused_arguments(
    model: fastattn.CrossEncoder, options: dict[str, Any], error: type[FastattnError], message: str
) -> None:
    with pytest.raises(error, match=message):
        model.predict(**{"inputs": PAIRS, **options})


def test_a_table_is_refused(model: fastattn.CrossEncoder) -> None:
    pandas = pytest.importorskip("pandas")
    with pytest.raises(InputError, match=r"inputs: .*pass list\(zip"):
        model.predict(pandas.DataFrame(PAIRS))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"query": None}, DTypeError, "query: expected str"),
        ({"documents": "a"}, DTypeError, "documents: expected a sequence of str"),
        ({"documents": ["a", 3]}, DTypeError, r"documents\[1\]: expected str"),
        ({"top_k": -1}, InputError, "top_k: expected 0"),
        ({"return_documents": 1}, DTypeError, "return_documents"),
        ({"activation": None}, InputError, "unknown keyword 'activation'"),
    ],
)
def test_refused_rankings(
    model: fastattn.CrossEncoder, options: dict[str, Any], error: type[FastattnError], message: str
) -> None:
    with pytest.raises(error, match=message):
        model.rank(**{"query": "a", "documents": ["b"], **options})


@pytest.mark.parametrize(
    "options",
    [
        {"device": "cpu"}, {"num_labels": 1}, {"config_kwargs": {"num_labels": 1, "classifier_dropout": 0.1}},
        {"config_args": {"num_labels": 1}, "num_labels": 1}, {"classifier_dropout": 0.2}, {"max_length": 64},
        {"keep_in_fp32_modules": ["0.model.classifier"]}, {"automodel_args": {"dtype": "float32"}},
        {"tokenizer_args": {"model_max_length": 64}}, {"tokenizer_kwargs": {}}, {"trust_remote_code": True},
        {"default_activation_function": "Sigmoid"}, {"local_files_only": True}, {"cache_dir": "/tmp"},
        {"model_card_data": object(), "backend": "torch", "modules": None, "prompts": {}},
    ],
)  # fmt: skip
def test_options_of_the_constructor_without_effect(
    folder: Path, model: fastattn.CrossEncoder, options: dict[str, Any]
) -> None:
    with fastattn.CrossEncoder(folder, threads=1, **options) as found:
        assert same(found.predict(PAIRS), model.predict(PAIRS))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_labels": 3}, (ConfigError, ModelFormatError), "classifier"),
        ({"num_labels": 0}, InputError, "num_labels: expected 1"),
        ({"num_labels": 1, "config_kwargs": {"num_labels": 2}}, InputError, "num_labels: expected one value"),
        ({"config_kwargs": {"num_hidden_layers": 1}}, InputError, "config_kwargs: unknown keyword"),
        ({"max_length": 2}, InputError, "max_length: expected 3 to 68"),
        ({"max_length": 69}, InputError, "max_length: expected 3 to 68"),
        ({"max_length": "9"}, DTypeError, "max_length: expected int"),
        ({"processor_kwargs": {"model_max_length": 2}}, InputError, "model_max_length: expected at least 3"),
        ({"activation_fn": 3}, DTypeError, "activation_fn"),
        ({"activation_fn": "Tanh", "default_activation_function": "Tanh"}, InputError, "default_activation_function"),
        ({"keep_in_fp32_modules": "a"}, DTypeError, "keep_in_fp32_modules: expected a list"),
        ({"keep_in_fp32_modules": ["a"], "dtype": "int8"}, InputError, r"keep_in_fp32_modules: expected \[\]"),
        ({"backend": "onnx"}, InputError, "backend: expected"),
        ({"modules": []}, InputError, "modules: expected None"),
        ({"max_len": 9}, InputError, "did you mean 'max_length'"),
        ({"default_prompt_name": "query"}, InputError, "default_prompt_name: expected one of the prompts"),
        ({"trust_remote_code": 1}, DTypeError, "trust_remote_code"),
    ],
)
def test_refused_options_of_the_constructor(folder: Path, options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        fastattn.CrossEncoder(folder, **options)
    with pytest.raises(DTypeError, match="model_name_or_path"):
        fastattn.CrossEncoder()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(folder: Path, model: fastattn.CrossEncoder, copied: Any) -> None:
    own = copy.copy(model)
    own.max_seq_length, own.activation_fn, own.prompts["x"] = 9, "Identity", "the "
    expected = own.predict(PAIRS, prompt_name="x")
    found = copied(own)
    assert same(found.predict(PAIRS, prompt_name="x"), expected)
    found.max_seq_length, found.activation_fn, found.prompts["x"] = None, "Sigmoid", ""
    assert found.max_seq_length == 68
    assert same(own.predict(PAIRS, prompt_name="x"), expected)
    found.close()
    with pytest.raises(InputError, match="close"):
        found.predict(PAIRS)
    assert same(own.predict(PAIRS, prompt_name="x"), expected)


def test_devices(folder: Path, model: fastattn.CrossEncoder) -> None:
    assert model.to("cpu") is model.eval() is model
    assert repr(model) == f"<CrossEncoder of {model.model!r}, 1 labels, 64 tokens>"
    with fastattn.CrossEncoder(folder, device="numpy") as found:
        CrossReference(folder).check(found.predict(PAIRS))
    model.tokenizer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(str(folder))
    with pytest.raises(DTypeError, match="tokenizer"):
        model.tokenizer = object()  # type: ignore[assignment]


def test_settings_of_the_folder(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Saved by sentence-transformers: modules.json, the activation function and prompts. Then each setting by hand."""
    saver = CrossReference(folder, activation_fn=pytest.importorskip("torch").nn.Tanh(), max_length=20).rough
    saver.prompts, saver.default_prompt_name = {"query": "the film "}, "query"
    saved = tmp_path / "saved"
    saver.save_pretrained(str(saved))
    with fastattn.CrossEncoder(saved, threads=1) as model:
        assert (repr(model.activation_fn), model.prompts, model.max_seq_length) == ("Tanh()", saver.prompts, 20)
        CrossReference(saved).check(model.predict(PAIRS))
        CrossReference(saved).check(model.predict(PAIRS, prompt=""), prompt="")
    with fastattn.CrossEncoder(saved, threads=1, prompts={"query": "a "}, activation_fn="Identity") as model:
        assert (repr(model.activation_fn), model.prompts) == ("Identity()", {"query": "a "})
    assert not [record for record in caplog.records if record.name == "fastattn"]
    settings = saved / "config_sentence_transformers.json"
    change_json(settings, activation_fn="somewhere.Else", keep_in_fp32_modules=["0.model.classifier"])
    with fastattn.CrossEncoder(saved, threads=1, dtype="bfloat16") as model:
        assert repr(model.activation_fn) == "Sigmoid()"
    assert "'somewhere.Else' is not part of torch; the default is used" in caplog.text
    assert "keep_in_fp32_modules of the folder is not used" in caplog.text
    for path, options in (("torch.nn.Hardtanhs", {}), ("somewhere.Else", {"trust_remote_code": True})):
        change_json(settings, activation_fn=path)
        with pytest.raises(ConfigError, match="activation function to be a class of torch"):
            fastattn.CrossEncoder(saved, **options)
    change_json(settings, activation_fn=None, model_type="SentenceTransformer")
    with fastattn.CrossEncoder(saved, threads=1) as model:
        assert model.prompts == {}
    assert "model_type is 'SentenceTransformer', not CrossEncoder" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.0"}},
        {"sentence_transformers": {"version": "4.0"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Tanh"},
        {"sentence_transformers": {"activation_fn": None}, "sbert_ce_default_activation_function": "torch.nn.Tanh"},
    ],
)
def test_activations_of_config_json(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = write_cross_encoder(tmp_path / "m")
    change_json(folder / "config.json", **change)
    with fastattn.CrossEncoder(folder, threads=1) as model:
        reference = CrossReference(folder)
        assert repr(model.activation_fn) == repr(reference.rough.activation_fn)
        reference.check(model.predict(PAIRS))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_modules_that_compute_scores(folder: Path, tmp_path: Path, pooling: str) -> None:
    """A transformer, pooling, and Dense layers of which the last one computes the scores."""
    torch, module = pytest.importorskip("torch"), pytest.importorskip("sentence_transformers")
    parts = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    torch.manual_seed(3)
    modules = [
        parts.Transformer(str(folder), max_seq_length=30),
        parts.Pooling(36, pooling),
        parts.Dense(36, 8, activation_function=torch.nn.GELU()),
        parts.Dense(8, 2, activation_function=torch.nn.Identity(), module_output_name="scores"),
    ]
    module.CrossEncoder(modules=modules).save_pretrained(str(tmp_path / "m"))
    reference = CrossReference(tmp_path / "m")
    with fastattn.CrossEncoder(tmp_path / "m", threads=2, num_labels=2) as model:
        found = model.predict(PAIRS)
        assert (model.num_labels, model.max_seq_length, found.shape) == (2, 30, (7, 2))
        reference.check(found)
        assert all(same(copy.copy(model).predict(pair), row) for pair, row in zip(PAIRS, found, strict=True))
    with pytest.raises(InputError, match="num_labels: expected None or 2"):
        fastattn.CrossEncoder(tmp_path / "m", num_labels=3)
    change_json(tmp_path / "m" / "3_Dense" / "config.json", module_output_name="sentence_embedding")
    with pytest.raises(ConfigError, match='module_output_name "scores"'):
        fastattn.CrossEncoder(tmp_path / "m")


def test_refused_folders(folder: Path, tmp_path: Path) -> None:
    from tests.tasks.tiny import write_bert_model, write_gpt2_model

    with pytest.raises(ConfigError, match="no classification head"):
        fastattn.CrossEncoder(write_bert_model(tmp_path / "encoder", head=False))
    with pytest.raises(ConfigError, match="GPT2LMHeadModel"):
        fastattn.CrossEncoder(write_gpt2_model(tmp_path / "gpt2"))
    causal = write_cross_encoder(tmp_path / "causal")
    change_json(causal / "config.json", architectures=["BertForCausalLM"])
    with pytest.raises(ConfigError, match="module LogitScore"):
        fastattn.CrossEncoder(causal)
    saved = tmp_path / "saved"
    CrossReference(folder).rough.save_pretrained(str(saved))
    modules = json.loads((saved / "modules.json").read_text())
    for kind, home in (("LogitScore", "cross_encoder.modules.logit_score"), ("Pooling", "base.modules.pooling")):
        other = {"idx": 1, "name": "1", "path": f"1_{kind}", "type": f"sentence_transformers.{home}.{kind}"}
        write_json(saved / "modules.json", [*modules, other])
        with pytest.raises(ConfigError, match=kind):
            fastattn.CrossEncoder(saved)
    change_json(saved / "tokenizer_config.json", chat_template="{{ messages }}")
    (saved / "modules.json").unlink()
    with pytest.raises(ConfigError, match="chat template"):
        fastattn.CrossEncoder(saved)


def test_checked_and_quantized_folders(folder: Path, tmp_path: Path) -> None:
    """`check_folder` names the class and uses of settings; a quantized folder scores with the same bits."""
    saved = tmp_path / "saved"
    CrossReference(folder, max_length=20).rough.save_pretrained(str(saved))
    report = fastattn.check_folder(saved)
    assert (report.ok, report.cross_encoder, report.sentence_transformer) == (True, True, False)
    uses = {(entry.file, entry.key): entry.use for entry in report.settings}
    assert uses["config_sentence_transformers.json", "activation_fn"] == "used"
    assert not fastattn.check_folder(folder).cross_encoder  # a classifier like any other
    small = fastattn.quantize(saved, tmp_path / "small", dtype="int8")
    with fastattn.CrossEncoder(small) as found, fastattn.CrossEncoder(saved, dtype="int8") as expected:
        assert same(found.predict(PAIRS), expected.predict(PAIRS))
        assert found.max_seq_length == 20
    change_json(saved / "config.json", architectures=["BertModel"])
    (saved / "tokenizer.json").unlink()
    (saved / "tokenizer_config.json").unlink()
    assert "expected a tokenizer" in str(fastattn.check_folder(saved).problems)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"architectures": 3}),
        ("config.json", {"sentence_transformers": 3}),
        ("config.json", {"sentence_transformers": {"activation_fn": 3}}),
        ("config.json", {"sbert_ce_default_activation_function": ["torch.nn.Tanh"]}),
        ("config_sentence_transformers.json", {"prompts": {"query": 3}}),
        ("config_sentence_transformers.json", {"activation_fn": 3}),
        ("config_sentence_transformers.json", {"keep_in_fp32_modules": "a"}),
        ("config_sentence_transformers.json", {"model_type": 3}),
        ("sentence_bert_config.json", {"module_output_name": "token_embeddings"}),
        ("sentence_bert_config.json", {"transformer_task": "text-generation"}),
    ],
)
def test_malformed_settings(folder: Path, tmp_path: Path, file: str, change: dict[str, Any]) -> None:
    saved = tmp_path / "saved"
    CrossReference(folder).rough.save_pretrained(str(saved))
    if file == "config.json":
        change_json(saved / "config_sentence_transformers.json", activation_fn=None)
    change_json(saved / file, **change)
    with pytest.raises(ConfigError, match=next(iter(change))):
        fastattn.CrossEncoder(saved)


@pytest.mark.parametrize("method", ["predict", "rank", "__init__"])
def test_every_argument_of_sentence_transformers_is_known(method: str) -> None:
    """In the same places. The arguments for loading that other classes share are in a table."""
    theirs = pytest.importorskip("sentence_transformers").CrossEncoder
    expected = inspect.signature(getattr(theirs, method)).parameters
    found = inspect.signature(getattr(fastattn.CrossEncoder, method)).parameters
    shared = set(CrossEncoderLoadArgs.__annotations__) if method == "__init__" else set()
    assert set(expected) - {"kwargs"} <= {*found, *shared}
    positional = [
        [name for name, parameter in table.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
        for table in (expected, found)
    ]
    assert positional[0] == positional[1]
    for name, parameter in expected.items():
        if name in found and name not in ("inputs", "kwargs"):
            assert found[name].default == parameter.default


def test_short_names() -> None:
    assert full_name("ms-marco-MiniLM-L6-v2", ORGANIZATION) == "cross-encoder/ms-marco-MiniLM-L6-v2"
    assert full_name("owner/model", ORGANIZATION) == "owner/model"


def test_a_tokenizer_with_other_separators(tmp_path: Path) -> None:
    """RoBERTa's own: two separators between the texts of a pair, and no token types."""
    from tests.tasks.tiny import write_roberta_model

    folder = write_roberta_model(tmp_path / "m")
    with fastattn.CrossEncoder(folder, threads=1, max_length=30) as model:
        found = model.predict(PAIRS)
        assert found.shape == (7, 2)
        CrossReference(folder, max_length=30).check(found)
        assert model.count_tokens([("a", "b")])[0] == len(model.tokenizer("a", "b").input_ids)
