"""What a person types for each pool."""

COMMANDS = {
    "docker-gpu": ("crucible up --pool docker-gpu", "crucible up --pool docker-gpu"),
    "ec2-spot": ("crucible aws up", "crucible aws worker ec2-spot"),
    "ec2-on-demand": ("crucible aws up", "crucible aws worker ec2-on-demand"),
    "slurm": ("crucible slurm setup", "prefect worker start --pool slurm --type slurm --name slurm-1"),
    "skypilot": (
        "crucible sky pool --infra CLOUD/REGION",
        "prefect worker start --pool skypilot --type skypilot --name skypilot-1",
    ),
    "modal": ("crucible modal pool", "prefect worker start --pool modal --type modal"),
}
"""The commands that create a pool and start its worker."""
