"""The arguments of pipelines: each gives transformers' results or a typed error that says what to do."""

from __future__ import annotations

import hashlib
import inspect
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.errors import ContextLengthError, DTypeError, FastattnError, InputError, ModelFormatError
from fastattn.tasks.pipelines import PIPELINES
from fastattn.tasks.text_generation import _REFUSED
from tests.tasks.test_pipelines import reference
from tests.tasks.tiny import write_bert_model, write_gpt2_model, write_head

pytestmark = pytest.mark.torch
DIGITS = 4  # of the compared scores; both sides compute in float64
PROMPT = "the hello in all the"
TEXT = "good film, a bad dog running"
PAIR = {"text": "good", "text_pair": "bad"}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt2_model(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert_model(tmp_path_factory.mktemp("classifier"), head=True)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert_model(tmp_path_factory.mktemp("encoder"), head=False)


@pytest.fixture(scope="module")
def theirs(gpt2: Path, classifier: Path, encoder: Path) -> dict[str, Any]:
    folders = {"text-generation": gpt2, "text-classification": classifier, "feature-extraction": encoder}
    return {task: reference(task, folder) for task, folder in folders.items()}


@pytest.fixture(scope="module")
def ours(gpt2: Path, classifier: Path, encoder: Path) -> dict[str, Any]:
    folders = {"text-generation": gpt2, "text-classification": classifier, "feature-extraction": encoder}
    return {task: fastattn.pipeline(task, folder, device="numpy") for task, folder in folders.items()}  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("task", "head", "inputs"),
    [
        ("feature-extraction", "", (TEXT,)),
        ("fill-mask", "MaskedLM", ("a [MASK] film",)),
        ("token-classification", "TokenClassification", (TEXT,)),
        ("question-answering", "QuestionAnswering", ({"question": "good?", "context": TEXT},)),
        ("zero-shot-classification", "SequenceClassification", (TEXT, ["good", "bad"])),
    ],
)
def test_none_is_the_default_of_every_option(task: Any, head: str, inputs: tuple[Any, ...], tmp_path: Path) -> None:
    """On the pipeline and in a call."""
    folder = write_head(tmp_path, f"Bert{f'For{head}' if head else 'Model'}")
    nothing = dict.fromkeys(PIPELINES[task].call_args.__annotations__)
    expected = fastattn.pipeline(task, folder)(*inputs)
    assert rounded(fastattn.pipeline(task, folder, **nothing)(*inputs)) == rounded(expected)
    nothing.pop("candidate_labels", None)  # is positional
    assert rounded(fastattn.pipeline(task, folder)(*inputs, **nothing)) == rounded(expected)


def rounded(value: Any) -> Any:
    """Return results with rounded floats, and with tensors as lists."""
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return rounded(value.tolist())
    return [rounded(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"return_full_text": False},
        {"return_tensors": True},
        {"return_text": True},
        {"return_text": False},
        {"prefix": "hello "},
        {"prefix": "hello ", "return_full_text": False},
        {"clean_up_tokenization_spaces": True},
        {"clean_up_tokenization_spaces": False},
        {"skip_special_tokens": False},
        {"handle_long_generation": "hole"},
        {"tokenizer_encode_kwargs": {"padding": "do_not_pad", "max_length": 2}},
        {"truncation": True, "tokenizer_encode_kwargs": {"max_length": 2}},
        {"truncation": True},
        {"padding": False},
        {"add_special_tokens": True},
        {"num_return_sequences": 1},
        {"batch_size": 2},
        {"num_workers": 0},
        {"use_cache": False, "num_beams": 1, "length_penalty": 1.0, "early_stopping": False},
        {"temperature": None, "top_p": None},
        {"pad_token_id": 0},
        {"eos_token_id": 5},
        {"repetition_penalty": 1.3},
        {"tokenizer_encode_kwargs": {"truncation": True, "max_length": 2}},
        {"min_new_tokens": 3},
        {"max_new_tokens": None, "max_length": 12},
        {"max_new_tokens": None, "max_length": 12, "prefix": "hello a "},
        {"max_new_tokens": None, "max_length": 14, "min_length": 12},
    ],
)
@pytest.mark.parametrize("inputs", [PROMPT, "", [PROMPT], [PROMPT, "a"]])
def test_text_generation(theirs: dict[str, Any], ours: dict[str, Any], inputs: Any, options: dict[str, Any]) -> None:
    given = {"do_sample": False, "max_new_tokens": 6, **options}
    given = {name: value for name, value in given.items() if value is not None or name == "temperature"}
    alone = {"batch_size": 1} if "batch_size" in options else {}  # transformers' padding needs a pad token
    expected = theirs["text-generation"](inputs, **{**given, **alone})
    assert ours["text-generation"](inputs, **given) == expected


