"""Requests, the scheduler, sampling options, stop conditions and streaming."""
