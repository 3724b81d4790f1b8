"""How results are printed and written as rows."""
