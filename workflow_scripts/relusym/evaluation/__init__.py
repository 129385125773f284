"""Measuring a net: its images, its logits, their metrics and their invariance error."""
