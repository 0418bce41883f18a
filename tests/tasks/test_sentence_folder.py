"""The files of a sentence-transformers folder: errors or warnings name unusual values; short names and the hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import fastattn
from fastattn.errors import (
    ConfigError,
    DTypeError,
    FastattnError,
    HubError,
    InputError,
    ModelFormatError,
    ModelNotFoundError,
)
from fastattn.tasks.sentence.folder import MODULES
from fastattn.tasks.sentence.names import full_name
from tests.models.test_hub import COMMIT, Hub, hub
from tests.tasks.sentence_folders import (
    MEAN,
    NORMALIZE,
    POOLING,
    TEXTS,
    WIDTH,
    change_json,
    dense,
    entry,
    write_json,
    write_model,
    write_static,
    write_transformer,
)
from tests.tasks.sentence_reference import Reference

__all__ = ["hub"]  # a fixture
ODD: list[Any] = [None, 3, -1, 1.5, True, "text", "x" * 200_000, [], [[]], {}, {"a": {}}, [None], "\ud800", 10**400]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "m", POOLING, NORMALIZE, settings={"prompts": {"query": "q "}})


def load(folder: Path) -> None:
    """Load and use a model; assert that every error is one of ours, on one short line."""
    message = ""
    try:
        with fastattn.SentenceTransformer(folder, threads=1) as model:
            model.encode("a")
    except FastattnError as error:
        message = str(error)
    assert len(message) < 1000, message[:300]
    assert "\n" not in message


@pytest.mark.parametrize("key", ["idx", "name", "path", "type", "kwargs", "new"])
def test_odd_values_in_modules_json(folder: Path, key: str) -> None:
    for value in ODD:
        modules = [entry(0, "Transformer", ""), entry(1, "Pooling", "1_Pooling")]
        modules[1][key] = value
        write_json(folder / "modules.json", modules)
        load(folder)


@pytest.mark.parametrize("value", ODD)
def test_odd_modules_json(folder: Path, value: Any) -> None:
    write_json(folder / "modules.json", value)
    with pytest.raises((ConfigError, ModelFormatError), match=r"modules.json"):
        fastattn.SentenceTransformer(folder)
    write_json(folder / "modules.json", [value])
    with pytest.raises((ConfigError, ModelFormatError), match=r"modules.json"):
        fastattn.SentenceTransformer(folder)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *(("config_sentence_transformers.json", key) for key in
          ("prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim", "model_type", "__version__")),
        *(("sentence_bert_config.json", key) for key in
          ("max_seq_length", "do_lower_case", "query_length", "document_length", "query_expansion", "model_args",
           "tokenizer_args", "config_args", "processing_kwargs", "modality_config", "module_output_name",
           "transformer_task", "unpad_inputs", "tokenizer_name_or_path")),
        *(("1_Pooling/config.json", key) for key in
          ("embedding_dimension", "word_embedding_dimension", "pooling_mode", "pooling_mode_cls_token",
           "include_prompt")),
        *(("2_Normalize/config.json", key) for key in ("module_input_name", "module_output_name")),
    ],
)  # fmt: skip
def test_odd_values_of_settings(folder: Path, name: str, key: str) -> None:
    before = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    for value in ODD:
        write_json(folder / name, {**before, key: value})
        load(folder)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("config_sentence_transformers.json", {"default_prompt_name": []}, "default_prompt_name: expected a string"),
        ("config_sentence_transformers.json", {"default_prompt_name": "x"}, "default_prompt_name: expected one of the"),
        ("config_sentence_transformers.json", {"prompts": {"a": 3}}, "prompts: expected an object of strings"),
        ("config_sentence_transformers.json", {"prompts": ["a"]}, "prompts: expected an object"),
        ("config_sentence_transformers.json", {"truncate_dim": "7"}, "truncate_dim: expected an integer"),
        ("config_sentence_transformers.json", {"similarity_fn_name": ["dot"]}, "similarity_fn_name: expected a string"),
        ("sentence_bert_config.json", {"max_seq_length": "5"}, "max_seq_length: expected an integer"),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "max_seq_length: expected an integer"),
        ("sentence_bert_config.json", {"do_lower_case": "false"}, "do_lower_case: expected true or false"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task: expected one of feature"),
        ("sentence_bert_config.json", {"query_expansion": {"strategy": "min", "length": 8}}, "query_expansion"),
        ("sentence_bert_config.json", {"tokenizer_name_or_path": "bert"}, "tokenizer_name_or_path: expected null"),
        ("sentence_bert_config.json", {"model_args": {"load_in_8bit": True}}, "model_args: unknown keyword 'load_in"),
        ("sentence_bert_config.json", {"config_args": {"num_hidden_layers": 1}}, "config_args: unknown key"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"stride": 2}}}, "unknown keyword 'stride'"),
        ("sentence_bert_config.json", {"modality_config": {"message": {}}}, "modality_config: expected no messages"),
        ("sentence_bert_config.json", {"modality_config": {"text": {"method": "get_text"}}}, "modality_config"),
    ],
)  # fmt: skip
def test_refused_settings(folder: Path, name: str, values: dict[str, Any], message: str) -> None:
    change_json(folder / name, **values)
    with pytest.raises((ConfigError, InputError), match=message):
        fastattn.SentenceTransformer(folder)


@pytest.mark.parametrize(
    "kind",
    [
        "models.CNN", "models.LSTM", "models.BoW", "models.WordEmbeddings", "models.WordWeights", "models.CLIPModel",
        "models.WeightedLayerPooling", "models.Dropout", "models.Router", "models.Asym", "models.Poling",
        "sparse_encoder.models.SpladePooling", "cross_encoder.modules.Pooling", "base.modules.router.Router",
    ],
)  # fmt: skip
def test_other_modules_are_refused_by_name(folder: Path, kind: str) -> None:
    name = kind.rpartition(".")[2]
    modules = [entry(0, "Transformer", ""), {**entry(1, "", "1_Pooling"), "type": f"sentence_transformers.{kind}"}]
    write_json(folder / "modules.json", modules)
    with pytest.raises(ConfigError, match=rf"{name}.*is not supported; supported: Transformer, StaticEmbedding"):
        fastattn.SentenceTransformer(folder)


@pytest.mark.parametrize(
    "kind",
    ["custom_st.Transformer", "modeling.Pooling", "Pooling", "os.path.Pooling", "sentence_transformersx.Pooling"],
)
def test_code_of_the_model_is_not_a_module(folder: Path, kind: str) -> None:
    write_json(folder / "modules.json", [entry(0, "Transformer", ""), {**entry(1, "", "1_Pooling"), "type": kind}])
    with pytest.raises(ConfigError, match="code that comes with the model, and such code never runs"):
        fastattn.SentenceTransformer(folder)


@pytest.mark.parametrize(
    "home",
    [
        "models.{name}", "models.{name}.{name}", "base.modules.{lower}.{name}", "sentence_transformer.modules.{name}",
        "sentence_transformer.modules.{lower}.{name}",
    ],
)  # fmt: skip
def test_homes_of_the_classes(tmp_path: Path, home: str) -> None:
    folder = write_model(tmp_path / "m", POOLING, dense(WIDTH, 8), NORMALIZE)
    before = fastattn.SentenceTransformer(folder, threads=1).encode("a")
    modules = json.loads((folder / "modules.json").read_text())
    for module in modules:
        name = module["type"].rpartition(".")[2]
        module["type"] = "sentence_transformers." + home.format(name=name, lower=name.lower())
    write_json(folder / "modules.json", modules)
    assert fastattn.SentenceTransformer(folder, threads=1).encode("a").tobytes() == before.tobytes()
    assert set(MODULES) == {"Transformer", "StaticEmbedding", "Pooling", "Dense", "Normalize", "LayerNorm"}


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (["Pooling"], "expected one of Transformer, StaticEmbedding as the first module, got Pooling"),
        (["Transformer", "Transformer"], "expected Transformer only as the first module"),
        (["Transformer", "StaticEmbedding"], "expected StaticEmbedding only as the first module"),
        (["StaticEmbedding", "Pooling"], "Pooling: expected token_embeddings from a module before it"),
    ],
)
def test_the_first_module(tmp_path: Path, modules: list[str], message: str) -> None:
    folder = write_static(tmp_path / "m") if modules[0] == "StaticEmbedding" else write_transformer(tmp_path / "m")
    entries = [entry(i, kind, "1_Pooling" if kind == "Pooling" else "") for i, kind in enumerate(modules)]
    write_json(folder / "modules.json", entries)
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", MEAN)
    with pytest.raises(ConfigError, match=message):
        fastattn.SentenceTransformer(folder)


@pytest.mark.parametrize("path", ["..", "../x", "/tmp", "a/../../b", "C:\\x", "\\\\host\\x", "..\\x", "a\0b"])
def test_paths_outside_the_folder(folder: Path, path: str) -> None:
    write_json(folder / "modules.json", [entry(0, "Transformer", ""), entry(1, "Pooling", path)])
    with pytest.raises(ConfigError, match="path: expected the name of a folder inside the model folder"):
        fastattn.SentenceTransformer(folder)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "values", "key"),
    [
        ("sentence_bert_config.json", {"max_seq_length": 1}, "max_seq_length"),
        ("sentence_bert_config.json", {"query_length": 1}, "query_length"),
        (
            "sentence_bert_config.json",
            {"processing_kwargs": {"text": {"max_length": 1}}},
            "processing_kwargs: max_length",
        ),
        (
            "sentence_bert_config.json",
            {"tokenizer_args": {"model_max_length": 1}},
            "processor_kwargs: model_max_length",
        ),
        ("tokenizer_config.json", {"model_max_length": 1}, "model_max_length"),
    ],
)
def test_a_limit_without_room_for_special_tokens_names_its_file(
    folder: Path, name: str, values: dict[str, Any], key: str
) -> None:
    change_json(folder / name, **values)
    with pytest.raises(ConfigError) as caught:
        fastattn.SentenceTransformer(folder)
    assert str(caught.value) == f"{folder / name}: {key}: expected at least 2, the number of special tokens, got 1"


def test_a_limit_of_the_caller_without_room_for_special_tokens(folder: Path) -> None:
    change_json(folder / "sentence_bert_config.json", max_seq_length=1)
    with pytest.raises(InputError, match=r"^processor_kwargs: model_max_length: expected at least 2, the number"):
        fastattn.SentenceTransformer(folder, processor_kwargs={"model_max_length": 1})
    model = fastattn.SentenceTransformer(folder, threads=1, processor_kwargs={"model_max_length": 4})
    assert model.max_seq_length == 4
    with pytest.raises(InputError, match=r"^max_seq_length: expected 2 to 64, got 1$"):
        model.max_seq_length = 1
    change_json(folder / "sentence_bert_config.json", processing_kwargs={"text": {"truncation": False}})
    assert fastattn.SentenceTransformer(folder, threads=1).encode("good film").shape == (WIDTH,)  # nothing is cut


@pytest.mark.parametrize("path", ["1_Pooling\\", "parts\\1_Pooling"])
def test_a_path_with_backslashes_names_them_and_the_file(folder: Path, path: str) -> None:
    write_json(folder / "modules.json", [entry(0, "Transformer", ""), entry(1, "Pooling", path)])
    expected = f'{folder / "modules.json"}: module 1: path: expected a path with "/" and without a backslash, got '
    with pytest.raises(ConfigError) as caught:
        fastattn.SentenceTransformer(folder)
    assert str(caught.value) == expected + repr(path)


def test_nested_paths_and_the_order_of_the_list(tmp_path: Path) -> None:
    """As in sentence-transformers, idx is ignored."""
    folder = write_model(tmp_path / "m", POOLING, dense(WIDTH, 30))
    (folder / "parts" / "first").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"):
        (folder / name).rename(folder / "parts" / "first" / name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "parts/first"
    for module in modules:
        module["idx"] = 7 - module["idx"]
    write_json(folder / "modules.json", modules)
    change_json(folder / "parts" / "first" / "sentence_bert_config.json", max_seq_length=6)
    model = fastattn.SentenceTransformer(folder, threads=1)
    assert model.max_seq_length == 6
    Reference(folder).check(model.encode(TEXTS), "encode", TEXTS)


def test_two_modules_of_one_name(folder: Path) -> None:
    write_json(
        folder / "modules.json", [entry(0, "Transformer", ""), {**entry(1, "Pooling", "1_Pooling"), "name": "0"}]
    )
    with pytest.raises(ConfigError, match="name: expected a name that no earlier module has"):
        fastattn.SentenceTransformer(folder)


@pytest.mark.parametrize("name", ["modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"])
def test_links_to_nothing_and_folders(folder: Path, name: str) -> None:
    """A file that exists but cannot be read is not treated as missing."""
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(folder / "gone")
    with pytest.raises((ConfigError, ModelFormatError), match=name):
        fastattn.SentenceTransformer(folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises((ConfigError, ModelFormatError), match=name):
        fastattn.SentenceTransformer(folder)
    (folder / name).rmdir()
    (folder / name).write_bytes(b"{")
    with pytest.raises((ConfigError, ModelFormatError), match=name):
        fastattn.SentenceTransformer(folder)


def test_an_adapter_is_refused(folder: Path) -> None:
    write_json(folder / "adapter_config.json", {"peft_type": "LORA"})
    with pytest.raises(ConfigError, match=r"adapter_config.json: adapters are not supported"):
        fastattn.SentenceTransformer(folder)


def test_a_folder_without_a_tokenizer(folder: Path) -> None:
    (folder / "vocab.txt").unlink()
    with pytest.raises(ConfigError, match="expected a tokenizer in the model folder"):
        fastattn.SentenceTransformer(folder)


def test_a_token_that_the_model_does_not_have_is_named(folder: Path) -> None:
    words = (folder / "vocab.txt").read_text(encoding="utf-8")
    (folder / "vocab.txt").write_text(words + "beyond\n", encoding="utf-8")
    model = fastattn.SentenceTransformer(folder, threads=1)
    assert model.encode("good film").shape == (WIDTH,)
    with pytest.raises(
        InputError,
        match=r"^sentences\[1\]: expected ids below the model's vocab_size 71, got 71 for .*'beyond'",
    ):
        model.encode(["a", "good beyond"])


@pytest.mark.torch
def test_short_names_are_those_of_sentence_transformers() -> None:
    from sentence_transformers.util.misc import ORIGINAL_TRANSFORMER_MODELS

    from fastattn.tasks.sentence.names import _WITHOUT_OWNER

    assert set(ORIGINAL_TRANSFORMER_MODELS) == _WITHOUT_OWNER


def test_short_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert full_name("all-MiniLM-L6-v2") == "sentence-transformers/all-MiniLM-L6-v2"
    for name in ("bert-base-uncased", "BERT-base-uncased", "BAAI/bge-small-en", "./all-MiniLM-L6-v2", "a b", "", "~x"):
        assert full_name(name) == name
    (tmp_path / "all-MiniLM-L6-v2").mkdir()
    assert full_name("all-MiniLM-L6-v2") == "all-MiniLM-L6-v2"
    with pytest.raises(ModelNotFoundError):
        fastattn.SentenceTransformer(tmp_path / "nowhere")
    with pytest.raises(DTypeError):
        fastattn.SentenceTransformer(None)  # type: ignore[arg-type]


def fill_cache(cache: Path, repository: str, source: Path) -> None:
    """Write a cache of huggingface_hub with one revision of a repository."""
    home = cache / f"models--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    shutil.copytree(source, home / "snapshots" / COMMIT)


@pytest.mark.parametrize("way", ["cache_folder", "environment"])
def test_a_short_name_from_the_cache_when_offline(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fill_cache(tmp_path / "cache", "sentence-transformers/tiny-model", folder)
    options: dict[str, Any] = {"cache_folder": tmp_path / "cache"} if way == "cache_folder" else {}
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path / "cache") if way == "environment" else "")
    expected = fastattn.SentenceTransformer(folder, threads=1).encode(TEXTS)
    for more in ({}, {"local_files_only": True}):
        found = fastattn.SentenceTransformer("tiny-model", threads=1, **options, **more)
        assert found.encode(TEXTS).tobytes() == expected.tobytes()
    with pytest.raises((HubError, ModelNotFoundError), match="sentence-transformers/other"):
        fastattn.SentenceTransformer("other", **options)


def test_the_folders_of_modules_are_fetched(hub: Hub, folder: Path, tmp_path: Path) -> None:
    """Only modules.json knows their names."""
    write_model(folder, dense(WIDTH, 8))
    modules = json.loads((folder / "modules.json").read_text())
    path = modules[-1]["path"]
    modules[-1]["path"] = "heads/projection"
    (folder / "heads").mkdir()
    (folder / path).rename(folder / "heads" / "projection")
    write_json(folder / "modules.json", modules)
    expected = fastattn.SentenceTransformer(folder, threads=1).encode(TEXTS)
    hub.files.clear()
    hub.files |= {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    hub.files |= {"onnx/model.onnx": b"x", "heads/other/model.safetensors": b"x", "pytorch_model.bin": b"x"}
    found = fastattn.SentenceTransformer("tiny/gpt2", threads=1, cache_folder=tmp_path / "cache")
    assert found.encode(TEXTS).tobytes() == expected.tobytes()
    assert not any(
        "other" in asked or "onnx" in asked or ".bin" in asked for asked in hub.asked if "/resolve/" in asked
    )
    hub.asked.clear()
    again = fastattn.SentenceTransformer("tiny/gpt2", threads=1, cache_folder=tmp_path / "cache", local_files_only=True)
    assert again.encode(TEXTS).tobytes() == expected.tobytes()
    assert not hub.asked


def test_an_adapter_of_the_hub_is_refused_too(hub: Hub, folder: Path, tmp_path: Path) -> None:
    write_json(folder / "adapter_config.json", {"peft_type": "LORA"})
    hub.files.clear()
    hub.files |= {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(ConfigError, match=r"adapter_config.json: adapters are not supported"):
        fastattn.SentenceTransformer("tiny/gpt2", cache_folder=tmp_path / "cache")
