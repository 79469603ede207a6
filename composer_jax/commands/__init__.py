"""One module a verb: reads the flags, calls one function, prints."""
