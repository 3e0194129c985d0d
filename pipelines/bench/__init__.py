"""What `foveate bench` measures, models and writes: time, numerical error, work on a named GPU."""
