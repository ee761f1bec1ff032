"""Our loop against the peer's, what verification costs by rows, and the memory floor."""
