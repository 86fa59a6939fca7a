"""The AWS side of Crucible: the stack, its pools, the emergency brake, and words for what went wrong there."""
