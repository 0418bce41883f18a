"""Measures where the time goes, and the least time that the machine allows."""
