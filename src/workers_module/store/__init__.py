"""Where a job rests: one interface, several stores behind it."""
