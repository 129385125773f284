"""The paper's tables, and those about them."""
