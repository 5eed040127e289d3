"""A run sent somewhere else: to a Ray cluster as a job, to Slurm as a batch job."""
