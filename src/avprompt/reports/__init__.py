"""What is made of finished runs: comparison with published figures, dashboards, efficiency."""
