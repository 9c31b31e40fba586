"""What training does to images, a whole batch at a time."""
