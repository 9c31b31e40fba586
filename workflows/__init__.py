"""What chains the commands, and works on their results."""
