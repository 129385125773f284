"""Records, the small JSON files that jobs write: their fields, their paths, and which of them are current."""
