"""The commands and their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, TypeAlias

import fastattn
from fastattn.api.load_options import MAX_THREADS, LoadOptions
from fastattn.cli.completion import SHELLS
from fastattn.cli.flags import add_flag, add_flags
from fastattn.cli.parsing import CommandParser, Once
from fastattn.cli.values import assignment, file_name, integer, integers, names, number, some_names, some_text
from fastattn.formats import DTYPES, PACKED_DTYPES
from fastattn.generation.options import GenerationOptions
from fastattn.options import INT32_MAX
from fastattn.server.options import KINDS, ServeOptions

MAX_BENCH_SECONDS = 600
_OF_AUTO_CLASSES = ("adapter",)  # only for commands that load one model of an Auto class
_OF_HEADS = ("head_dtype",)  # only for commands whose models may compute logits over a vocabulary
# Options of generation that a conversation cannot have: it streams one text at a time, and keeps all messages.
_OF_TEXTS = (
    "truncate", "overflow", "bos_token_id", "max_batch_size", "num_return_sequences", "best_of", "num_beams",
    "num_beam_groups", "diversity_penalty", "length_penalty", "early_stopping",
)  # fmt: skip
_MODEL = "a model's folder, GGUF file or hub id (default: the demo model)"
_Commands: TypeAlias = "argparse._SubParsersAction[CommandParser]"


def build_parser() -> tuple[CommandParser, dict[str, CommandParser]]:
    """Return the parser of the whole command, and the parser of each command by name."""
    parser = CommandParser(
        prog="fastattn", description=fastattn.__doc__, epilog="Options of a command: fastattn COMMAND --help"
    )
    parser.add_argument("--version", action="version", version=f"fastattn {fastattn.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=CommandParser)
    add: tuple[Callable[[_Commands], None], ...] = (
        _add_info, _add_generate, _add_chat, _add_classify, _add_embed, _add_rerank, _add_run, _add_look, _add_check,
        _add_verify, _add_quality, _add_quantize, _add_bench, _add_serve, _add_completion,
    )  # fmt: skip
    for add_command in add:
        add_command(commands)
    by_name = dict(commands.choices)
    for command in by_name.values():
        command.set_defaults(parser=command)  # for errors found after parsing
    by_name["completion"].set_defaults(root=parser, commands=by_name)
    return parser, by_name


def _add_info(commands: _Commands) -> None:
    parser = commands.add_parser("info", help="show version, compiler, SIMD targets, threads and extras")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_generate(commands: _Commands) -> None:
    parser = commands.add_parser("generate", help="continue texts")
    _add_model(parser)
    add_flags(parser, LoadOptions, only=(*_OF_HEADS, *_OF_AUTO_CLASSES))
    _add_texts(parser, "a prompt; '-' reads all of standard input as one prompt")
    add_flags(parser, GenerationOptions)
    parser.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="print text as it is generated, prompt by prompt (--no-stream: all prompts in one batch)",
    )


def _add_chat(commands: _Commands) -> None:
    parser = commands.add_parser("chat", help="answer messages, with the model's chat template")
    _add_model(parser, "a model's folder, GGUF file or hub id, with a chat template", required=True)
    add_flags(parser, LoadOptions, only=(*_OF_HEADS, *_OF_AUTO_CLASSES))
    _add_texts(parser, "a message; '-' reads one message per line from standard input")
    parser.add_argument(
        "--system", type=some_text("a text"), metavar="TEXT", help="a first message with the role system"
    )
    add_flags(parser, GenerationOptions, without=_OF_TEXTS)


def _add_classify(commands: _Commands) -> None:
    parser = commands.add_parser("classify", help="label texts")
    _add_model(parser)
    add_flags(parser, LoadOptions, only=_OF_AUTO_CLASSES)
    _add_texts(parser, "a text; '-' reads lines from standard input")
    parser.add_argument(
        "--top-k",
        type=integer(0, INT32_MAX),
        default=1,
        metavar="K",
        help="print the K best labels per text; 0 prints all (default: 1)",
    )
    parser.add_argument("--truncation", action="store_true", help="cut texts longer than the model's context")
    _add_batching(parser)


def _add_embed(commands: _Commands) -> None:
    parser = commands.add_parser("embed", help="turn texts into vectors")
    _add_model(parser)
    _add_texts(parser, "a text; '-' reads lines from standard input")
    parser.add_argument(
        "-o",
        "--output",
        type=file_name(".npy"),
        metavar="FILE.npy",
        help="write a float32 [n, d] array instead of text; row i is the vector of text i",
    )
    parser.add_argument(
        "--prompt-name",
        type=some_text("a name"),
        metavar="NAME",
        help="put the model's prompt of this name, such as query, before each text (default: the model's own "
        "default prompt)",
    )
    parser.add_argument("--normalize", action="store_true", help="scale vectors to length 1")
    parser.add_argument(
        "--batch-size", type=integer(1, INT32_MAX), default=32, metavar="N", help="texts per step (default: 32)"
    )


def _add_check(commands: _Commands) -> None:
    parser = commands.add_parser(
        "check",
        help="check a model folder: is it intact, what would load, what is ignored",
        description="Check a model folder without loading the model: headers, settings, tokenizer, SHA-256, and that "
        "all float weights are finite. Prints what would load, and which files and settings are used or ignored. "
        "Nothing in the folder is executed. Exit code 1 if there are problems.",
    )
    parser.add_argument(
        "model", type=some_text("a folder or a hub id"), metavar="DIR", help="a model's folder, GGUF file or hub id"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_verify(commands: _Commands) -> None:
    parser = commands.add_parser(
        "verify",
        help="compare every layer with the float64 reference on this machine",
        description="Run a model and compare every op with its float64 formula, and every hidden state with a float64 "
        "run. Also checks that results do not depend on batches and threads. Exit code 1 if a comparison fails.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "folder",
        nargs="?",
        type=some_text("a folder or a hub id"),
        metavar="DIR",
        help="a model's folder, GGUF file or hub id",
    )
    _add_model_name(what, "the same as DIR")
    parser.add_argument(
        "--dtypes",
        type=names(*DTYPES["cpu"]),
        default=("float32",),
        metavar="A,B",
        help=f"some of {','.join(DTYPES['cpu'])} (default: float32)",
    )
    _add_file(parser, "one text per line; '-' is standard input (default: sentences of a novel)")
    parser.add_argument(
        "--max-tokens",
        type=integer(2, INT32_MAX),
        default=128,
        metavar="N",
        help="read at most N tokens (default: 128)",
    )
    parser.add_argument(
        "--against", choices=("transformers",), help="also compare with this library in float64 (needs torch)"
    )
    add_flag(parser, LoadOptions, "threads")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_look(commands: _Commands) -> None:
    parser = commands.add_parser(
        "look",
        help="draw what a model does with a text",
        description="Write a page with the tokens of a text and the attention of each head; for a language model also "
        "the surprisal of each token and the next tokens by layer.",
    )
    _add_model_name(parser)
    add_flags(parser, LoadOptions)
    parser.add_argument("text", metavar="TEXT", help="the text; '-' reads all of standard input")
    parser.add_argument(
        "-o", "--output", type=file_name(".html", ".svg"), required=True, metavar="FILE", help="FILE.html or FILE.svg"
    )
    parser.add_argument(
        "--layers", type=integers, metavar="A,B", help="layers to show, from 0 (default: as many as fit)"
    )
    parser.add_argument("--heads", type=integers, metavar="A,B", help="heads to show, from 0 (default: all)")
    parser.add_argument(
        "--top-k", type=integer(1, INT32_MAX), default=3, metavar="K", help="next tokens per layer (default: 3)"
    )


def _add_rerank(commands: _Commands) -> None:
    parser = commands.add_parser("rerank", help="sort texts by how well they answer a query")
    _add_model(parser, "the folder or hub id of a cross-encoder", required=True)
    parser.add_argument(
        "-q", "--query", type=some_text("a text"), required=True, metavar="TEXT", help="the text to compare with"
    )
    _add_texts(parser, "a text; '-' reads lines from standard input")
    parser.add_argument(
        "--top-k",
        type=integer(0, INT32_MAX),
        default=0,
        metavar="K",
        help="print the K best texts; 0 prints all (default: 0)",
    )
    parser.add_argument(
        "--batch-size", type=integer(1, INT32_MAX), default=32, metavar="N", help="texts per step (default: 32)"
    )


def _add_run(commands: _Commands) -> None:
    parser = commands.add_parser(
        "run",
        help="run a pipeline on texts and print JSON",
        description="Run the pipeline of a task on texts. Print one JSON object per text: its input and its result.",
    )
    parser.add_argument(
        "task",
        type=some_text("a task"),
        metavar="TASK",
        help="token-classification, fill-mask, zero-shot-classification, question-answering, or another task of "
        "fastattn.pipeline",
    )
    _add_model_name(parser, "a model's folder, GGUF file or hub id (default: the demo model of the task, if any)")
    add_flags(parser, LoadOptions)
    _add_texts(parser, "a text; '-' reads lines from standard input")
    parser.add_argument(
        "--json-lines",
        action="store_true",
        help='read each text as JSON: a pair {"text": ..., "text_pair": ...} or a list of words; question-answering '
        'always reads {"question": ..., "context": ...}',
    )
    parser.add_argument(
        "--set",
        action="append",
        type=assignment,
        metavar="NAME=VALUE",
        help="an argument of the pipeline, such as aggregation_strategy=max; the value is JSON or text; repeatable",
    )
    _add_batching(parser)


def _add_batching(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how texts share steps."""
    parser.add_argument(
        "--batch-size",
        type=integer(1, INT32_MAX),
        metavar="N",
        help="texts per step (default: 32); with 1, each result is printed before the next text is read",
    )
    parser.add_argument(
        "--max-batch-tokens",
        type=integer(1, INT32_MAX),
        metavar="N",
        help="tokens per step; without --batch-size, any number of texts (default: no limit)",
    )


