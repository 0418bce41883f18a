"""Tests of fastattn.viz."""
