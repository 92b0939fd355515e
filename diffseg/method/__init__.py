"""The stages that turn attention into a label map."""
