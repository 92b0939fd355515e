"""What `diffseg bench` measures, a part a file."""
