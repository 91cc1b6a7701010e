"""What runs in processes of its own. Each program says ``ready`` on standard output and begins at a line of input."""
