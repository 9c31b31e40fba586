"""What the steps share. Import from the modules: `from utils.metrics import ...`."""
