"""What is trained for a layer of attention: its modules, and the files they come from."""
