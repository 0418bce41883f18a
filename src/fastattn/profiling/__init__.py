"""Measures where the time goes, and the minimum time that the machine allows."""
