"""The page at `/`: tries the models in a browser. It is one file, and loads nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources

from fastattn.server.problems import Problem
from fastattn.viz.picture import Picture


@cache
def page() -> tuple[bytes, dict[str, str]]:
    """Return the page, and headers that let a browser run only its own script."""
    try:
        text = (resources.files("fastattn") / "server" / "page.html").read_text(encoding="utf-8")
    except OSError:
        raise Problem(404, "path: the page is not installed", None, "not_found") from None
    # A picture of /attention is shown in a frame without an address, which inherits this policy.
    both = text + Picture("", {}, (), ()).html
    script, style = (_hashes(both, tag) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; "
        "style-src-attr 'unsafe-inline'; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text.encode("utf-8"), {"content-security-policy": policy, "referrer-policy": "no-referrer"}


def _hashes(text: str, tag: str) -> str:
    """Return the hashes of all elements of this kind, as a policy lists them."""
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digests = [hashlib.sha256(body.encode("utf-8")).digest() for body in found]
    return " ".join(f"'sha256-{base64.b64encode(digest).decode('ascii')}'" for digest in digests)
