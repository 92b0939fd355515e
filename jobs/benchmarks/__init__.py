"""The measurements of `diffseg bench`, one module for each part."""
