"""How a run is shown: as text, as a page, as a trace, and in words."""
