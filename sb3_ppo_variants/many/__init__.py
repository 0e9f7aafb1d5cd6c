"""Many trainings at once: agents of one shape, their networks stacked into batched products, in one process."""
