"""From files to tensors to volumes. Nothing in here knows about networks."""
