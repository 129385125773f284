"""Tables and figures beyond the paper (docs/beyond.md)."""
