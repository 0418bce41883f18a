"""Arguments and exit codes: 0 ok, 1 failure (one line on stderr), 2 usage, 130 interrupted."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from fastattn import __version__
from fastattn.errors import FastattnError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (usage errors raise SystemExit(2), as argparse does)."""
    parser = _parser()
    args = parser.parse_args(argv)
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
        print(f"fastattn: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 1
    return code


def _run(args: argparse.Namespace) -> int:
    from fastattn.cli import commands

    run = {
        "info": commands.info,
        "generate": commands.generate,
        "classify": commands.classify,
        "embed": commands.embed,
    }[args.command]
    return run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastattn", description="Transformer inference at the limit of the machine.")
    parser.add_argument("--version", action="version", version=f"fastattn {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_info(commands)
    _add_generate(commands)
    _add_classify(commands)
    _add_embed(commands)
    return parser


def _add_info(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("info", help="version, compiler, SIMD targets, threads and extras")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def _add_generate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("generate", help="continue texts")
    _add_model(parser)
    _add_texts(parser, "a prompt; '-' reads one from standard input")
    parser.add_argument("-n", "--max-tokens", type=int, default=64, metavar="N", help="new tokens at most (64)")
    parser.add_argument("--temp", type=float, default=0.8, metavar="T", help="temperature, 0 is greedy (0.8)")
    parser.add_argument("--top-p", type=float, default=0.95, metavar="P", help="1 is off (0.95)")
    parser.add_argument("--top-k", type=int, default=50, metavar="K", help="0 is off (50)")
    parser.add_argument("--min-p", type=float, default=0.0, metavar="P", help="0 is off (0)")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R", help="1 is off (1)")
    parser.add_argument("--seed", type=int, default=None, help="repeats a text; drawn unless given")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
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
    parser.add_argument("--top-k", type=int, default=1, metavar="K", help="labels of each text, 0 is all (1)")
    parser.add_argument("--truncate", action="store_true", help="cut texts longer than the model's context")


def _add_embed(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("embed", help="turn texts into vectors")
    _add_model(parser)
    _add_texts(parser, "a text; '-' reads lines from standard input")
    parser.add_argument("-o", "--output", metavar="FILE.npy", help="write a float32 [n, d] array instead of text")
    parser.add_argument("--normalize", action="store_true", help="vectors of length 1")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="texts in a step (32)")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", metavar="DIR", help="a model's folder or hub id (the demo model)")
    parser.add_argument(
        "--threads", type=int, default=None, metavar="N", help="threads (all that this process may use)"
    )
    parser.add_argument("--dtype", default="float32", help="how weights are held (float32)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "numpy"), help="numpy is the float64 reference")
    parser.add_argument("--json", action="store_true", help="one JSON object a text")


def _add_texts(parser: argparse.ArgumentParser, what: str) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-p", "--prompt", action="append", metavar="TEXT", help=f"{what}; repeatable")
    source.add_argument("-f", "--file", metavar="FILE", help="a text a line")
