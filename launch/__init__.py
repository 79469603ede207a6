"""Job descriptions, and the scripts that set up, demonstrate and test."""
