"""Reports on finished runs: comparison with published figures, dashboards, efficiency."""
