"""Where time goes, and the least time the machine allows."""
