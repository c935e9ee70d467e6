"""Pictures of samples and predictions."""
