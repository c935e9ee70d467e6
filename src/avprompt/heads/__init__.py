"""Task heads: they turn the features of a backbone into the outputs of a task."""
