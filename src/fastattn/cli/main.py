"""Runs a command. Exit codes: 0 ok, 1 failure (one line on stderr), 2 wrong usage, 130 Ctrl-C."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence

from fastattn.cli import streams
from fastattn.errors import FastattnError

_MAX_MESSAGE_CHARS = 2000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code. As in argparse, usage errors and --help raise SystemExit.

    Without `argv`, the command owns the process: it reads the process's arguments and first makes the standard streams
    usable.
    """
    own_process, interrupted = argv is None, False
    if own_process:
        streams.prepare()
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one thread tokenizes while the model computes
    try:
        return _main(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        interrupted = True
        if own_process:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends the process immediately
        streams.say("")
        return 130
    except streams.OutputError as error:
        if error.broken_pipe:  # the reader stopped reading, as in `| head`
            return 0
        streams.say(f"fastattn: {error}")
        return 1
    except (FastattnError, OSError, UnicodeError, MemoryError) as error:
        streams.say(f"fastattn: {_one_line(error)}")
        return 1
    finally:
        streams.settle(interrupted=interrupted)


def _main(words: list[str]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for a locale that cannot encode every letter of the text
    args = _parse(words)
    if args is None:
        return 0
    _check_together(args)
    if args.command not in ("embed", "look", "quantize", "serve") or (args.command == "embed" and args.output is None):
        streams.check_output()
    code = _run(args)
    streams.flush()
    return code


def _parse(words: list[str]) -> argparse.Namespace | None:
    """Return the parsed arguments; without a command, print the help and return None."""
    from fastattn.cli import parsing
    from fastattn.cli.arguments import build_parser

    parser, commands = build_parser()
    if not words:
        parser.print_help()
        return None
    first = words[0]
    if first in commands:
        commands[first].check_options(words[1:])
    elif first.startswith("-"):
        parser.check_options(words[:1])
    else:
        parsing.unknown_command(parser, first, commands)
    args, unknown = parser.parse_known_args(words)
    if args.command is None:
        parser.error("expected a command")
    if unknown:
        parsing.unexpected(args.parser, unknown)
    args.command_line = words
    return args


def _one_line(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"  # omits [Errno 2]
    line = " ".join(text.split()) or type(error).__name__
    return line if len(line) <= _MAX_MESSAGE_CHARS else line[: _MAX_MESSAGE_CHARS - 3] + "..."


def _check_together(args: argparse.Namespace) -> None:
    """Reject flags that conflict."""
    parser: argparse.ArgumentParser = args.parser
    if args.command == "embed" and args.json and args.output is not None:
        parser.error("argument --json: not allowed with argument -o/--output, which writes no text")
    if args.command == "run" and args.task == "text-generation" and args.max_batch_tokens is not None:
        parser.error(
            "argument --max-batch-tokens: not allowed with text-generation, which sets its own limit of tokens per step"
        )
    if args.command == "bench" and args.machine and (args.against or args.works):
        parser.error("argument --machine: not allowed with --against or --works, which measure models")
    if getattr(args, "dtype", None) == "float64" and args.device != "numpy":
        parser.error("argument --dtype: float64 needs --device numpy")
    if getattr(args, "dtype", None) in ("float16", "tf32") and args.device != "cuda":
        parser.error(f"argument --dtype: {args.dtype} needs --device cuda")


def _run(args: argparse.Namespace) -> int:
    if args.command == "bench":
        from fastattn.cli.bench import bench

        return bench(args)
    if args.command == "completion":
        from fastattn.cli.completion import completion

        return completion(args)
    if args.command in ("check", "verify"):
        from fastattn.cli import inspection

        return inspection.check(args) if args.command == "check" else inspection.verify(args)
    if args.command == "chat":
        from fastattn.cli.chat import chat

        return chat(args)
    if args.command == "serve":
        from fastattn.cli.serve import serve

        return serve(args)
    if args.command == "look":
        from fastattn.cli.look import look

        return look(args)
    from fastattn.cli import commands

    run = {
        "info": commands.info,
        "generate": commands.generate,
        "classify": commands.classify,
        "run": commands.run,
        "embed": commands.embed,
        "rerank": commands.rerank,
        "quality": commands.quality,
        "quantize": commands.quantize,
    }[args.command]
    return run(args)
