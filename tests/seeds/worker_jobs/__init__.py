"""A job to a module, found by `discover`."""
