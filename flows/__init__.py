"""The flows that are deployed; thin, each file runs alone."""
