"""What the steps share: run, training (which imports run), analysis (which imports neither), and files."""