def _add_quality(commands: _Commands) -> None:
    parser = commands.add_parser("quality", help="measure the quality loss of bfloat16, int8 and int4")
    _add_model_name(parser)
    _add_file(parser, "one text per line; '-' is standard input (default: a chapter of a novel)")
    parser.add_argument(
        "--dtypes",
        type=names(*PACKED_DTYPES),
        default=PACKED_DTYPES,
        metavar="A,B",
        help=f"some of {','.join(PACKED_DTYPES)} (default: all)",
    )
    parser.add_argument(
        "--max-tokens",
        type=integer(2, INT32_MAX),
        default=8192,
        metavar="N",
        help="read at most N tokens (default: 8192)",
    )
    add_flag(parser, LoadOptions, "threads")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_quantize(commands: _Commands) -> None:
    parser = commands.add_parser("quantize", help="write a model in bfloat16, int8 or int4 to a new folder")
    parser.add_argument(
        "model", type=some_text("a folder or a hub id"), metavar="DIR", help="a model's folder, GGUF file or hub id"
    )
    parser.add_argument("output", type=some_text("a folder"), metavar="OUT", help="a new or empty folder")
    add_flag(parser, LoadOptions, "dtype", required=True, choices=PACKED_DTYPES, help="how weights are stored")
    add_flags(parser, LoadOptions, only=(*_OF_HEADS, "threads"))


