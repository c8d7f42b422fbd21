"""What a job is: values, no I/O."""
