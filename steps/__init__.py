"""What the step commands share."""
