"""Pages to look at: trajectories of runs and files, and curves of runs, in one file of HTML; no torch, no ray."""
