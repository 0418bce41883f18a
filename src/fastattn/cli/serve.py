"""`fastattn serve`: models over HTTP."""

from __future__ import annotations

import argparse
import importlib.util
import os
from typing import Any

from fastattn import __version__
from fastattn.cli.flags import given_options
from fastattn.errors import FastattnError

_NEEDED = ("starlette", "uvicorn", "prometheus_client")


def serve(args: argparse.Namespace) -> int:
    """Serve models until SIGTERM or Ctrl-C. Raises FastattnError if the extra is not installed."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise FastattnError(f'serve: {missing[0]} is not installed; pip install "fastattn[server]"')
    from fastattn.api.load_options import LoadOptions
    from fastattn.server.options import KINDS, ServeOptions
    from fastattn.server.run import serve as run
    from fastattn.server.settings import parse_model, read_settings

    flags: dict[str, Any] = given_options(ServeOptions, args)
    flags["allow_no_key"] = args.allow_no_key
    models = [parse_model(text) for text in args.models or ()]
    for kind in KINDS:
        models += [parse_model(text, kind) for text in getattr(args, f"{kind}_models") or ()]
    flags["models"] = tuple(models)
    for name in ("adapters", "cors_origins", "allowed_hosts"):
        flags[name] = tuple(flags[name] or ())
    options = read_settings(flags, os.environ, config=args.config)
    load = {
        **given_options(LoadOptions, args),
        "kv_cache_bytes": args.kv_cache_bytes,
        "share_weights": args.share_weights,
    }
    return run(options, load, os.environ, version=__version__)