def test_a_hole_for_long_generation(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    options = {"do_sample": False, "max_new_tokens": 10, "handle_long_generation": "hole"}
    text = "the hello in all " * 12
    assert ours["text-generation"](text, **options) == theirs["text-generation"](text, **options)
    with pytest.raises(InputError, match='handle_long_generation: with "hole", expected fewer than 64 new tokens'):
        ours["text-generation"](text, handle_long_generation="hole")


def test_several_texts_for_each_prompt(ours: dict[str, Any]) -> None:
    options = {"max_new_tokens": 5, "seed": 3, "num_return_sequences": 2}
    single = ours["text-generation"](PROMPT, **options)
    assert [list(record) for record in single] == [["generated_text"]] * 2
    assert single[0] != single[1]
    many = ours["text-generation"]([PROMPT, "a"], **options)
    assert many[0] == single
    assert [len(records) for records in many] == [2, 2]


@pytest.mark.parametrize(
    "inputs",
    [
        TEXT, "", [TEXT], [TEXT, "good"], PAIR, [PAIR, {"text": "x"}], [[["good", "bad"]]], [""],
        {"text": "good", "text_pair": ""}, {"text": "good", "text_pair": None},
    ],
)  # fmt: skip
@pytest.mark.parametrize("options", [{}, {"top_k": None}, {"top_k": 1}, {"top_k": 2}, {"top_k": 0}])
def test_text_classification(theirs: dict[str, Any], ours: dict[str, Any], inputs: Any, options: Any) -> None:
    expected = theirs["text-classification"](inputs, **options)
    assert rounded(ours["text-classification"](inputs, **options)) == rounded(expected)


@pytest.mark.parametrize(
    "options",
    [
        {"function_to_apply": "softmax"},
        {"function_to_apply": "SIGMOID"},
        {"function_to_apply": "none"},
        {"truncation": True},
        {"truncation": "only_first", "max_length": 4},
        {"truncation": "do_not_truncate"},
        {"max_length": 4, "truncation": True},
        {"max_length": 4},
        {"padding": "do_not_pad", "max_length": 4},
        {"padding": True},
        {"padding": "max_length", "max_length": 20},
        {"padding": "max_length", "max_length": 4, "truncation": True},
        {"batch_size": 4, "num_workers": 0},
        {"add_special_tokens": False},
        {"return_all_scores": False},
        {"top_k": 100},
    ],
)
def test_arguments_of_classification(theirs: dict[str, Any], ours: dict[str, Any], options: dict[str, Any]) -> None:
    for inputs in (TEXT, PAIR, [TEXT, "good"]):
        kept = {name: value for name, value in options.items() if name != "return_all_scores"}
        if isinstance(inputs, dict) and options.get("truncation") == "only_first":
            continue  # only the pair's second text is longer
        expected = theirs["text-classification"](inputs, **kept)
        assert rounded(ours["text-classification"](inputs, **options)) == rounded(expected)


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": None},
        {"top_k": 1},
        {"function_to_apply": "none"},
        {"truncation": True, "max_length": 3},
        {"batch_size": 2},
    ],
)
def test_arguments_of_the_pipeline_itself(classifier: Path, options: dict[str, Any]) -> None:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    expected = transformers.pipeline("text-classification", model=str(classifier), dtype=torch.float64, **options)
    found: Any = fastattn.pipeline("text-classification", classifier, device="numpy", **options)
    for inputs in (TEXT, [TEXT, "good"]):
        for call in ({}, {"top_k": 2}, {"top_k": None}):
            assert rounded(found(inputs, **call)) == rounded(expected(inputs, **call))


