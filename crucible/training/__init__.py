"""The trainer: a GPT with nanoGPT's mathematics, exact resume, and checkpoints that cost almost nothing.

`python -m crucible.training --help`. It uses torch, but no Prefect and no cloud. Importing this package does not import
torch, so that the choice of matrix kernels (`gemm`) and the background writer can come first.
"""
