"""The driver that asks many env runners for groups: in lock-step or as a stream, and what is trained on."""
