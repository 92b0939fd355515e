"""The files of OUT: the only code that reads or writes them."""
