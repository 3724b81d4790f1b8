"""The page in the browser: a thin layer over the facade, as the command line is."""