def test_generation_arguments_of_the_pipeline_itself(gpt2: Path) -> None:
    found = fastattn.pipeline("text-generation", gpt2, device="numpy", max_new_tokens=4, do_sample=False)
    plain = fastattn.pipeline("text-generation", gpt2, device="numpy")
    assert found(PROMPT) == plain(PROMPT, max_new_tokens=4, do_sample=False)
    assert found(PROMPT, max_new_tokens=6) == plain(PROMPT, max_new_tokens=6, do_sample=False)
    with pytest.raises(InputError, match=r"top_p: expected a finite number from 0.0 to 1.0, got 2"):
        fastattn.pipeline("text-generation", gpt2, device="numpy", top_p=2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"return_tensors": True},
        {"truncation": True},
        {"tokenize_kwargs": {"truncation": True, "max_length": 4}},
        {"tokenize_kwargs": {"padding": True}},
        {"tokenize_kwargs": {"padding": "do_not_pad", "max_length": 4}},
        {"tokenize_kwargs": {"add_special_tokens": False}},
    ],
)
@pytest.mark.parametrize("inputs", [TEXT, ["good", "bad dog"]])
def test_feature_extraction(theirs: dict[str, Any], ours: dict[str, Any], inputs: Any, options: dict[str, Any]) -> None:
    expected = theirs["feature-extraction"](inputs, **options)
    found = ours["feature-extraction"](inputs, **options)
    assert rounded(found) == rounded(expected)
    if "return_tensors" in options:
        assert isinstance(found[0] if isinstance(inputs, list) else found, np.ndarray)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("text-generation", {"max_newtokens": 3}, "text-generation: unknown keyword 'max_newtokens'; did you mean 'max"),
    ("text-generation", {"return_fulltext": False}, "text-generation: unknown .* mean 'return_full_text'"),
    ("text-generation", {"return_full_text": "false"}, "return_full_text: expected True or False, got str 'false'"),
    ("text-generation", {"return_full_text": True, "return_tensors": True}, "return_tensors: expected None, because"),
    ("text-generation", {"return_full_text": True, "return_text": True}, "return_text: expected None, because"),
    ("text-generation", {"return_type": 1}, "return_type: .*; use return_full_text"),
    ("text-generation", {"handle_long_generation": "x"}, "handle_long_generation: expected one of 'hole', got 'x'"),
    ("text-generation", {"guidance_scale": 2}, "guidance_scale: expected None or 1, got 2; use logits_processor"),
    ("text-generation", {"prefix": 3}, "prefix: expected str, got int 3"),
    ("text-generation", {"truncation": "true"}, "truncation: expected one of"),
    ("text-generation", {"batch_size": "8"}, "batch_size: expected int, got str '8'"),
    ("text-generation", {"tools": [1]}, "tools: expected None with a text"),
    ("text-generation", {"stop_sequence": "a", "stop_strings": "b"}, "stop_sequence: expected None, because"),
    ("text-generation", {"tokenizer_encode_kwargs": {"x": 1}}, "tokenizer_encode_kwargs: unknown keyword 'x'"),
    ("text-classification", {"topk": 2}, "text-classification: unknown keyword 'topk'; did you mean 'top_k'"),
    ("text-classification", {"top_k": 1.5}, "top_k: expected int, got float 1.5"),
    ("text-classification", {"top_k": -1}, "top_k: expected 0 to"),
    ("text-classification", {"function_to_apply": "x"}, "function_to_apply: expected one of 'sigmoid'"),
    ("text-classification", {"function_to_apply": 1}, "function_to_apply: expected one of 'sigmoid'"),
    ("text-classification", {"truncation": "false"}, "truncation: expected one of"),
    ("text-classification", {"truncation": 1}, "truncation: expected True or False, got int 1"),
    ("text-classification", {"padding": "true"}, "padding: expected one of"),
    ("text-classification", {"return_all_scores": True}, "return_all_scores: .*; top_k=None gives all scores"),
    ("text-classification", {"batch_size": 0}, "batch_size: expected 1 to"),
    ("text-generation", {"batch_size": 2, "max_batch_size": 4}, "batch_size: expected None, because max_batch_size is"),
    ("text-generation", {"max_batch_tokens": 5}, "max_batch_tokens: expected None, got a number; text-generation has"),
    ("text-classification", {"max_length": 10**400}, "max_length: expected 1 to"),
    ("feature-extraction", {"return_tensors": "pt"}, "return_tensors: .*torch.from_numpy"),
    ("feature-extraction", {"return_tensors": 1}, "return_tensors: expected True or False, got int 1"),
    ("feature-extraction", {"padding": "max_length"}, "padding: .* results have no padding"),
    ("feature-extraction", {"tokenize_kwargs": {"padding": True}, "padding": True}, "padding: expected one value"),
    ("feature-extraction", {"tokenize_kwargs": [1]}, "tokenize_kwargs: expected a mapping of arguments, got list"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "options", "message"), REFUSED)
