"""Presents a run as text, as a page, as a trace, and as advice."""
