"""What jobs leave: small JSON files; what they hold, where they lie, and which of them are current."""
