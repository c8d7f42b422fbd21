"""What the project's makers run, and nobody else."""
