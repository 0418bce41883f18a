"""What a type checker sees of the public names: results have types, and an unknown name is an error."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.reference.package import SOURCES
from tests.reference.type_checker import check

pytest.importorskip("mypy", reason="mypy is in the extra test")

SETUP = """
import numpy as np
import fastattn as fa

generator = fa.pipeline("text-generation")
classifier = fa.pipeline("text-classification")
extractor = fa.pipeline("feature-extraction")
tokenizer = fa.AutoTokenizer.from_pretrained("folder")
causal_lm = fa.AutoModelForCausalLM.from_pretrained("folder")
encoder = fa.AutoModel.from_pretrained("folder")
sequence_classifier = fa.AutoModelForSequenceClassification.from_pretrained("folder")
masked_lm = fa.AutoModelForMaskedLM.from_pretrained("folder")
answerer = fa.AutoModelForQuestionAnswering.from_pretrained("folder")
filler = fa.pipeline("fill-mask", "folder")
entities = fa.pipeline("ner", "folder")
st = fa.SentenceTransformer("folder")
cross = fa.CrossEncoder("folder")
embedder, reranker = fa.TextEmbedding("folder"), fa.TextCrossEncoder("folder")
array = np.zeros((1, 2, 3, 4), np.float32)
ids = np.ones((2, 3), np.int64)
row = np.ones(3, np.int64)
anything: object = ids
"""
# Expressions, and the beginning of their type.
TYPED = {
    "generator": "fastattn.tasks.text_generation.TextGenerationPipeline",
    "classifier": "fastattn.tasks.text_classification.TextClassificationPipeline",
    "extractor": "fastattn.tasks.feature_extraction.FeatureExtractionPipeline",
    "generator('a')": "list[TypedDict(fastattn.tasks.text_generation.GeneratedText",
    "generator(['a', 'b'])": "list[",
    "tokenizer": "fastattn.tokenizer.tokenizer.Tokenizer",
    "tokenizer.encode('a')": "list[int]",
    "tokenizer('a')": "fastattn.",
    "tokenizer.decode([1])": "str",
    "causal_lm": "fastattn.api.causal_lm.CausalLM",
    "causal_lm([1])": "fastattn.models.outputs.CausalLMOutput",
    "causal_lm([1]).logits": "numpy.ndarray[",
    "causal_lm(**tokenizer('a'))": "fastattn.models.outputs.CausalLMOutput",
    "encoder(**tokenizer(['a', 'b'], padding=True))": "fastattn.models.outputs.EncoderOutput",
    "encoder([1]).last_hidden_state": "numpy.ndarray[",
    "sequence_classifier([1]).logits": "numpy.ndarray[",
    "st.similarity(array, array)": "numpy.ndarray[",
    "causal_lm.generate([1])": "numpy.ndarray[",
    "causal_lm.generate([[1], [2]])": "list[numpy.ndarray[",
    "causal_lm.stream('a')": "fastattn.",
    "classifier('a')": "list[",
    "extractor('a')": "list[",
    "masked_lm.logits_at([1], 1)": "list[numpy.ndarray[",
    "filler": "fastattn.tasks.fill_mask.FillMaskPipeline",
    "entities('a')": "list[TypedDict(fastattn.tasks.entities.Entity",
    "st.encode('a')": "numpy.ndarray[",
    "st.encode(['a', 'b'])": "numpy.ndarray[",
    "cross.rank('a', ['b'])": "list[TypedDict(fastattn.tasks.cross_encoder.Ranked",
    "embedder.embed('a')": "typing.Iterator[numpy.ndarray[",
    "reranker.rerank('a', ['b'])": "typing.Iterator[float]",
    "fa.util.cos_sim(array, array)": "numpy.ndarray[",
    "fa.util.semantic_search(array, array)": "list[list[TypedDict(fastattn.tasks.search.semantic.Hit",
    "fa.util.quantize_embeddings(array, 'int8')": "numpy.ndarray[",
    "fa.scaled_dot_product_attention(array, array, array)": "numpy.ndarray[",
    "fa.ops.gelu(array)": "numpy.ndarray[",
    "fa.viz.attention(encoder, 'a', layers=[0])": "fastattn.viz.picture.Picture",
    "fa.viz.attention('folder', ['a', ('b', 'c')], heads=1).svg": "str",
    "fa.viz.next_tokens(causal_lm, 'a')": "fastattn.viz.picture.Picture",
    "fa.viz.embeddings(st, ['a', 'b'], labels=[1, 2]).html": "str",
    "fa.viz.tokens(tokenizer, 'a')": "fastattn.viz.picture.Picture",
    "fa.compare_dtypes('folder')": "fastattn.tasks.quality.QualityReport",
    "fa.quantize('folder', 'out', dtype='int8')": "pathlib.Path",
    "fa.generation.request_seed(1, 2)": "int",
    "fa.errors.InputError('a')": "fastattn.errors.InputError",
    "fa.__version__": "str",
}
# A strict caller needs no narrowing: the layout of the input says whether a result is an array or a list.
PRECISE = {
    "causal_lm([1]).logits": "array",
    "causal_lm(ids).logits": "array",
    "causal_lm(ids, np.ones_like(ids), logits_to_keep=1).logits": "array",
    "causal_lm([[1], [2, 3]]).logits": "list",
    "causal_lm([row, row], use_cache=False).logits": "list",
    "causal_lm(anything).logits": "either",
    "encoder(ids).last_hidden_state": "array",
    "encoder([[1], [2, 3]], position_ids=None).last_hidden_state": "list",
    "encoder(anything).last_hidden_state": "either",
    "sequence_classifier([[1], [2, 3]]).logits": "array",
    "masked_lm([1]).logits": "array",
    "masked_lm([[1], [2, 3]]).logits": "list",
    "answerer([[1], [2, 3]]).start_logits": "list",
    "sequence_classifier(anything).logits": "array",
}
KINDS = {
    "array": r"numpy\.ndarray\[[^|]*\]",
    "list": r"list\[numpy\.ndarray\[[^|]*\]\]",
    "either": r"numpy\.ndarray\[.*\] \| list\[numpy\.ndarray\[.*\]\]",
}
# Calls that a type checker refuses.
REFUSED = [
    "fa.AutoModel.from_pretrained('folder', thread=1)",
    "fa.AutoModel.from_pretrained('folder', threads='two')",
    "fa.AutoModel.from_pretrained('folder', low_cpu_mem_usage=True, load_in_8bit=True)",
    "fa.AutoTokenizer.from_pretrained('folder', revison='a')",
    "fa.SentenceTransformer('folder', kv_dtyp='int8')",
    "fa.pipeline('text-generation', head_dtyp='int8')",
    "fa.quantize('folder', 'out', dtype='int8', revison='a')",
    "fa.viz.attention(encoder, 'a', layer=0)",
    "causal_lm([1], logits_to_kep=1)",
    "causal_lm([1], past_key_values=array)",
    "causal_lm.generate([1], max_newtokens=3)",
    "fa.GenerationOptions(max_newtokens=3)",
]
UNKNOWN = [
    "from fastattn import AutoModelForCausalLn",
    "from fastattn import Pipeline",
    "import fastattn\nfastattn.pipeline_of",
    "import fastattn as fa\nfa.AutoModel.from_pretraned('folder')",
    "import fastattn as fa\nfa.SentenceTransformer('folder').encod('a')",
    "from fastattn import *\nAutoModelX",
]


@pytest.fixture(scope="module")
def revealed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("mypy") / "typed"
    folder.mkdir()
    expressions = {**TYPED, **PRECISE}
    code = SETUP + "".join(f"reveal_type({expression})\n" for expression in expressions)
    lines = [line for line in check(folder, code) if line.startswith("sample.py:")]  # not those about our own files
    found = [match[1] for line in lines if (match := re.search(r'Revealed type is "(.*)"$', line))]
    assert [line for line in lines if "Revealed type" not in line] == []
    assert len(found) == len(expressions)
    return dict(zip(expressions, found, strict=True))


@pytest.mark.parametrize("expression", TYPED)
def test_results_have_types(revealed: dict[str, str], expression: str) -> None:
    assert revealed[expression].replace("builtins.", "").startswith(TYPED[expression])


@pytest.mark.parametrize("expression", PRECISE)
def test_the_layout_decides_the_type(revealed: dict[str, str], expression: str) -> None:
    assert re.fullmatch(KINDS[PRECISE[expression]], revealed[expression].replace("builtins.", ""))


def test_wrong_keywords_are_errors(tmp_path: Path) -> None:
    lines = check(tmp_path, SETUP + "\n".join(REFUSED) + "\n")
    first = SETUP.count("\n") + 1
    errors = {int(line.split(":")[1]) for line in lines if line.startswith("sample.py:") and ": error:" in line}
    assert errors == set(range(first, first + len(REFUSED)))


@pytest.fixture(scope="module")
def unknown(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return mypy's line for each sample; all in one run."""
    folder = tmp_path_factory.mktemp("mypy") / "unknown"
    folder.mkdir()
    for i, code in enumerate(UNKNOWN):
        (folder / f"unknown_{i}.py").write_text(code + "\n")
    imports = "".join(f"import unknown_{i}\n" for i in range(len(UNKNOWN)))
    return check(folder, imports)


@pytest.mark.parametrize("i", range(len(UNKNOWN)), ids=lambda i: UNKNOWN[i].replace("\n", "; "))
def test_an_unknown_name_is_an_error(unknown: list[str], i: int) -> None:
    (line,) = (line for line in unknown if line.startswith(f"unknown_{i}.py:") and ": error:" in line)
    assert re.search(r"has no attribute|is not defined", line)


def test_the_types_are_those_of_this_checkout() -> None:
    assert (SOURCES / "fastattn" / "py.typed").exists()