def _add_bench(commands: _Commands) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure the machine, a model and other libraries",
        description="Measure the machine's limits, and how close a model comes to them. Without -m: the machine and "
        "the demo models.",
    )
    what = parser.add_mutually_exclusive_group()
    _add_model_name(what, "a model's folder, GGUF file or hub id")
    what.add_argument("--machine", action="store_true", help="measure only the machine's limits")
    add_flag(parser, LoadOptions, "dtype", choices=DTYPES["cpu"])
    add_flags(parser, LoadOptions, only=("kv_dtype", *_OF_HEADS))
    add_flag(
        parser,
        LoadOptions,
        "threads",
        type=integer(1, MAX_THREADS),
        help="threads of every library (default: all that this process may use)",
    )
    parser.add_argument(
        "--against",
        type=_libraries,
        metavar="LIBRARIES",
        help="run other libraries on the same workloads, each in its own process: torch,onnxruntime,ctranslate2,"
        "openvino,llama_cpp; NAME:DTYPE for a dtype other than --dtype",
    )
    parser.add_argument("--works", type=some_names, metavar="NAMES", help="measure only these workloads: 8x128,1x16")
    parser.add_argument(
        "--rounds", type=integer(1, 1000), default=5, metavar="N", help="turns of each library (default: 5)"
    )
    parser.add_argument(
        "--seconds", type=number(0.001, 600), default=0.3, metavar="S", help="minimum time of a turn (default: 0.3)"
    )
    parser.add_argument(
        "--max-seconds",
        type=number(1, 7 * 86400),
        default=MAX_BENCH_SECONDS,
        metavar="S",
        help=f"stop after S seconds in total and print what was measured (default: {MAX_BENCH_SECONDS})",
    )
    parser.add_argument("--profile", action="store_true", help="print a table of all ops for each workload")
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        type=some_text("a file"),
        metavar="FILE",
        help="write results and all samples as JSON",
    )
    parser.add_argument(
        "--picture",
        type=file_name(".svg", ".html"),
        metavar="FILE",
        help="write a roofline plot: FILE.svg or FILE.html",
    )
    parser.add_argument(
        "--keep", type=some_text("a folder"), metavar="DIR", help="folder for converted models (default: temporary)"
    )


