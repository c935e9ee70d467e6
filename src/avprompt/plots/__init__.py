"""Pictures of samples and predictions, from tensors alone: nothing here knows a run or a dataset."""
