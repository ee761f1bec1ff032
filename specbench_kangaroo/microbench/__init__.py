"""What a machine gives to a target: bandwidth, product rate, the cost of a pass by its rows.

Defines no metric of a method: how fast one is, a run says.  Imports the rooms below the command
line, but none that trains, tunes or judges; torch at import.
"""
