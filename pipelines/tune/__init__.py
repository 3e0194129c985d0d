"""What `foveate tune` does: times candidate tiles of every Triton kernel on the GPU at hand."""
