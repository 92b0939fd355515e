"""A segmentation network trained on the label maps of a run: here, or on Ray with any number of workers."""
