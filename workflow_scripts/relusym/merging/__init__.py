"""Merging two nets: permute, average, REPAIR, and measure the barrier (sections 3 and 4)."""
