"""Planning, sampling, loading and collating of batches."""
