"""Learners: micro-batches, gradient accumulation, global normalisation; an algorithm adds its loss."""