def test_arguments_that_are_refused(ours: dict[str, Any], task: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(FastattnError, match=f"^{message}"):
        ours[task](TEXT, **options)


LOADING: list[tuple[dict[str, Any], str]] = [
    ({"dtyp": "int8"}, "pipeline\\('text-classification'\\): unknown keyword 'dtyp'; did you mean 'dtype'"),
    ({"framework": "tf"}, "framework: expected one of 'pt', got 'tf'"),
    ({"config": {}}, "config: .*; config.json of the folder is used"),
    ({"feature_extractor": "x"}, "feature_extractor: .*; these tasks take only texts"),
    ({"use_fast": "nonsense"}, "use_fast: expected True or False"),
    ({"verify": "sha1"}, "verify: expected"),
    ({"check_finite": "no"}, "check_finite: expected True or False"),
    ({"subfolder": "../x"}, "subfolder: expected a folder inside"),
    ({"model_kwargs": [1]}, "model_kwargs: expected a mapping, got list"),
    ({"model_kwargs": {"dtype": "int8"}, "dtype": "int8"}, "'dtype': expected one value"),
    ({"device": "tpu"}, "device: expected one of"),
    ({"tokenizer": 42}, "tokenizer: expected a folder, a hub id, a Tokenizer, or a tokenizer of transformers"),
    ({"tokenizer": ""}, "tokenizer: expected a path"),
]


@pytest.mark.parametrize(("options", "message"), LOADING)
def test_loading_options_that_are_refused(classifier: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(FastattnError, match=f"^{message}"):
        fastattn.pipeline("text-classification", classifier, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"device": -1},
        {"device": "cpu"},
        {"device_map": "auto"},
        {"torch_dtype": "float32"},
        {"dtype": "auto"},
        {"framework": "pt", "use_fast": True, "trust_remote_code": False, "config": None},
        {"model_kwargs": {"dtype": "float32", "low_cpu_mem_usage": True}},
        {"num_workers": 2, "batch_size": 8},
        {"check_finite": True, "subfolder": "", "use_fast": False, "use_auth_token": False},
    ],
)
def test_loading_options_that_change_nothing(classifier: Path, options: dict[str, Any]) -> None:
    expected = fastattn.pipeline("text-classification", classifier, threads=1)(TEXT)
    assert fastattn.pipeline("text-classification", classifier, threads=1, **options)(TEXT) == expected


def test_a_subfolder_and_its_digests(classifier: Path, tmp_path: Path) -> None:
    shutil.copytree(classifier, tmp_path / "inside")
    digest = hashlib.sha256((classifier / "model.safetensors").read_bytes()).hexdigest()
    expected = fastattn.pipeline("text-classification", classifier)(TEXT)
    found = fastattn.pipeline("text-classification", tmp_path, subfolder="inside", verify={"model.safetensors": digest})
    assert found(TEXT) == expected
    with pytest.raises(ModelFormatError):
        fastattn.pipeline("text-classification", classifier, verify={"model.safetensors": "0" * 64})