def _add_serve(commands: _Commands) -> None:
    parser = commands.add_parser(
        "serve",
        help="serve models over HTTP, as OpenAI's API and Text Embeddings Inference do",
        description="Serve models over HTTP until SIGTERM or Ctrl-C. Each setting has a flag, a variable "
        "FASTATTN_SERVE_NAME and a key in the settings file; a flag takes precedence over a variable, and a variable "
        'over the file. It needs pip install "fastattn[server]".',
    )
    add: dict[str, Any] = {"action": "append", "type": some_text("a folder or a hub id"), "metavar": "[NAME=]DIR"}
    parser.add_argument(
        "-m",
        "--model",
        dest="models",
        help="a model's folder or hub id, used for what it was trained for; repeatable (default: the demo models)",
        **add,
    )
    for kind in KINDS:
        parser.add_argument(f"--{kind}-model", dest=f"{kind}_models", help=f"a model of kind {kind}; repeatable", **add)
    parser.add_argument("--config", type=some_text("a file"), metavar="FILE.toml", help="read settings from a file")
    add_flags(parser, ServeOptions)
    parser.add_argument(
        "--allow-no-key",
        action="store_const",
        const=True,
        help="allow an address that other machines can reach, without API keys",
    )
    add_flags(parser, LoadOptions)
    parser.add_argument(
        "--kv-cache-bytes",
        type=integer(1),
        metavar="N",
        help="bytes of keys and values of each language model (default: a quarter of what the process may use)",
    )
    parser.add_argument(
        "--share-weights",
        action="store_const",
        const=True,
        help="share one copy of packed weights with other processes of this user (Linux)",
    )


def _add_completion(commands: _Commands) -> None:
    parser = commands.add_parser(
        "completion",
        help="print a completion script for bash, zsh or fish",
        description="Print a script that completes commands, options and values. It needs pip install "
        '"fastattn[completion]". bash: fastattn completion bash > '
        "~/.local/share/bash-completion/completions/fastattn; zsh: ... > _fastattn in a folder of $fpath; fish: ... > "
        "~/.config/fish/completions/fastattn.fish",
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell")


def _libraries(text: str) -> tuple[str, ...]:
    from fastattn.cli.bench import read_libraries

    return read_libraries(text)


def _add_model_name(parser: argparse._ActionsContainer, text: str = _MODEL, *, required: bool = False) -> None:
    parser.add_argument(
        "-m", "--model", type=some_text("a folder or a hub id"), metavar="DIR", help=text, required=required
    )


def _add_model(parser: argparse.ArgumentParser, text: str = _MODEL, *, required: bool = False) -> None:
    _add_model_name(parser, text, required=required)
    add_flags(parser, LoadOptions, without=(*_OF_HEADS, *_OF_AUTO_CLASSES))
    parser.add_argument("--json", action="store_true", help="print one JSON object per text")


def _add_file(parser: argparse._ActionsContainer, text: str) -> None:
    parser.add_argument("-f", "--file", action=Once, type=some_text("a file"), metavar="FILE", help=text)


def _add_texts(parser: argparse.ArgumentParser, what: str) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-p", "--prompt", action="append", metavar="TEXT", help=f"{what}; repeatable")
    _add_file(
        source,
        "one text per line; '-' is standard input. A blank line is an empty text, so result i belongs to line i",
    )
    parser.add_argument("--skip-blank", action="store_true", help="omit blank lines")
