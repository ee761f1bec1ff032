"""What records say: sums per question, metrics, intervals, and the summary made of them.

Each metric is defined here and nowhere else.  Imports ``record`` alone, and no torch.
"""