def test_a_generation_config_with_the_form_of_a_result(gpt2: Path) -> None:
    pipe = fastattn.pipeline("text-generation", gpt2, do_sample=False)
    config = {"max_new_tokens": 3, "return_dict_in_generate": True}
    assert pipe(PROMPT, generation_config=config) == pipe(PROMPT, max_new_tokens=3)


def test_a_flag_of_numpy_samples_as_true_does(gpt2: Path) -> None:
    pipe = fastattn.pipeline("text-generation", gpt2, seed=3, max_new_tokens=20)
    assert pipe(PROMPT, do_sample=np.True_) == pipe(PROMPT, do_sample=True) == pipe(PROMPT, temperature=0.7)
    assert pipe(PROMPT, do_sample=True) != pipe(PROMPT, temperature=1.0)


def test_messages_name_the_text(gpt2: Path) -> None:
    pipe = fastattn.pipeline("text-generation", gpt2)
    with pytest.raises(ContextLengthError, match=r"^text_inputs: expected prompt and max_new_tokens"):
        pipe("the hello " * 8, max_new_tokens=63)
    with pytest.raises(ContextLengthError, match=r"^text_inputs\[1\]: expected prompt"):
        pipe(["a", "the hello " * 8], max_new_tokens=62)


def test_options_together_with_a_loaded_model(classifier: Path) -> None:
    model = fastattn.AutoModelForSequenceClassification.from_pretrained(classifier, threads=1)
    pipe = fastattn.pipeline("text-classification", model, device=-1, dtype="float32")
    assert pipe.model is model
    for options in ({"dtype": "int8"}, {"device": "cuda"}, {"threads": 2}, {"revision": "x"}):
        with pytest.raises(InputError, match="from_pretrained"):
            fastattn.pipeline("text-classification", model, **options)  # type: ignore[call-overload]


def test_a_task_is_needed(classifier: Path) -> None:
    with pytest.raises(InputError, match=r"^task: expected one of 'text-generation', .*, got None"):
        fastattn.pipeline(model=classifier)  # type: ignore[call-overload]
    with pytest.raises(InputError, match=r"^task: .*did you mean 'text-classification'"):
        fastattn.pipeline("text-classify", classifier)  # type: ignore[call-overload]
    with pytest.raises(DTypeError, match=r"^task: expected one of"):
        fastattn.pipeline(3, classifier)  # type: ignore[call-overload]
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(classifier)
    with pytest.raises(DTypeError, match=r"loaded SequenceClassifier, got Bert.*; pass the folder"):
        fastattn.pipeline("text-classification", theirs)


def test_a_tokenizer_of_another_model(classifier: Path, gpt2: Path) -> None:
    model = fastattn.AutoModelForSequenceClassification.from_pretrained(classifier, threads=1)
    pipe = fastattn.pipeline("text-classification", model, tokenizer=gpt2)
    with pytest.raises(
        InputError, match=r"^inputs\[0\]: expected ids below the model's vocab_size .*, got 263 for the token 'hello'"
    ):
        pipe(["hello"], add_special_tokens=False)


@pytest.mark.parametrize("task", sorted(PIPELINES))
def test_every_argument_of_transformers_is_known(task: str) -> None:
    """It is used, changes nothing, or is refused by name. Some pipelines exist only in version 4."""
    pipelines = pytest.importorskip("transformers.pipelines")
    known = set(PIPELINES[task].call_args.__annotations__) | set(_REFUSED)
    if task == "question-answering":
        theirs = {"padding", "topk", "top_k", "doc_stride", "max_answer_len", "max_seq_len", "max_question_len"}
        theirs |= {"handle_impossible_answer", "align_to_words"}
    elif task in ("text2text-generation", "summarization", "translation"):
        theirs = {"return_tensors", "return_text", "return_type", "clean_up_tokenization_spaces", "truncation"}
        theirs |= {"stop_sequence", "src_lang", "tgt_lang", "prefix"}
    else:
        found = getattr(pipelines, PIPELINES[task].pipeline.__name__)._sanitize_parameters
        kinds = inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL
        theirs = {name for name, entry in inspect.signature(found).parameters.items() if entry.kind not in kinds}
        theirs |= {"candidate_labels", "hypothesis_template", "multi_label"} if task.startswith("zero") else set()
    assert theirs - {"self"} | {"batch_size", "num_workers"} <= known


