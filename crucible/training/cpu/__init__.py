"""What makes training fast on CPUs and is not needed anywhere else."""
