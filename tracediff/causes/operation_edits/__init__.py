"""Which changes are tried on recorded operations: what porters get wrong, one operation at a time.

Each family takes a replay and the number of a node, and gives changes of what that node gives. They know operations by name only, no model.
"""
