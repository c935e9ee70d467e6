"""Sweeps: many runs of an experiment, here or on a cluster, with tables and plots of their results."""
