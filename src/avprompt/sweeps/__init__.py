"""Many runs of one experiment: what to run, where, and the tables and plots at the end."""
