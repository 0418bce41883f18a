"""The commands. They check the arguments before they load the model."""

from __future__ import annotations

import argparse
import codecs
import importlib.util
import json
import platform
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastattn import __version__
from fastattn.api.load_options import LoadOptions
from fastattn.checks import quote
from fastattn.cli.flags import given_options
from fastattn.cli.grammars import read_grammars
from fastattn.cli.progress import progress
from fastattn.cli.streams import emit, say
from fastattn.cli.texts import Text, TextStream, read_texts, stream_texts
from fastattn.cli.vectors import VectorFile
from fastattn.errors import ContextLengthError, FastattnError, InputError
from fastattn.formats import PACKED_DTYPES
from fastattn.generation.generate import complete, make_requests, need_tokenizer, stream
from fastattn.generation.options import GenerationOptions, read_options
from fastattn.generation.prompts import encode_prompt
from fastattn.generation.results import best_requests, speculation_stats
from fastattn.tasks.completion import Tokens, chat_logprobs
from fastattn.tasks.progress import on_terminal

if TYPE_CHECKING:
    from fastattn.api.causal_lm import CausalLM
    from fastattn.tasks.sentence_transformer import SentenceTransformer

_BETWEEN = "\n"  # an empty line between the texts of several prompts
_EXTRAS = {
    "hub": "huggingface_hub",
    "chat": "jinja2",
    "completion": "shtab",
    "structured": "llguidance",
    "server": "uvicorn",
    "elmo": "h5py",
}  # extra in pyproject.toml -> one of its modules
_PART_TEXTS = 512  # texts of `embed` that are in memory together, unless a step has more
_INPUTS = {"inputs", "second", "question", "context", "data", "X", "sequences", "text_inputs"}  # of pipelines
_FLAGS = {  # arguments of pipelines that the command sets itself
    "batch_size": "use --batch-size",
    "max_batch_tokens": "use --max-batch-tokens",
    "show_progress_bar": "the command shows its own bar on a terminal",
}
_MAX_EXACT_INTEGER = 2**53 - 1  # the largest integer that double-precision JSON readers read exactly


def info(args: argparse.Namespace) -> int:
    """Print what is installed and what runs on this machine."""
    found: dict[str, Any] = {"version": __version__, "python": platform.python_version(), "numpy": np.__version__}
    try:
        from fastattn.executors import cpu

        found |= cpu.info()
    except ImportError as error:
        found["extension"] = f"missing: {error}"
    if importlib.util.find_spec("fastattn._cuda") is not None:
        from fastattn.executors import cuda

        found["cuda"] = cuda.describe()
    found["extras"] = [extra for extra, module in _EXTRAS.items() if importlib.util.find_spec(module) is not None]
    if args.json:
        emit(json.dumps(found))
        return 0
    refused = found.pop("targets_refused", {})
    found |= {f"target {target}": f"not available, {reason}" for target, reason in refused.items()}
    if found.get("bfloat16_sums", "portable") != "portable":
        found["bfloat16_sums"] = f"in the order of {found['bfloat16_sums']}"
    for name, value in found.items():
        if value is None or value == []:
            continue
        text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        emit(f"{name.replace('_', ' ') + ':':<20}{text}")
    return 0


