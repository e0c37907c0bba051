"""Environments in their slots: what they are asked and answer, in this thread, in threads or in processes."""
