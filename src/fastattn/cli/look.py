"""The command `look`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastattn.api.load_options import LoadOptions
from fastattn.checks import quote
from fastattn.cli.flags import given_options
from fastattn.cli.streams import say
from fastattn.cli.texts import read_texts
from fastattn.errors import InputError
from fastattn.tasks.demo import demo_model
from fastattn.viz import look as draw
from fastattn.viz.inputs import load_any


def look(args: argparse.Namespace) -> int:
    """Write the pictures of a text."""
    if not Path(args.output).absolute().parent.is_dir():
        raise InputError(f"--output: expected an existing folder, got {quote(str(Path(args.output).parent))}")
    (text,) = read_texts([args.text], None, whole_stdin=True)
    path = demo_model("text-generation") if args.model is None else args.model
    with load_any(path, **given_options(LoadOptions, args)) as model:
        picture = draw(model, text.text, layers=args.layers, heads=args.heads, top_k=args.top_k)
    picture.save(args.output)
    say(f"{args.output}: {len(picture.data['tokens']['ids'])} tokens; {', '.join(picture.data)}")
    return 0
