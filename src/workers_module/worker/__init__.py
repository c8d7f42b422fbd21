"""Where a job runs: each loop in a file of its own."""