def test_arguments_of_tokenizers_are_used_or_refused(ours: dict[str, Any]) -> None:
    """transformers passes all others of "text-classification" to the tokenizer."""
    transformers = pytest.importorskip("transformers")
    names = set(inspect.signature(transformers.PreTrainedTokenizerBase.__call__).parameters) - {
        "self",
        "text",
        "kwargs",
    }
    assert "stride" in names
    for name in names - set(PIPELINES["text-classification"].call_args.__annotations__):
        with pytest.raises(InputError, match=f"^text-classification: unknown keyword '{name}'"):
            ours["text-classification"](TEXT, **{name: 0})


# -- inputs -----------------------------------------------------------------------------------------------------------


class Column:
    """A sequence with only __len__ and __getitem__."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        if i >= len(self.items):
            raise IndexError
        return self.items[i]


def test_sequences_of_texts(ours: dict[str, Any]) -> None:
    texts = ["good film", "a bad dog", "unknown"]

    def generator() -> Iterator[str]:
        yield from texts

    for task, options in (("text-classification", {}), ("feature-extraction", {}), ("text-generation", {"seed": 1})):
        expected = ours[task](texts, **options)
        for inputs in (tuple(texts), Column(texts), np.array(texts)):
            found = ours[task](inputs, **options)
            assert isinstance(found, list)
            assert found == expected
        for inputs in (generator(), iter(texts), map(str, texts)):
            found = ours[task](inputs, **options)
            assert isinstance(found, Iterator)
            assert list(found) == expected
        assert ours[task]([], **options) == []


def test_pairs(ours: dict[str, Any]) -> None:
    classify = ours["text-classification"]
    expected = classify([PAIR, {"text": "x"}])
    assert classify([("good", "bad"), "x"]) == expected
    assert classify(Column([["good", "bad"], {"text": "x", "text_pair": None}])) == expected
    assert list(classify(pair for pair in [PAIR, "x"])) == expected


@pytest.mark.parametrize(
    ("task", "inputs", "message"),
    [
        ("text-generation", {"role": "user", "content": "x"}, "text_inputs: .*got a chat message"),
        ("text-generation", [{"role": "user", "content": "x"}], "apply_chat_template: expected a tokenizer with a"),
        ("text-generation", {"text": "x"}, "text_inputs: expected str, got dict"),
        ("text-generation", [["a", "b"]], r"text_inputs\[0\]: expected str, got list"),
        ("text-generation", 3, "text_inputs: expected str, got int 3"),
        ("text-generation", None, "text_inputs: expected str, got None"),
        ("text-generation", b"x", "text_inputs: expected str, got bytes"),
        ("text-classification", [("a", "b", "c")], r"inputs\[0\]: expected a str or a pair of them, got 3 items"),
        ("text-classification", [{"text": "a", "label": "b"}], r"inputs\[0\]: expected the keys"),
        ("text-classification", {"a", "b"}, "inputs: expected a sequence of str, got set, which has no order"),
        ("text-classification", [("a", 3)], r"inputs\[0\]\[1\]: expected str, got int 3"),
        ("feature-extraction", [float("nan")], r"inputs\[0\]: expected str, got float nan"),
    ],
)
def test_inputs_that_are_refused(ours: dict[str, Any], task: str, inputs: Any, message: str) -> None:
    with pytest.raises(FastattnError, match=f"^{message}"):
        ours[task](inputs)


def test_a_missing_text_of_a_series_names_its_row(ours: dict[str, Any]) -> None:
    pandas = pytest.importorskip("pandas")
    series = pandas.Series(["good", None, "bad"], index=["x", "y", "z"])
    for task in ours:
        with pytest.raises(DTypeError, match=r"\[1\] \(row 'y'\): expected str, got (None|float nan)"):
            ours[task](series)
