"""A benchmark of this project against the plain procedure: training, merging, and the workflow's own cost."""
