"""What is measured of a net: metrics, the invariance error, and the barrier between two."""
