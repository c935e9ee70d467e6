"""Task heads: what turns backbone features into a task's outputs."""
