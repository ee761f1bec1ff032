"""The command line: a command parses flags, calls a room and shows what it returned.

May import every room, and no room imports it.  Opens without torch: commands import what they need
when they run.
"""
