"""The paper's figures, and those beside them."""
