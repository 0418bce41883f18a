"""Requests, the scheduler, sampling options, stop conditions and streaming."""

from fastattn.generation.options import request_seed

__all__ = ["request_seed"]
