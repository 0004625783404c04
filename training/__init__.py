"""Training: one epoch, the optimizer, checkpoints, several processes, the device. Nothing in here reads flags."""
