"""What modulations do to pictures of the embedded models, against the same seeds without them."""
