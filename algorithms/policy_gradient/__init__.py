"""What all algorithms here share: Algorithm, config, settings, learner, guards, clip monitor."""
