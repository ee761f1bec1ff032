"""What a run writes down: the schema of its files, how they are written and read back.

Knows plain data, files and locks, and the errors that a user can fix.  Imports no other room and no
torch: everything else stands on it.
"""
