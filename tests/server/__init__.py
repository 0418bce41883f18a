"""Tests of `fastattn serve`."""
