"""The commands `check` and `verify`."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from fastattn.cli.commands import json_line
from fastattn.cli.streams import emit, say
from fastattn.cli.texts import read_texts
from fastattn.errors import InputError
from fastattn.tasks.check_folder import check_folder
from fastattn.tasks.folder_report import folder_lines, verify_lines
from fastattn.tasks.verify_model import verify_model


def check(args: argparse.Namespace) -> int:
    """Check a folder. Returns 1 if there are problems."""
    report = check_folder(args.model)
    if args.json:
        emit(json_line({"ok": report.ok, **asdict(report)}))
    else:
        for line in folder_lines(report):
            emit(line)
    return 0 if report.ok else 1


def verify(args: argparse.Namespace) -> int:
    """Compare a model with the float64 reference. Returns 1 if a comparison fails."""
    model = args.model if args.folder is None else args.folder
    if model is None:
        raise InputError("verify: expected the folder or hub id of a model")
    texts = None
    if args.file is not None:
        texts = [text.text for text in read_texts(None, args.file, whole_stdin=False, skip_blank=True)]
    report = verify_model(
        model, texts, dtypes=args.dtypes, max_tokens=args.max_tokens, threads=args.threads, against=args.against
    )
    if args.json:
        emit(json_line({"ok": report.ok, **asdict(report)}))
    else:
        for line in verify_lines(report):
            emit(line)
        say(f"{report.n_texts} texts, {report.n_tokens} tokens, model {report.model}")
    return 0 if report.ok else 1
