"""Decisions made again from the log alone, and compared to the byte."""