def generate(args: argparse.Namespace) -> int:
    """Continue prompts and print the speed on stderr."""
    from fastattn.api.auto import AutoModelForCausalLM

    options: dict[str, Any] = {"do_sample": True, **given_options(GenerationOptions, args), "use_model_defaults": False}
    options |= read_grammars(options)
    checked = read_options({**options, "assistant_model": None}, "generate")
    check_top_logprobs(checked, args)
    prompts = read_texts(args.prompt, args.file, whole_stdin=True, skip_blank=args.skip_blank)
    model = AutoModelForCausalLM.from_pretrained(_model(args, "text-generation"), **_loading(args))
    if args.assistant_model is not None:
        options["assistant_model"] = load_assistant(args)
        checked = read_options(options, "generate")
    tokenizer = need_tokenizer(model, "generate")
    ids = [encode_prompt(tokenizer, prompt.text, prompt.where) for prompt in prompts]
    _check_lengths(prompts, ids, args, model.executor.program.max_positions)
    begin = time.perf_counter()
    if args.stream and not args.json and checked.n_requests == checked.num_beams == 1:
        n_new, stats = _stream(model, prompts, options)
    else:
        names = [prompt.where for prompt in prompts]
        requests = make_requests(model, ids, checked, names=names, tokenizer=tokenizer)
        complete(model, requests, checked, logprobs=checked.top_logprobs > 0)
        n_new, stats = sum(request.new_len for request in requests), speculation_stats(requests)
        for i, request in enumerate(best_requests(requests)):
            prompt = prompts[i // checked.num_return_sequences]
            text = "" if request.text is None else request.text.text
            if args.json:
                answer: dict[str, Any] = {"prompt": prompt.text, "text": text, "finish_reason": request.finish_reason}
                answer |= {"seed": _exact(request.seed), "n_tokens": request.new_len, **speculation_stats([request])}
                if checked.top_logprobs:
                    answer |= chat_logprobs(tokenizer, Tokens.of(request), checked.top_logprobs, name="logprobs")
                emit(json_line(answer))
            else:
                emit(f"{_BETWEEN if i else ''}{prompt.text}{text}")
    seconds = time.perf_counter() - begin
    drawn = ", {n_accepted_tokens} of {n_proposed_tokens} proposed tokens accepted".format(**stats) if stats else ""
    say(f"{n_new} tokens in {seconds:.2f} s, {n_new / max(seconds, 1e-9):.1f} tokens/s{drawn}")
    return 0


def check_top_logprobs(options: GenerationOptions, args: argparse.Namespace) -> None:
    """Reject --top-logprobs without --json, which alone prints them. Raises InputError."""
    if options.top_logprobs and not args.json:
        raise InputError(
            f"--top-logprobs: expected --json, which prints log-probabilities, with {options.top_logprobs}"
        )


def load_assistant(args: argparse.Namespace) -> Any:
    """Return the value of --assistant-model: the dtype of a copy, or the model in a folder, loaded."""
    from fastattn.api.auto import AutoModelForCausalLM

    if args.assistant_model is None or args.assistant_model in PACKED_DTYPES:
        return args.assistant_model
    return AutoModelForCausalLM.from_pretrained(args.assistant_model, device=args.device, threads=args.threads)


def _check_lengths(prompts: list[Text], ids: list[NDArray[np.int32]], args: argparse.Namespace, context: int) -> None:
    """Reject a prompt that does not fit and cannot be cut, before anything is printed."""
    if args.overflow == "slide":
        return
    n_new, cuts = args.max_new_tokens, args.truncate is not None and args.max_new_tokens < context
    for prompt, tokens in zip(prompts, ids, strict=True):
        n_prompt = max(1, len(tokens))  # an empty prompt starts from one id
        if n_prompt + n_new > context and not cuts:
            alone = "; -n alone does, so cutting the prompt does not help" if n_new >= context else ""
            raise ContextLengthError(
                f"{prompt.where}: a prompt of {n_prompt} tokens and -n {n_new} exceed the model's context of "
                f"{context}{alone}"
            )


def _stream(model: CausalLM, prompts: list[Text], options: Mapping[str, Any]) -> tuple[int, dict[str, int]]:
    """Print texts as they are generated, one prompt at a time; return the number of new tokens, and all stats."""
    n_new, stats = 0, dict[str, int]()
    seeds = read_options(options, "generate").seeds(len(prompts))
    for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        with stream(model, prompt.text, **{**options, "seed": seed}) as pieces:
            emit(f"{_BETWEEN if i else ''}{prompt.text}", end="", flush=True)
            try:
                for piece in pieces:
                    emit(piece, end="", flush=True)
            finally:
                emit(flush=True)  # also before an error message
            n_new += pieces.n_new_tokens
            stats = {name: stats.get(name, 0) + n for name, n in pieces.stats.items()}
    return n_new, stats


def classify(args: argparse.Namespace) -> int:
    """Print the labels of texts: `label<TAB>score<TAB>text`, or JSON."""
    from fastattn.tasks.pipelines import pipeline

    texts = stream_texts(args.prompt, args.file, skip_blank=args.skip_blank)
    classifier = pipeline("text-classification", args.model, **_loading(args))
    options: dict[str, Any] = {"top_k": args.top_k or None, "truncation": args.truncation, **batching(args)}
    for text, labels in results_of(texts, lambda items: classifier(items, **options)):
        if args.json:
            emit(json_line({"text": text.text, "labels": labels}), flush=args.batch_size == 1)
            continue
        for item in labels:
            shown = " ".join(text.text.split())
            emit(f"{item['label']}\t{item['score']:.4f}\t{shown}", flush=args.batch_size == 1)
    return 0


def run(args: argparse.Namespace) -> int:
    """Run a pipeline on texts, or on JSON values, and print one JSON object per result."""
    from fastattn.tasks.pipelines import check_task, pipeline

    check_task("TASK", args.task)
    texts = stream_texts(args.prompt, args.file, skip_blank=args.skip_blank)
    values = args.json_lines or args.task == "question-answering"
    pipe: Any = pipeline(args.task, args.model, **_loading(args))
    options = {**_assigned(args.set or []), **batching(args)}

    def read(text: Text) -> Any:
        if not values:
            return text.text
        try:
            return json.loads(text.text)
        except ValueError as error:
            raise InputError(f"{text.where}: expected JSON, got {quote(text.text)} ({error})") from None

    cut = "--set truncation=true cuts the text"
    for text, result in results_of(texts, lambda items: pipe(items, **options), read, cut):
        emit(json_line({"input": read(text), "result": result}), flush=args.batch_size == 1)
    return 0


def _assigned(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the arguments of --set. Raises InputError for inputs, options with a flag, and repeated names."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in _INPUTS:
            raise InputError(f"--set {name}: expected an option, got the input; give it with -p or -f")
        if name in _FLAGS:
            raise InputError(f"--set {name}: expected an option without a flag of its own; {_FLAGS[name]}")
        if name in found:
            raise InputError(f"--set {name}: expected one value, got several; pass it once")
        found[name] = value
    return found


def results_of(
    source: TextStream,
    call: Callable[[Iterator[Any]], Any],
    read: Callable[[Text], Any] = lambda text: text.text,
    cut: str = "--truncation cuts the text",
) -> Iterator[tuple[Text, Any]]:
    """Yield each text with its result. Only a few of both are in memory. An error names the line of the text.

    call: a pipeline; it gets an iterator and returns one. read: returns what the pipeline gets for a text. cut: what to
    do about a text that is too long.
    """
    waiting: deque[Text] = deque()
    n_done = 0

    def items() -> Iterator[Any]:
        for text in source.texts:
            waiting.append(text)
            yield read(text)

    try:
        with bar(source.total) as done:
            for result in call(items()):
                yield waiting.popleft(), result
                n_done += 1
                done(1)
    except FastattnError as error:
        raise _with_location(error, waiting, n_done, cut) from None


def _with_location(error: FastattnError, waiting: Sequence[Text], n_done: int, cut: str = "") -> FastattnError:
    """Return the error about one of the texts; it names the text's location instead of the argument.

    waiting: the texts without a result; the first one is text n_done of the call. cut: what to do about a text that is
    too long.
    """
    place = -1 if error.index is None else error.index - n_done
    if error.item is None or not 0 <= place < len(waiting):
        return error
    message = str(error).removeprefix(error.item)
    if isinstance(error, ContextLengthError):
        message = f": {error.n_tokens} tokens, the model's context is {error.context}; {cut}"
    return type(error)(f"{waiting[place].where}{message}")


def embed(args: argparse.Namespace) -> int:
    """Write the vectors of texts to a .npy file, or print one per line."""
    from fastattn.tasks.sentence_transformer import SentenceTransformer

    if args.output is not None and not Path(args.output).absolute().parent.is_dir():
        raise InputError(f"--output: expected an existing folder, got {quote(str(Path(args.output).parent))}")
    source = stream_texts(args.prompt, args.file, skip_blank=args.skip_blank)
    model = SentenceTransformer(_model(args, "text-classification"), **_loading(args))
    cuts = _Cuts()
    with VectorFile(args.output) if args.output is not None else nullcontext() as file, bar(source.total) as done:
        for texts, vectors in _vectors(model, source, args, cuts):
            if file is not None:
                file.write(vectors)
            else:
                _print_vectors(texts, vectors, args)
            done(len(texts))
    if file is not None:
        say(f"{args.output}: float32 {list(file.shape)}")
    cuts.report()
    return 0


def _vectors(
    model: SentenceTransformer, source: TextStream, args: argparse.Namespace, cuts: _Cuts
) -> Iterator[tuple[list[Text], NDArray[np.float32]]]:
    """Yield the texts in windows with their vectors, and count those that are cut. An error names the line of a text.

    Two windows are in memory: the second one is read and tokenized while the first one is computed.
    """
    from fastattn.tasks.sentence.encoding import EncodeOptions
    from fastattn.tasks.sentence.windows import Part, window_sizes

    size, lengths = args.batch_size, dict[int, int]()
    waiting: deque[Text] = deque()
    n_done = 0

    def parts() -> Iterator[Part]:
        first = 0
        for count in window_sizes(size, most=_PART_TEXTS // 2) if size > 1 else repeat(1):
            texts = list(islice(source.texts, count))
            if not texts:
                return
            waiting.extend(texts)
            yield first, [(text.text, None) for text in texts]
            first += len(texts)

    options = EncodeOptions(
        prompt_name=args.prompt_name,
        batch_size=size,
        show_progress_bar=False,
        normalize_embeddings=args.normalize,
        cut=lengths,
    )
    try:
        for first, vectors in model._stream(parts(), options, ahead=size > 1):
            texts = [waiting.popleft() for _ in vectors]
            cuts.add(texts, {i - first: lengths.pop(i) for i in sorted(lengths)})
            n_done += len(texts)
            yield texts, vectors
    except FastattnError as error:
        raise _with_location(error, waiting, n_done) from None


class _Cuts:
    """The texts that were cut to the model's limit: their number, and the first one with its remaining tokens."""

    def __init__(self) -> None:
        self._count, self._first = 0, ""

    def add(self, texts: list[Text], lengths: Mapping[int, int]) -> None:
        """Add some of `texts`. lengths: the remaining tokens of those that were cut, by index."""
        for i, length in lengths.items():
            self._first = self._first or f"cut to {length} tokens, the model's limit: {texts[i].where}"
            self._count += 1

    def report(self) -> None:
        """Say which texts were cut, if any."""
        if self._count:
            say(self._first + (f" and {self._count - 1} more" if self._count > 1 else ""))


def _print_vectors(texts: list[Text], vectors: NDArray[Any], args: argparse.Namespace) -> None:
    for text, vector in zip(texts, vectors, strict=True):
        numbers = [float(x) for x in vector]
        as_text = " ".join(f"{x:.6g}" for x in numbers)
        emit(json_line({"text": text.text, "embedding": numbers}) if args.json else as_text, flush=args.batch_size == 1)


def rerank(args: argparse.Namespace) -> int:
    """Print texts by their score for a query, the highest first: `score<TAB>text`, or JSON."""
    from fastattn.tasks.cross_encoder import CrossEncoder

    texts = read_texts(args.prompt, args.file, whole_stdin=False, skip_blank=args.skip_blank)
    model = CrossEncoder(args.model, **_loading(args))
    if model.num_labels != 1:
        found = f"got {model.num_labels}; use fastattn classify"
        raise InputError(f"-m/--model: expected a cross-encoder with one label, {found}")

    cuts = _Cuts()

    def run(part: list[Text]) -> list[float]:
        pairs = [(args.query, text.text) for text in part]
        found, lengths = model.predict_with_cuts(pairs, batch_size=args.batch_size)
        cuts.add(part, lengths)
        return list(found[:, 0].tolist())

    scores = _in_parts(texts, run, max(_PART_TEXTS, args.batch_size))
    order = sorted(range(len(texts)), key=lambda i: -scores[i])  # equal scores stay in the order of the texts
    for i in order[: args.top_k or None]:
        if args.json:
            emit(json_line({"corpus_id": i, "score": scores[i], "text": texts[i].text}))
        else:
            emit(f"{scores[i]:.4f}\t{' '.join(texts[i].text.split())}")
    cuts.report()
    return 0


def _in_parts(texts: list[Text], run: Callable[[list[Text]], list[Any]], part: int) -> list[Any]:
    """Return the results of all texts, computed in one call, or in parts with a progress bar on a terminal.

    A result depends only on its own text, so both give the same results.
    """
    if not on_terminal():
        return run(texts)
    found: list[Any] = []
    with progress(len(texts), "texts") as done:
        for i in range(0, len(texts), part):
            found += run(texts[i : i + part])
            done(len(found) - i)
    return found


def bar(total: int | None) -> AbstractContextManager[Callable[[int], object]]:
    """Show a bar over texts on a terminal, unless results are printed on a terminal too."""
    printed = sys.stdout is not None and not sys.stdout.closed and sys.stdout.isatty()
    return nullcontext(lambda count: None) if printed else progress(total, "texts")


def quality(args: argparse.Namespace) -> int:
    """Print the quality loss of each dtype relative to float32."""
    from fastattn.tasks.quality import compare_dtypes, table

    data = None if args.file is None else read_texts(None, args.file, whole_stdin=False, skip_blank=True)
    texts = None if data is None else [text.text for text in data]
    model = _model(args, "text-generation")
    report = compare_dtypes(model, texts, dtypes=args.dtypes, max_tokens=args.max_tokens, threads=args.threads)
    if args.json:
        emit(json_line(asdict(report)))
        return 0
    for line in table(report):
        emit(line)
    say(f"{report.task}: {report.n_texts} texts, {report.n_tokens} tokens, model {report.model}")
    return 0


def quantize(args: argparse.Namespace) -> int:
    """Write a quantized folder and print its size."""
    from fastattn.api.quantize import quantize as write

    begin = time.perf_counter()
    folder = write(args.model, args.output, dtype=args.dtype, head_dtype=args.head_dtype, threads=args.threads)
    size = (folder / "model.safetensors").stat().st_size
    say(f"{folder}: {args.dtype}, {size / 1e6:.1f} MB in {time.perf_counter() - begin:.2f} s")
    return 0


def _model(args: argparse.Namespace, task: Literal["text-generation", "text-classification"]) -> str | Path:
    """Return the model argument, even if it is empty, or the demo model of a task if there is none."""
    from fastattn.tasks.demo import demo_model

    return demo_model(task) if args.model is None else args.model


def batching(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of a pipeline that say how texts share steps. The command has its own bar."""
    given = {"batch_size": args.batch_size, "max_batch_tokens": args.max_batch_tokens}
    return {"show_progress_bar": False, **{name: value for name, value in given.items() if value is not None}}


def _loading(args: argparse.Namespace) -> Any:
    return given_options(LoadOptions, args)


def json_line(value: object) -> str:
    """Return one line of JSON; escape non-ASCII letters unless standard output is UTF-8."""
    ascii_only = codecs.lookup(sys.stdout.encoding or "ascii").name != "utf-8"
    return json.dumps(value, ensure_ascii=ascii_only, default=lambda array: array.tolist())


def _exact(seed: int) -> int | str:
    """Return a seed for JSON: a string if double-precision readers, such as JavaScript, would round it."""
    return seed if seed <= _MAX_EXACT_INTEGER else str(seed)
