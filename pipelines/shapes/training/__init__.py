"""Scripts that trained the embedded models; each resumes from its run folder."""
