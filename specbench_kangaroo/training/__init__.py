"""Draft heads: text from the target itself, its hidden states, and the fit to them."""
