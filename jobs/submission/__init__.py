"""The steps of `diffseg submit`: packing a folder, starting a job, and following its log."""
