"""The pool `local`: flow runs as processes on this machine."""
