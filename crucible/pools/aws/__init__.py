"""The AWS side of Crucible: the stack, its pools, the emergency stop, and the diagnosis of failures."""
