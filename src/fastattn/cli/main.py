"""Arguments and exit codes: 0 ok, 1 failure (one line on stderr), 2 usage, 130 interrupted."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

import fastattn
from fastattn.cli.values import file_name, integer, names, number, some_names, some_text, stop_text
from fastattn.errors import FastattnError

_INT32_MAX = 2**31 - 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (usage errors raise SystemExit(2), as argparse does)."""
    parser = _parser()
    words = list(sys.argv[1:] if argv is None else argv)
    args, unknown = parser.parse_known_args(words)
    if unknown:
        before = words[: words.index(args.command)]
        (parser if unknown[0] in before else args.parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    args.command_line = words
    _check_together(args)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a locale without a letter of the text is no reason to stop
    try:
        code = _run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python flushes stdout again at exit: give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (FastattnError, OSError, UnicodeError, MemoryError) as error:
        print(f"fastattn: {_one_line(error)}", file=sys.stderr)
        return 1
    return code


def _one_line(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"  # without [Errno 2]
    return " ".join(text.split()) or type(error).__name__


def _check_together(args: argparse.Namespace) -> None:
    """What one flag asks of another."""
    parser: argparse.ArgumentParser = args.parser
    if args.command == "embed" and args.json and args.output is not None:
        parser.error("argument --json: not allowed with argument -o/--output, which writes no text")
    if args.command == "bench" and args.machine and (args.against or args.works):
        parser.error("argument --machine: not allowed with --against or --works, which are about models")
    if getattr(args, "dtype", None) == "float64" and args.device != "numpy":
        parser.error("argument --dtype: float64 needs --device numpy")
    if getattr(args, "dtype", None) in ("float16", "tf32") and args.device != "cuda":
        parser.error(f"argument --dtype: {args.dtype} needs --device cuda")


def _run(args: argparse.Namespace) -> int:
    if args.command == "bench":
        from fastattn.cli.bench import bench

        return bench(args)
    from fastattn.cli import commands

    run = {
        "info": commands.info,
        "generate": commands.generate,
        "classify": commands.classify,
        "embed": commands.embed,
        "quality": commands.quality,
        "quantize": commands.quantize,
    }[args.command]
    return run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastattn", description=fastattn.__doc__)
    parser.add_argument("--version", action="version", version=f"fastattn {fastattn.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_info(commands)
    _add_generate(commands)
    _add_classify(commands)
    _add_embed(commands)
    _add_quality(commands)
    _add_quantize(commands)
    _add_bench(commands)
    for command in commands.choices.values():
        command.set_defaults(parser=command)  # for errors that are found later, with the usage of the command
    return parser


def _add_info(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("info", help="version, compiler, SIMD targets, threads and extras")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def _add_generate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("generate", help="continue texts")
    _add_model(parser)
    _add_head_dtype(parser)
    _add_texts(parser, "a prompt; '-' reads all of standard input as one prompt")
    parser.add_argument(
        "-n", "--max-tokens", type=integer(0, _INT32_MAX), default=64, metavar="N", help="new tokens at most (64)"
    )
    parser.add_argument("--temp", type=number(0), default=0.8, metavar="T", help="temperature, 0 is greedy (0.8)")
    parser.add_argument("--top-p", type=number(0, 1), default=0.95, metavar="P", help="1 is off (0.95)")
    parser.add_argument("--top-k", type=integer(0, _INT32_MAX), default=50, metavar="K", help="0 is off (50)")
    parser.add_argument("--min-p", type=number(0, 1), default=0.0, metavar="P", help="0 is off (0)")
    parser.add_argument("--repetition-penalty", type=number(1e-6, 1e6), default=1.0, metavar="R", help="1 is off (1)")
    parser.add_argument(
        "--seed",
        type=integer(0, 2**64 - 1),
        default=None,
        metavar="S",
        help="repeats a text: S itself is the first prompt's, the others get seeds made from it (--json prints them); "
        "drawn unless given",
    )
    parser.add_argument(
        "--stop", action="append", type=stop_text, default=[], metavar="TEXT", help="end before this text; repeatable"
    )
    parser.add_argument(
        "--truncate", choices=("left", "right"), help="cut prompts that do not fit the context beside -n, on this side"
    )
    parser.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="print text as it comes, prompt by prompt (--no-stream: all prompts in one batch)",
    )


def _add_classify(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("classify", help="label texts")
    _add_model(parser)
    _add_texts(parser, "a text; '-' reads lines from standard input")
    parser.add_argument(
        "--top-k", type=integer(0, _INT32_MAX), default=1, metavar="K", help="labels of each text, 0 is all (1)"
    )
    parser.add_argument("--truncate", action="store_true", help="cut texts longer than the model's context")


def _add_embed(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("embed", help="turn texts into vectors")
    _add_model(parser)
    _add_texts(parser, "a text; '-' reads lines from standard input")
    parser.add_argument(
        "-o",
        "--output",
        type=file_name(".npy"),
        metavar="FILE.npy",
        help="write a float32 [n, d] array instead of text",
    )
    parser.add_argument("--normalize", action="store_true", help="vectors of length 1")
    parser.add_argument(
        "--batch-size", type=integer(1, _INT32_MAX), default=32, metavar="N", help="texts in a step (32)"
    )


def _add_quality(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("quality", help="what bfloat16, int8 and int4 cost, against float32")
    _add_model_name(parser)
    parser.add_argument(
        "--data",
        type=some_text("a file"),
        metavar="FILE",
        help="a text a line; '-' is standard input (a chapter of a novel)",
    )
    parser.add_argument(
        "--dtypes",
        type=names("bfloat16", "int8", "int4"),
        default=("bfloat16", "int8", "int4"),
        metavar="A,B",
        help="some of bfloat16,int8,int4 (all)",
    )
    parser.add_argument(
        "--max-tokens", type=integer(2, _INT32_MAX), default=8192, metavar="N", help="tokens that are read (8192)"
    )
    parser.add_argument(
        "--threads", type=integer(1), default=None, metavar="N", help="threads (all that this process may use)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")


def _add_quantize(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("quantize", help="write a model in bfloat16, int8 or int4 to a new folder")
    parser.add_argument(
        "model", type=some_text("a folder or a hub id"), metavar="DIR", help="a model's folder or hub id"
    )
    parser.add_argument("output", type=some_text("a folder"), metavar="OUT", help="a new or empty folder")
    parser.add_argument("--dtype", required=True, choices=("bfloat16", "int8", "int4"), help="how weights are held")
    _add_head_dtype(parser)
    parser.add_argument(
        "--threads", type=integer(1), default=None, metavar="N", help="threads (all that this process may use)"
    )


def _add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure the machine, a model and other libraries",
        description="Measures the machine's limits, and a model's work as a percent of them. Without -m: the machine "
        "and the demo models.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "-m", "--model", type=some_text("a folder or a hub id"), metavar="DIR", help="a model's folder or hub id"
    )
    what.add_argument("--machine", action="store_true", help="the machine's limits alone")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "int8", "int4"),
        help="how weights are held (a quantised model's own, else float32)",
    )
    parser.add_argument(
        "--kv-dtype",
        choices=("float32", "bfloat16", "int8", "float16"),
        help="how keys and values are held (as the weights)",
    )
    _add_head_dtype(parser)
    parser.add_argument(
        "--threads", type=integer(1, 1024), metavar="N", help="of every library (all that this process may use)"
    )
    parser.add_argument(
        "--against",
        type=_libraries,
        metavar="LIBRARIES",
        help="other libraries on the same work, each in a process of its own: torch,onnxruntime,ctranslate2,openvino,"
        "llama_cpp; NAME:DTYPE for another dtype than --dtype",
    )
    parser.add_argument("--works", type=some_names, metavar="NAMES", help="some of the work, by name: 8x128,1x16")
    parser.add_argument("--rounds", type=integer(1, 1000), default=5, metavar="N", help="turns of each library (5)")
    parser.add_argument(
        "--seconds", type=number(0.001, 600), default=0.3, metavar="S", help="least time of a turn (0.3)"
    )
    parser.add_argument("--profile", action="store_true", help="a table of all ops for each work")
    parser.add_argument(
        "--json", nargs="?", const="-", type=some_text("a file"), metavar="FILE", help="figures and all samples as JSON"
    )
    parser.add_argument(
        "--picture", type=file_name(".svg", ".html"), metavar="FILE", help="a roofline plot: FILE.svg or FILE.html"
    )
    parser.add_argument(
        "--keep", type=some_text("a folder"), metavar="DIR", help="where models converted for other libraries stay"
    )


def _libraries(text: str) -> tuple[str, ...]:
    from fastattn.cli.bench import read_libraries

    return read_libraries(text)


def _add_head_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--head-dtype",
        choices=("float32", "bfloat16", "int8", "int4"),
        help="how the matrix that gives the logits is held (as the weights)",
    )


def _add_model_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m",
        "--model",
        type=some_text("a folder or a hub id"),
        metavar="DIR",
        help="a model's folder or hub id (the demo model)",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    _add_model_name(parser)
    parser.add_argument(
        "--threads", type=integer(1), default=None, metavar="N", help="threads (all that this process may use)"
    )
    parser.add_argument(
        "--dtype",
        default=None,
        choices=("float32", "bfloat16", "int8", "int4", "float64", "float16", "tf32"),
        help="how weights are held (a quantised model's own, else float32)",
    )
    parser.add_argument(
        "--kv-dtype",
        choices=("float32", "bfloat16", "int8", "float16"),
        help="how keys and values are held (as the weights)",
    )
    parser.add_argument(
        "--device", default="cpu", choices=("cpu", "cuda", "numpy"), help="numpy is the float64 reference"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a text")


def _add_texts(parser: argparse.ArgumentParser, what: str) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-p", "--prompt", action="append", metavar="TEXT", help=f"{what}; repeatable")
    source.add_argument(
        "-f",
        "--file",
        type=some_text("a file"),
        metavar="FILE",
        help="a text a line, blank ones left out; '-' is standard input",
    )
