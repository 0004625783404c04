"""What one looks at: the page of a run, the page of several runs, figures, TensorBoard."""
